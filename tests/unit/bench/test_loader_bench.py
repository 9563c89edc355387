"""The meter counts what it is given, and the loader case runs every engine of this machine."""

import math
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecgfast.bench.loader import Round, measure, measure_loader, measure_round, use_rows


def test_meter_counts_records_over_time() -> None:
    def epoch() -> Iterator[int]:
        for _ in range(2):
            time.sleep(0.01)
            yield 5

    rounds = measure(epoch, seconds=0.1, rounds=3)
    assert len(rounds) == 3
    assert all(10 < one.records_per_s <= 500 for one in rounds)
    assert all(one.cpu_s < 0.9 * one.wall_s or math.isnan(one.cpu_s) for one in rounds)


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
    if cold.read_bytes == 0 or math.isnan(cold.read_bytes):
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

    rounds = measure(epoch, seconds=0.1, rounds=2)
    if math.isnan(rounds[0].cpu_s):
        pytest.skip("no /proc on this machine")
    assert all(one.cpu_s > 0.02 * one.wall_s for one in rounds)
    assert 0.05 < max(one.memory_bytes for one in rounds) / 2**30 < 0.2


def test_what_was_not_measured_has_no_row() -> None:
    unknown = {"cpu_s": math.nan, "read_bytes": math.nan, "memory_bytes": 2.0**29}
    rounds = [Round(records=records, wall_s=1.0, **unknown) for records in (1, 2, 3)]
    rows = list(use_rows("ecgfast-cpu", "s", rounds, "cpu"))
    assert [(row.metric, row.p50) for row in rows] == [("throughput", 2.0), ("memory", 0.5)]


def test_loader_case_measures_our_engines() -> None:
    rows = list(measure_loader("cpu", num_records=48, batch_size=16, seconds=0.01))
    engines = {row.provider for row in rows if row.metric == "throughput"}
    assert "ecgfast" in engines
    assert all(row.p50 > 0 for row in rows if row.metric == "throughput")
    assert {row.shape.partition(",")[0] for row in rows} == {"ecgpack", "none"}
