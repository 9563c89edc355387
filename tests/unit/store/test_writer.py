"""The one writer: however outcomes are cut, the same files come out; its journal when torn."""

from pathlib import Path

import numpy as np
import pytest
from disk_calls import recorded_calls
from recordings import snapshot

from ecgfast.store.format import SHARD_RECORDS, lead_chunk_name, shard_name
from ecgfast.store.outcomes import Cursor, EncodedRecord, Outcome, Refusal, in_columns
from ecgfast.store.writer import Entry, Journal, StoreWriter


def outcomes(num_inputs: int) -> list[Outcome]:
    """Three windows of each input; every fifth window is refused."""
    made: list[Outcome] = []
    for number in range(3 * num_inputs):
        position, window = divmod(number, 3)
        last = window == 2
        after = Cursor(position=position + last, outcome=0 if last else window + 1)
        if number % 5 == 4:
            row = {"record_id": f"r{number}", "format": "npy", "reason": "too short"}
            made.append(Refusal(after=after, row=row, source=f"s{number}"))
            continue
        made.append(
            EncodedRecord(
                after=after,
                chunk=number.to_bytes(4, "little") * (number % 7),
                leads=np.full((4, 12), number, np.float32),
                row={
                    "record_id": f"r{number}",
                    "labels": {"n": number} if number % 2 else {},
                    "position": position,
                },
                source=f"s{number}",
            )
        )
    return made


def write(folder: Path, made: list[Outcome], size: int, *, stops: int = 0) -> dict[str, bytes]:
    """Write all in batches; the writer is opened again after every `stops` of them."""
    end = Cursor(position=len(made) // 3)
    while True:
        with StoreWriter(folder / "store", folder / "work") as writer:
            rest = [each for each in made if each.after > writer.cursor]
            batches = range(0, len(rest), size)
            for first in batches if not stops else batches[:stops]:
                writer.add(in_columns(rest[first : first + size]))
            if stops and stops * size < len(rest):
                continue
            writer.finish(end)
            assert writer.cursor == end
            return snapshot(folder)


def test_a_cut_is_behind_its_record() -> None:
    whole = in_columns(outcomes(4))
    for records in range(1, len(whole.chunks) + 1):
        head, tail = whole.split(records)
        assert (len(head.chunks), len(head.leads), len(head.rows["site"])) == (records,) * 3
        assert head.refused[-1] is None
        for name in ("after", "sources", "refused", "chunks"):
            assert getattr(head, name) + getattr(tail, name) == getattr(whole, name)
        np.testing.assert_array_equal(np.concatenate([head.leads, tail.leads]), whole.leads)
        assert head.rows["labels"] + tail.rows["labels"] == whole.rows["labels"]
        assert head.num_inputs + tail.num_inputs == whole.num_inputs == 4


def test_labels_keep_their_kinds() -> None:
    assert in_columns(outcomes(4)).kinds == {"n": "number"}


def test_no_outcomes_are_columns_too() -> None:
    none = in_columns([])
    assert (none.chunks, none.num_inputs) == ([], 0)
    assert (none.leads.shape, none.leads.dtype) == ((0, 4, 12), np.float32)
    assert set(none.rows) == set(in_columns(outcomes(1)).rows)


@pytest.mark.parametrize("size", [1, 7, 1500, 10_000])
def test_batches_of_any_size_give_the_same_files(tmp_path: Path, size: int) -> None:
    made = outcomes(1000)
    expected = write(tmp_path / "whole", made, 64)
    assert write(tmp_path / "other", made, size) == expected
    assert {f"store/{shard_name(n)}" for n in range(3)} <= expected.keys()


def test_a_writer_resumes_where_the_last_one_stopped(tmp_path: Path) -> None:
    made = outcomes(1000)
    stopped = write(tmp_path / "stopped", made, 300, stops=5)
    assert stopped == write(tmp_path / "whole", made, 64)


def test_shards_that_end_with_the_inputs_leave_no_empty_one(tmp_path: Path) -> None:
    made = [each for each in outcomes(3000) if isinstance(each, EncodedRecord)][:SHARD_RECORDS]
    with StoreWriter(tmp_path / "store", tmp_path / "work") as writer:
        writer.add(in_columns(made))
        writer.finish(made[-1].after)
        assert writer.num_records == SHARD_RECORDS
        assert len(list(writer.lines())) == 1


def test_a_writer_that_is_left_early_leaves_no_temporary_file(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", tmp_path / "work") as writer:
        writer.add(in_columns(outcomes(10)))
        assert len(snapshot(tmp_path)) == 1
    assert snapshot(tmp_path) == {}


def test_what_a_crash_left_of_a_shard_is_removed(tmp_path: Path) -> None:
    made = outcomes(1000)
    with StoreWriter(tmp_path / "store", tmp_path / "work") as writer:
        writer.add(in_columns(made[:1500]))
    durable = snapshot(tmp_path)
    assert f"store/{shard_name(0)}" in durable
    signal = (tmp_path / "store" / shard_name(1)).parent
    (signal / ".c.1.0.0.tmp").write_bytes(b"half a shard")
    (signal / "c.1.0.0").write_bytes(b"a whole one that the journal does not know")
    with StoreWriter(tmp_path / "store", tmp_path / "work"):
        assert snapshot(tmp_path) == durable


def test_the_journal_comes_after_all_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded_calls(tmp_path, monkeypatch)
    made = outcomes(10)
    with StoreWriter(tmp_path / "store", tmp_path / "work") as writer:
        writer.add(in_columns(made))
        writer.finish(made[-1].after)
        names = [f"store/{name}" for name in writer.files]
    journal = next(n for n, call in enumerate(calls) if call.startswith("fsync work/journal"))
    assert len(names) == 5
    for name in names:
        renamed = next(n for n, call in enumerate(calls) if call.endswith(f" to {name}"))
        assert f"fsync {Path(name).parent.as_posix()}/" in calls[renamed:journal]
    assert not [call for call in calls[journal:] if call.startswith("rename")]


def test_a_shard_that_cannot_be_written_ends_the_writer(tmp_path: Path) -> None:
    """The second of three: an error that nobody waited for would leave a hole in the store."""
    made = outcomes(1400)
    with StoreWriter(tmp_path / "store", tmp_path / "work") as writer:
        (tmp_path / "store" / lead_chunk_name("lead_std", 1)).mkdir()
        with pytest.raises(IsADirectoryError):
            writer.add(in_columns(made))
        assert writer.num_records == SHARD_RECORDS


def test_files_of_others_in_an_unfinished_store_stay(tmp_path: Path) -> None:
    folder = tmp_path / "store/signals.zarr/signal"
    folder.mkdir(parents=True)
    for name in ("notes.txt", "c.backup", "c.0.0.0", ".c.1.0.0.tmp"):
        (folder / name).write_bytes(b"x")
    with StoreWriter(tmp_path / "store", tmp_path / "work"):
        assert sorted(path.name for path in folder.iterdir()) == ["c.backup", "notes.txt"]


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
