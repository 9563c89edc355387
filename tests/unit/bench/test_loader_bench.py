"""The meter counts what it is given, and the loader case runs every engine of this machine."""

import math
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecgfast.bench.loader import (
    Use,
    drop_page_cache,
    fill_page_cache,
    measure,
    measure_cold,
    measure_loader,
    use_rows,
)


def test_meter_counts_records_over_time() -> None:
    def epoch() -> Iterator[int]:
        for _ in range(2):
            time.sleep(0.01)
            yield 5

    use = measure(epoch, seconds=0.1, rounds=3)
    assert len(use.records_per_s) == 3
    assert all(10 < rate <= 500 for rate in use.records_per_s)
    assert use.cores < 0.9 or math.isnan(use.cores)


def test_a_cold_round_is_one_epoch_after_forgetting() -> None:
    calls: list[str] = []

    def epoch() -> Iterator[int]:
        calls.append("epoch")
        yield from (1, 1)

    use = measure_cold(epoch, lambda: calls.append("forget"))
    assert calls == ["forget", "epoch"]
    assert len(use.records_per_s) == 1


def test_only_what_the_cache_does_not_hold_is_read_from_the_disk(tmp_path: Path) -> None:
    size = 8 << 20
    path = tmp_path / "folder" / "x"
    path.parent.mkdir()
    path.write_bytes(os.urandom(size))

    def epoch() -> Iterator[int]:
        path.read_bytes()
        yield 4

    cold = measure_cold(epoch, lambda: drop_page_cache(tmp_path))
    fill_page_cache(tmp_path)
    warm = measure(epoch, seconds=0.05, rounds=1)
    if cold.read_bytes == 0 or math.isnan(cold.read_bytes):
        pytest.skip(f"{tmp_path} lies in memory, or /proc does not tell")
    assert cold.read_bytes == pytest.approx(size / 4, rel=0.05)
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

    use = measure(epoch, seconds=0.1, rounds=2)
    if math.isnan(use.cores):
        pytest.skip("no /proc on this machine")
    assert use.cores > 0.02
    assert 0.05 < use.memory_gib < 0.2


def test_what_was_not_measured_has_no_row() -> None:
    use = Use(records_per_s=(1.0, 2.0, 3.0), cores=math.nan, memory_gib=0.5, read_bytes=math.nan)
    rows = list(use_rows("ecgfast-cpu", "s", use, "cpu"))
    assert [(row.metric, row.p50) for row in rows] == [("throughput", 2.0), ("memory", 0.5)]


def test_loader_case_measures_our_engines() -> None:
    rows = list(measure_loader("cpu", num_records=48, batch_size=16, seconds=0.01))
    engines = {row.provider for row in rows if row.metric == "throughput"}
    assert "ecgfast" in engines
    assert all(row.p50 > 0 for row in rows if row.metric == "throughput")
    stored = {row.shape: row.p50 for row in rows if row.metric == "storage"}
    assert 5_000 < stored["ecgpack"] < 60_000 < stored["none"] == 120_004  # 4 bytes of checksum
