"""Killed, out of disk, or refused: the same command goes on and ends in the same bytes."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from recordings import KEY, convert_quietly, ecg_like, snapshot, write_wfdb

import ecgfast
from ecgfast import log
from ecgfast.errors import ConfigError, CorruptStoreError, EcgfastError, ResumeError
from ecgfast.store.format import with_crc32c
from ecgfast.store.shards import INDEX_BYTES
from ecgfast.store.verify import verify_store

NUM_RECORDS = 2300  # three shards, the last one in part
NUM_KILLS = 30

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


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many headers that share a few signal files; some records are too short."""
    folder = tmp_path_factory.mktemp("source")
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


@pytest.fixture(scope="module")
def unbroken(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("unbroken") / "store"
    convert_quietly([source], out)
    return beside(out)


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


@pytest.mark.slow
def test_killed_at_any_moment(source: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    rng = random.Random(5)
    kills, rounds = 0, 0
    while kills < NUM_KILLS:
        rounds += 1
        out = tmp_path / f"round{rounds}" / "store"
        out.parent.mkdir()
        kills += kill_until_done(source, out, rng)
        assert beside(out) == unbroken
        shutil.rmtree(out.parent)


def kill_until_done(source: Path, out: Path, rng: random.Random) -> int:
    """Start a convert and kill it, again and again, until one gets through; returns the kills."""
    kills, patience, journalled = 0, 2.0, 0
    journal = out.parent / "store.convert/journal"
    while True:
        with child(source, out) as process:
            try:
                process.wait(timeout=rng.uniform(0.3, patience))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
            else:
                code, errors = finish(process)
                assert code == 0, errors
                return kills
        size = journal.stat().st_size if journal.exists() else 0
        if size == journalled:  # a slow or busy machine: no shard was finished in that time
            patience *= 1.3
        journalled = size


def test_workers_die_with_their_parent(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run" / "store"
    out.parent.mkdir()
    with child(source, out, workers=3) as process:
        children: set[int] = set()
        until = time.monotonic() + 30
        while len(children) < 3 and time.monotonic() < until:  # two spawned, a resource tracker
            children |= children_of(process.pid)
        time.sleep(0.5)
        process.kill()
        process.communicate()
    assert len(children) >= 3
    until = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in children if alive(pid)]


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


def test_killed_worker_is_one_error(
    source: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "run" / "store"
    out.parent.mkdir()
    with child(source, out) as process:
        while not (spawned := [pid for pid in children_of(process.pid) if is_worker(pid)]):
            assert process.poll() is None, finish(process)
        for pid in spawned:
            os.kill(pid, signal.SIGKILL)
        code, errors = finish(process)
    assert code == 1
    assert errors.splitlines()[-1].startswith("a worker process was killed")
    assert finish(child(source, out))[0] == 0
    assert beside(out) == unbroken


def test_any_number_of_workers(source: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    convert_quietly([source], tmp_path / "run" / "store", workers=2)
    assert beside(tmp_path / "run" / "store") == unbroken


def test_file_size_limit(source: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "run" / "store"
    out.parent.mkdir()
    code, errors = finish(child(source, out, workers=1, limit=4 << 20))
    assert code == 1
    assert errors.splitlines()[-1].startswith("disk full while writing")
    assert "run the same command again" in errors
    assert not list(out.parent.rglob("*.tmp"))
    assert finish(child(source, out))[0] == 0
    assert beside(out) == unbroken


def in_namespace(script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount file systems of its own; skip where that is forbidden."""
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    return subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)


def test_disk_full(source: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    (tmp_path / "child.py").write_text(CHILD)
    run = f"{sys.executable} {tmp_path}/child.py {source} {disk}/store 1 ecgpack"
    result = in_namespace(
        f"mount -t tmpfs -o size=40m tmpfs {disk} && echo {KEY} > {disk}/store.key && "
        f"! {run} && find {disk} -name '*.tmp' && mount -o remount,size=400m {disk} && "
        f"{run} && cp -r {disk} {copy}"
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("disk full while writing") == 1
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    ours = snapshot(copy)
    ours["store.key"] = ours["store.key"].strip()
    assert ours == unbroken


def test_read_only_target(source: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "child.py").write_text(CHILD)
    run = f"{sys.executable} {tmp_path}/child.py {source} {disk}/store 1 ecgpack"
    result = in_namespace(f"mount -t tmpfs -o ro tmpfs {disk} && {run}")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("cannot write")
    assert "choose a place" in line


def test_other_options_are_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run" / "store"
    out.parent.mkdir()
    finish(child(source, out, workers=1, limit=4 << 20))
    with pytest.raises(ResumeError, match="begun with codec = ecgpack, got none"):
        convert_quietly([source], out, codec="none")
    with pytest.raises(ResumeError, match="sources"):
        convert_quietly([source / "part"], out)
    convert_quietly([source], out)
    with pytest.raises(ConfigError, match="finished store made from other"):
        convert_quietly([source], out, window="all")
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "file").write_text("mine")
    with pytest.raises(ConfigError, match="neither empty nor a store"):
        convert_quietly([source], stranger)
    assert os.listdir(stranger) == ["file"]


def test_finished_store_is_left_alone(
    source: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "run" / "store"
    first = convert_quietly([source], out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert convert_quietly([source], out) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_finished_store_tells_of_new_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(log.logger, "warning", said.append)
    source, out = tmp_path / "source", tmp_path / "run" / "store"
    for number, record in enumerate(ecg_like(3, seed=0)):
        write_wfdb(source / f"r{number}", record, comments=[f"patient: {number}"])
        if number != 1:
            convert_quietly([source], out, workers=1)
    assert len(ecgfast.open_store(out)) == 1
    assert len(said) == 1
    assert "hold 3 inputs" in said[0]
    assert "made from 1 " in said[0]


def test_finished_store_needs_no_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(log.logger, "warning", said.append)
    source, out = tmp_path / "source", tmp_path / "run" / "store"
    write_wfdb(source / "r0", ecg_like(1, seed=0)[0], comments=["patient: 1"])
    first = convert_quietly([source], out, workers=1)
    for path in source.iterdir():
        path.unlink()
    assert convert_quietly([source], out, workers=1) == first
    assert len(said) == 1
    assert "holds no ECG file" in said[0]
    source.rmdir()
    assert convert_quietly([source], out, workers=1) == first
    assert len(said) == 1


def test_journal_of_another_version_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run" / "store"
    out.parent.mkdir()
    finish(child(source, out, workers=1, limit=4 << 20))
    plan = out.parent / "store.convert/plan.json"
    content = json.loads(plan.read_text())
    del content["layout"]  # as the first version wrote it, with other lines beside it
    plan.write_text(json.dumps(content))
    before = beside(out)
    with pytest.raises(ResumeError, match=r"another version .* layout 1, allowed 5; finish it"):
        convert_quietly([source], out)
    assert beside(out) == before


def test_second_writer_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run" / "store"
    out.parent.mkdir()
    with child(source, out) as process:
        wait_for(out.parent / "store.convert", process)
        with pytest.raises(EcgfastError, match="being written by another process"):
            convert_quietly([source], out)
        process.kill()


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_transcode(source: Path, tmp_path: Path, codec: str) -> None:
    first, second = tmp_path / "first/store", tmp_path / "second/store"
    convert_quietly([source], first)
    before = snapshot(first)
    out = tmp_path / "killed/store"
    out.parent.mkdir()
    with child(first, out, codec=codec) as process:
        wait_for(out.parent / "store.convert/journal", process)
        process.kill()
    summary = convert_quietly([first], out, codec=codec, workers=2)
    convert_quietly([first], second, codec=codec)
    assert beside(out) == beside(second)
    assert snapshot(first) == before
    ours, theirs = ecgfast.open_store(first), ecgfast.open_store(out)
    assert summary.num_records == len(theirs) == NUM_RECORDS
    assert theirs.codec == codec
    np.testing.assert_array_equal(theirs.read(range(300)), ours.read(range(300)))
    np.testing.assert_array_equal(theirs.lead_std, ours.lead_std)
    assert theirs.records.equals(ours.records)
    assert verify_store(out) == []
    with pytest.raises(ConfigError, match="transcoded alone"):
        convert_quietly([first], tmp_path / "third", window="all")


def test_transcode_vouches_for_nothing_damaged(source: Path, tmp_path: Path) -> None:
    first, out = tmp_path / "first/store", tmp_path / "second/store"
    convert_quietly([source], first, codec="none")
    shard = first / "signals.zarr/signal/c.0.0.0"
    data = shard.read_bytes()
    index = np.frombuffer(data[-INDEX_BYTES:-4], "<u8").reshape(-1, 2).copy()
    index[[3, 4]] = index[[4, 3]]
    shard.write_bytes(data[:-INDEX_BYTES] + with_crc32c(index.tobytes()))
    with pytest.raises(CorruptStoreError, match="is not what the manifest says"):
        convert_quietly([first], out, codec="zstd")
    assert not (out / "manifest.json").exists()
    shard.write_bytes(data)
    (first / "quarantine.csv").write_text("record_id,format,reason\nx,wfdb,none\n")
    with pytest.raises(CorruptStoreError, match=r"quarantine\.csv is damaged"):
        convert_quietly([first], out, codec="zstd")
