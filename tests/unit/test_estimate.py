"""Estimates: arithmetic, what they rest on, and what they refuse."""

from dataclasses import replace

import pytest

from ecgfast.bench import Row, make_rows
from ecgfast.config import load_config
from ecgfast.errors import ConfigError
from ecgfast.estimate import (
    ASSUMED_MFU,
    ASSUMED_SCALING,
    Prices,
    estimate_convert,
    estimate_pretrain,
    memory_gib,
)

LARGE = load_config("vit_large")
H100 = "NVIDIA H100 80GB HBM3"


def measured(rate: float) -> Row:
    numbers = {("throughput", "records/s"): [rate]}
    (row,) = make_rows(numbers, case="step", provider="ecgfast", preset="vit_large")
    return replace(row, device=H100, date="2026-01-02")


def test_a_measured_row_decides() -> None:
    result = estimate_pretrain(
        LARGE, gpu="H100", num_gpus=1, num_records=1024 * 100, rows=[measured(2048.0)]
    )
    assert result.records_per_s == 2048
    assert result.hours == pytest.approx(1600 * 1024 * 100 / 2048 / 3600)
    assert result.gpu_hours == result.hours
    assert "measured on NVIDIA H100" in result.basis
    assert "not measured" not in str(result)


def test_the_newest_fitting_row_counts() -> None:
    rows = [
        measured(1000.0),
        replace(measured(3000.0), date="2026-03-01"),
        replace(measured(9000.0), date="2026-04-01", preset="vit_tiny"),
        replace(measured(9000.0), date="2026-04-01", provider="reference-eager-timm"),
        replace(measured(9000.0), date="2026-04-01", metric="mfu"),
        replace(measured(9000.0), date="2026-04-01", device="NVIDIA A100-SXM4-80GB"),
    ]
    assert estimate_pretrain(LARGE, gpu="h100", num_gpus=1, rows=rows).records_per_s == 3000


def test_without_a_row_the_flop_count_decides_and_says_so() -> None:
    result = estimate_pretrain(LARGE)
    assert "not measured: 151.3 GFLOP per record" in result.basis
    assert "4 GPUs scaled" in result.basis
    rate = 4 * ASSUMED_SCALING * ASSUMED_MFU * 312e12 / 151.339e9
    assert result.records_per_s == pytest.approx(rate, rel=1e-4)
    assert result.hours == pytest.approx(1600 * 126_203 / rate / 3600, rel=0.01)
    assert result.gpu_hours == 4 * result.hours


def test_memory_is_near_what_was_seen() -> None:
    # about 80 MB of activations per record, 5 GB of state, 1.3 GB of working copies
    assert memory_gib(LARGE, 1) == pytest.approx((256 * 80e6 + 328e6 * 20) / 2**30, rel=0.1)
    assert memory_gib(LARGE, 4) < memory_gib(LARGE, 1)


def test_an_unknown_gpu_is_refused_with_the_cure() -> None:
    with pytest.raises(ConfigError, match=r"no known peak for the GPU 'Abacus'.*bench step"):
        estimate_pretrain(LARGE, gpu="Abacus")


@pytest.mark.parametrize("bad", [{"num_gpus": 0}, {"num_records": 0}])
def test_counts_must_be_positive(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        estimate_pretrain(LARGE, **bad)  # type: ignore[arg-type]  # refused


def row_of(case: str, metric: str, value: float, date: str = "2026-01-02") -> Row:
    numbers = {(metric, ""): [value]}
    (row,) = make_rows(numbers, case=case, provider="ecgfast")
    return replace(row, date=date)


def test_a_conversion_is_scaled_from_the_newest_rows() -> None:
    rows = [
        row_of("convert", "throughput", 1000.0),
        row_of("convert", "throughput", 2500.0, "2026-03-01"),
        replace(row_of("convert", "throughput", 9e9, "2026-04-01"), provider="wfdb-rdsamp-loop"),
        row_of("loader", "storage", 20_000.0),
        row_of("loader", "throughput", 9e9, "2026-04-01"),
    ]
    found = estimate_convert(num_records=9_000_000, num_cores=4, rows=rows)
    assert found.core_hours == pytest.approx(1.0)
    assert found.hours == pytest.approx(0.25)
    assert found.source_bytes == 9e6 * 12 * 5000 * 2
    assert found.stored_bytes == 9e6 * 20_000
    assert "2,500 records/s on a core measured on" in found.basis
    assert "scaled to 9,000,000 records and 4 cores, not measured" in str(found)


def test_shards_are_counted_whole_and_prices_add_up() -> None:
    prices = Prices(core_hour=3.0, terabyte_month=7.0, million_reads=11.0, million_writes=13.0)
    found = estimate_convert(num_records=1025, prices=prices)
    assert (found.reads, found.writes) == (2050, 12)  # two shards of six files
    expected = 3 * found.core_hours + 11 * 2050e-6 + 13 * 12e-6
    assert found.euros == pytest.approx(expected)
    assert found.euros_per_month == pytest.approx(7 * found.stored_bytes / 1e12)
    assert "assumed" in found.basis


@pytest.mark.parametrize(("records", "cores"), [(0, 1), (1, 0)])
def test_a_conversion_of_nothing_is_refused(records: int, cores: int) -> None:
    with pytest.raises(ConfigError, match="must be at least 1, got"):
        estimate_convert(num_records=records, num_cores=cores)
