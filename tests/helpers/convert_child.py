"""Conversions in a process of their own, to be killed, and a cohort of three shards for them."""

import contextlib
import resource
import subprocess
import sys
import time
from pathlib import Path

from recordings import KEY, ecg_like, snapshot, write_wfdb

NUM_RECORDS = 2300  # three shards, the last one in part

CHILD = """
import sys
from pathlib import Path
from ecgfast.convert import convert
from ecgfast.errors import EcgfastError

if __name__ == "__main__":
    source, out, workers, codec = sys.argv[1:]
    try:
        convert([source], out, workers=int(workers), codec=codec)
    except EcgfastError as error:
        sys.exit(str(error))
"""


def write_source(folder: Path) -> Path:
    """Many headers that share a few signal files; some records are too short."""
    for number, record in enumerate(ecg_like(8, seed=0)):
        write_wfdb(folder / f"part/d{number}", record)
    short = ecg_like(1, seed=1)[0, :, :400]
    write_wfdb(folder / "part/dshort", short)
    headers = {path.stem: path.read_text() for path in (folder / "part").glob("*.hea")}
    for path in (folder / "part").glob("*.hea"):
        path.unlink()
    names = sorted(headers)
    for number in range(NUM_RECORDS + 20):
        name = "dshort" if number % 116 == 5 else names[number % 8]
        (folder / f"part/r{number:05d}.hea").write_text(headers[name])
    return folder


def beside(out: Path) -> dict[str, bytes]:
    """The store and the files beside it, by name."""
    return snapshot(out.parent)


def child(
    source: Path, out: Path, *, workers: int = 2, codec: str = "ecgpack", limit: int | None = None
) -> subprocess.Popen[str]:
    script = out.parent.with_suffix(".py")
    script.write_text(CHILD)
    out.with_name(out.name + ".key").write_text(KEY)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or 0, limit or 0))

    return subprocess.Popen(
        [sys.executable, str(script), str(source), str(out), str(workers), codec],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=None if limit is None else limited,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, finish(process)
        time.sleep(0.005)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate()
    return process.returncode, errors


def children_of(pid: int) -> set[int]:
    """Of every thread: a child belongs to the one that started it."""
    found: set[int] = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found |= {int(child) for child in (thread / "children").read_text().split()}
    return found


def is_worker(pid: int) -> bool:
    """Whether it is one, and no resource tracker."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
