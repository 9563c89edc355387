"""`ecgfast label`: the preview, and who is asked before anything is written."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from label_tables import column, labelled_later
from recordings import snapshot

from ecgfast.cli import main
from ecgfast.store.reader import open_store

TABLE = "file;patient;LVEF\na/r0;p0;35-40\na/r1;p0;<35 %\na/r9;p9;50\n"
NAMES = ["--id-column", "file", "--rename", "LVEF=ejection_fraction"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "echo.csv").write_text(TABLE)
    return labelled_later(tmp_path)


def label(store: Path, *options: str | Path) -> int:
    return main(["label", str(store), *map(str, options)])


def test_a_script_is_not_asked(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    echo = store.with_name("echo.csv")
    assert label(store, echo, *NAMES) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{echo}: 3 lines joined by record_id; 2 name records of this store")
    assert lines[-2].startswith(f"{store}.unmatched.csv lists lines and records")
    assert lines[-1].startswith("2 of 6 records labelled with ejection_fraction; 0 outside the")
    assert column(store, "ejection_fraction")[:3] == [37.5, 34, None]


def test_a_dry_run_writes_nothing(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, beside = snapshot(store), sorted(os.listdir(store.parent))
    assert label(store, store.with_name("echo.csv"), *NAMES, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is written: --dry-run"
    assert (snapshot(store), sorted(os.listdir(store.parent))) == (before, beside)


@pytest.mark.parametrize("answer", ["y", "n", None])
def test_a_terminal_is_asked(store: Path, answer: str | None) -> None:
    """None: --yes answers before."""
    before = snapshot(store)
    command = [sys.executable, "-m", "ecgfast", "label", store, store.with_name("echo.csv"), *NAMES]
    command += ["--yes"] if answer is None else []
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        if answer is not None:
            os.write(ours, f"{answer}\n".encode())
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the end of a terminal, on Linux
                break
        code = process.wait()
    os.close(ours)
    assert (b"Write these labels into" in shown) is (answer is not None)
    assert code == (1 if answer == "n" else 0)
    assert (snapshot(store) == before) is (answer == "n")


def test_shifted_dates_need_no_table(store: Path) -> None:
    assert label(store, "--shift-dates") == 0
    days = column(store, "shifted_date")
    assert all(isinstance(day, str) and day < "2020-05-10" for day in days)
    assert days[::2] == days[1::2]  # two of each patient
    assert len(set(days)) == 3
    retained = open_store(store).manifest["retained"]
    assert (retained["dates"], retained["columns"]) == ("shifted", [])
    assert label(store, store.with_name("echo.csv"), *NAMES) == 0
    assert column(store, "shifted_date") == days
    (store.with_name("moved.csv")).write_text("record_id,patient_id\na/r1,p2\n")
    assert (
        label(store, store.with_name("moved.csv"), "--split", "patient") == 0
    )  # r1 is an ECG of p2
    moved = [days[0], days[4], *days[2:]]
    assert column(store, "shifted_date") == moved
    store.with_name("store.sources.csv").unlink()
    (store.with_name("lvh.csv")).write_text(f"record_id,lvh\n{column(store, 'record_id')[0]},1\n")
    assert label(store, store.with_name("lvh.csv")) == 0  # without their true days
    assert column(store, "shifted_date") == moved


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dry-run", "--yes"], "label takes --dry-run or --yes, got both"),
        (["--rename", "LVEF"], "--rename must be OLD=NEW"),
        (["--rename", "a=b", "--rename", "a=c"], "--rename must be OLD=NEW, each OLD once"),
        (["--id-column", "nowhere"], "--id-column: 'nowhere' is not in"),
        (["--label-window-days", "5..3"], "--label-window-days must ascend"),
    ],
)
def test_refused(
    store: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert label(store, store.with_name("echo.csv"), *options) == 2
    assert message in capsys.readouterr().err
