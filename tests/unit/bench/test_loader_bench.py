"""The meter counts what it is given, and the loader case runs every engine of this machine."""

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecgfast.bench.loader import (
    Round,
    Trial,
    measure,
    measure_round,
    measure_trials,
    memory_bytes,
    use_rows,
    write_stores,
)
from ecgfast.ingest.synthetic import write_cohort


def test_meter_counts_records_over_time() -> None:
    def epoch() -> Iterator[int]:
        for _ in range(2):
            time.sleep(0.01)
            yield 5

    rounds = measure(epoch, seconds=0.1, rounds=3)
    assert len(rounds) == 3
    assert all(10 < one.records_per_s <= 500 for one in rounds)
    assert all(one.cpu_s < 0.9 * one.wall_s for one in rounds)


def test_a_round_without_a_limit_is_one_epoch() -> None:
    one = measure_round(iter((1, 1)), "cpu")
    assert one.records == 2


def test_only_what_the_cache_does_not_hold_is_read_from_the_disk(tmp_path: Path) -> None:
    size = 8 << 20
    path = tmp_path / "x"
    path.write_bytes(os.urandom(size))
    os.sync()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def epoch() -> Iterator[int]:
        path.read_bytes()
        yield 4

    cold, warm = (measure_round(epoch(), "cpu") for _ in range(2))
    if cold.read_bytes == 0:
        pytest.skip(f"{tmp_path} lies in memory, or /proc does not tell")
    assert cold.read_bytes == pytest.approx(size, rel=0.05)
    assert warm.read_bytes < size / 100


def test_meter_sees_a_busy_core_and_kept_memory() -> None:
    kept: list[mmap.mmap] = []  # pages of its own; the heap may have 64 MiB to give from before

    def epoch() -> Iterator[int]:
        if not kept:
            kept.append(mmap.mmap(-1, 64 << 20))
            kept[0].write(b"1" * (64 << 20))
        start = time.process_time()
        while time.process_time() - start < 0.05:
            pass
        yield 1

    before = memory_bytes()
    rounds = measure(epoch, seconds=0.1, rounds=2)
    assert all(one.cpu_s > 0.02 * one.wall_s for one in rounds)
    assert 0.05 < (memory_bytes() - before) / 2**30 < 0.2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_memory_counts_what_processes_share_once_and_no_mapped_file(tmp_path: Path) -> None:
    """In a process of its own: what other tests have started would grow meanwhile."""
    size = 64 << 20
    command = [sys.executable, "-c", SHARING, str(tmp_path / "x"), str(size)]
    used = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert 0.9 * size < used < 1.5 * size


SHARING = """
import mmap, os, sys, time
from pathlib import Path
from ecgfast.bench.loader import memory_bytes

path, size = Path(sys.argv[1]), int(sys.argv[2])
before = memory_bytes()
shared = mmap.mmap(-1, size)
shared.write(b"1" * size)
child = os.fork()
if child == 0:
    _ = [shared[page] for page in range(0, size, mmap.PAGESIZE)]
    time.sleep(60)
    os._exit(0)
path.write_bytes(bytes(size))
with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=1) as mapped:
    _ = [mapped[page] for page in range(0, size, mmap.PAGESIZE)]
    time.sleep(0.5)
    print(memory_bytes() - before)
os.kill(child, 9)
os.waitpid(child, 0)
"""


def test_rows_are_of_all_rounds_together() -> None:
    rounds = [Round(records=n, wall_s=1.0, cpu_s=0.5, read_bytes=4 * n) for n in (1, 2, 3)]
    rows = {row.metric: row.p50 for row in use_rows("ecgfast", "s", rounds, 2**29, "cpu")}
    assert rows == {
        "throughput": 2, "cores": 0.5, "throughput_of_a_core": 4, "memory": 0.5, "read": 4,
    }  # fmt: skip


def test_a_trial_of_ours_has_rows_and_one_that_cannot_run_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_cohort(tmp_path / "cohort", num_records=48, num_sites=1, seed=0)
    write_stores(tmp_path)
    trial = Trial("ecgfast-none", tmp_path, 1, "cpu", 16, 0.01)
    rows = list(measure_trials([trial, trial._replace(device="cuda")], "48 synthetic", turns=2))
    rates = {row.shape: row for row in rows if row.metric == "throughput"}
    assert {shape: row.n for shape, row in rates.items()} == {
        "1 workers, batch 16, cold, 48 synthetic": 2,
        "1 workers, batch 16, warm, 48 synthetic": 4,
    }
    assert all(row.p20 > 0 and row.provider == "ecgfast-none" for row in rates.values())
    assert "loader: ecgfast-none is left out" in caplog.text
