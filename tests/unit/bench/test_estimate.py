"""Estimates: arithmetic, what they rest on, and what they refuse."""

from dataclasses import replace

import pytest

from ecgfast.bench.estimate import ASSUMED_MFU, ASSUMED_SCALING, estimate, memory_gib
from ecgfast.bench.measuring import Row, make_rows
from ecgfast.config import load_config
from ecgfast.errors import ConfigError

LARGE = load_config("vit_large")
H100 = "NVIDIA H100 80GB HBM3"


def measured(rate: float) -> Row:
    numbers = {("throughput", "records/s"): [rate]}
    (row,) = make_rows(numbers, case="step", provider="ecgfast", preset="vit_large")
    return replace(row, device=H100, date="2026-01-02")


def test_a_measured_row_decides() -> None:
    result = estimate(
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
    assert estimate(LARGE, gpu="h100", num_gpus=1, rows=rows).records_per_s == 3000


def test_without_a_row_the_flop_count_decides_and_says_so() -> None:
    result = estimate(LARGE)
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
        estimate(LARGE, gpu="Abacus")


@pytest.mark.parametrize("bad", [{"num_gpus": 0}, {"num_records": 0}])
def test_counts_must_be_positive(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        estimate(LARGE, **bad)  # type: ignore[arg-type]  # refused
