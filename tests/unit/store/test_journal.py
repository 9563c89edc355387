"""The journal: torn and damaged lines are forgotten, whole ones kept."""

from pathlib import Path

import pytest
from disk_calls import recorded_calls

from ecgfast.store.journal import Cursor, Entry, Journal


def entry(number: int) -> Entry:
    files = {f"shard{number}": {"bytes": number, "sha256": "00"}}
    cursor = Cursor(position=number, outcome=1)
    return Entry(num_records=1024, cursor=cursor, columns={"lvef": "number"}, files=files)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "journal")
    for number in range(3):
        journal.append(entry(number))
    return journal.path


def test_round_trip(path: Path) -> None:
    assert Journal(path).entries == [entry(0), entry(1), entry(2)]


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_torn_line(path: Path, cut: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    journal = Journal(path)
    assert journal.entries == [entry(0), entry(1)]
    journal.append(entry(2))
    assert path.read_bytes() == whole


def test_damaged_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"1024", b"1025") + lines[2])
    assert Journal(path).entries == [entry(0)]


def test_an_entry_is_on_the_disk_when_it_is_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded_calls(tmp_path, monkeypatch)
    journal = Journal(tmp_path / "journal")
    journal.append(entry(0))
    first = journal.path.stat().st_size
    assert calls == [f"fsync journal of {first} bytes", "fsync ./"]  # a new name is in its folder
    journal.append(entry(1))
    assert calls[2:] == [f"fsync journal of {journal.path.stat().st_size} bytes"]
