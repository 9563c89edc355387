"""Killed or out of disk: the same command resumes and ends in the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from convert_child import (
    CHILD,
    alive,
    beside,
    child,
    children_of,
    finish,
    is_worker,
    wait_for,
    write_source,
)
from recordings import KEY, convert_quietly, snapshot
from small_disks import in_namespace

from ecgfast.errors import EcgfastError

NUM_KILLS = 30


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def unbroken(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("unbroken") / "store"
    convert_quietly([source], out)
    return beside(out)


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
    kills, patience, finished = 0, 2.0, 0
    work = out.parent / "store.convert"
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
        units = len(list(work.glob("unit-*")))
        if units == finished:  # a slow or busy machine: no unit was finished in that time
            patience *= 1.3
        finished = units


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


def test_second_writer_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run" / "store"
    out.parent.mkdir()
    with child(source, out) as process:
        wait_for(out.parent / "store.convert", process)
        with pytest.raises(EcgfastError, match="being written by another process"):
            convert_quietly([source], out)
        process.kill()
