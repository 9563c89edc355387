"""Signal checks on hand-made leads, and on every real recording at hand."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ecgfast_kernels.codec import lead_statistics
from numpy.typing import NDArray

from ecgfast.convert.measures import breaks_einthoven, einthoven_uv, signal_flags
from ecgfast.convert.preprocess import Window, cut, to_samples
from ecgfast.errors import FormatError
from ecgfast.ingest import read_record
from ecgfast.ingest.inventory import discover

UV_PER_UNIT = 5.0


def _flags(
    signal_CT: NDArray[np.int16],
    scale_uv: NDArray[np.float32] | float = UV_PER_UNIT,
    valid_CT: NDArray[np.bool_] | None = None,
) -> list[str]:
    signal, valid = signal_CT[None], None if valid_CT is None else valid_CT[None]
    mean, std = lead_statistics(signal, valid)
    scale = np.full((1, 12), scale_uv, np.float32)
    return signal_flags(signal, valid, mean, std, scale, [0.0])[0]


def _heart(peak_uv: float = 1200.0) -> NDArray[np.int16]:
    """(12, 5000) units: a beat a second in all leads, each some percent higher than the last."""
    time = np.arange(5000) % 500
    beat = np.exp(-(((time - 250) / 8) ** 2)) * (1 + np.arange(5000) // 500 / 100)
    return np.tile(np.rint(beat * peak_uv / UV_PER_UNIT), (12, 1)).astype(np.int16)


def test_a_heart_has_no_flag() -> None:
    assert _flags(_heart()) == []


@pytest.mark.parametrize(("peak_uv", "flagged"), [(350, True), (450, False), (3500, False)])
@pytest.mark.parametrize("factor", [1, 5, 0.2, 1000, 0.001])
def test_amplitude(peak_uv: float, flagged: bool, factor: float) -> None:
    flags = _flags(_heart(peak_uv), UV_PER_UNIT * factor)
    if factor == 1:
        assert flags == (["amplitude"] if flagged else [])
    elif (peak_uv < 500) == (factor < 1) or factor in (1000, 0.001):
        assert "amplitude" in flags


@pytest.mark.parametrize(("leads", "flagged"), [(5, False), (6, True)])
def test_loose_electrodes_are_no_wrong_gain(leads: int, flagged: bool) -> None:
    signal = _heart()
    signal[:leads] *= 20
    assert ("amplitude" in _flags(signal)) is flagged


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("lead", [0, 11])
def test_a_clipped_lead_is_saturated(sign: int, lead: int) -> None:
    signal = _heart()
    signal[lead] = sign * np.clip(10 * signal[lead], -400, 400)
    assert _flags(signal) == ["saturated"]


def test_a_lead_at_the_end_of_16_bits_for_hundreds_of_samples() -> None:
    signal = _heart()
    signal[7, 1000:1300] = 32767
    assert _flags(signal) == ["saturated"]


@pytest.mark.parametrize(
    ("run", "times", "flagged"), [(4, 5, True), (7, 3, True), (4, 4, False), (3, 9, False)]
)
@pytest.mark.parametrize("phase", range(4))
def test_how_much_is_held(run: int, times: int, flagged: bool, phase: int) -> None:
    signal = _heart()
    for start in range(times):
        at = 310 + 40 * start + phase  # all on one place among every fourth timestep
        signal[4, at : at + run] = 500  # 2.5 mV
    assert _flags(signal) == (["saturated"] if flagged else [])


def test_what_is_held_near_the_mean_or_at_an_end_is_no_saturation() -> None:
    near, end = _heart(), _heart()
    near[3] = np.minimum(near[3], 150)  # 0.75 mV
    end[3, :60] = 700
    end[3, -60:] = -700
    assert _flags(near) == _flags(end) == []


def test_padding_and_interpolated_stretches_are_not_looked_at() -> None:
    signal, valid = _heart() + np.int16(1000), np.ones((12, 5000), bool)
    signal[:, 3000:], valid[:, 3000:] = 0, False  # 5 mV below
    assert _flags(signal) == ["saturated", "amplitude"]
    assert _flags(signal, valid_CT=valid) == []


def _flags_of_lead(lead_T: NDArray[np.int16], mean: float = 0) -> list[str]:
    """One microvolt a unit; the other leads are like this one."""
    signal = np.tile(lead_T, (1, 12, 1))
    mean_NC, ones = np.full((1, 12), mean, np.float32), np.ones((1, 12), np.float32)
    return signal_flags(signal, None, mean_NC, ones, ones, [0.0])[0]


@pytest.mark.parametrize(
    ("peak_to_peak", "flagged"), [(399, True), (400, False), (4000, False), (4001, True)]
)
def test_the_least_and_the_largest_amplitude(peak_to_peak: int, flagged: bool) -> None:
    lead = np.zeros(5000, np.int16)
    lead[1000:1004] = peak_to_peak - 150
    lead[2000:2004] = -150
    assert _flags_of_lead(lead) == (["amplitude"] if flagged else [])


@pytest.mark.parametrize(("mean", "flagged"), [(500, True), (-500, False), (501, False)])
def test_a_millivolt_from_the_mean_is_far(mean: float, flagged: bool) -> None:
    lead = np.zeros(5000, np.int16)
    lead[1000:1030] = 1500 if mean > 0 else 499
    assert ("saturated" in _flags_of_lead(lead, mean)) is flagged


@pytest.mark.parametrize(
    ("begin", "end", "flagged"),
    [(0, 119, False), (0, 120, True), (4881, 5000, False), (4880, 5000, True)],
)
def test_what_is_held_at_an_end_counts_from_its_tenth_of_a_second_on(
    begin: int, end: int, flagged: bool
) -> None:
    """100 timesteps of 5,000 at each end are left out, 20 must be held."""
    lead = (np.arange(5000) % 7).astype(np.int16)
    lead[begin:end] = 2000
    assert ("saturated" in _flags_of_lead(lead)) is flagged


def test_how_far_limb_leads_are_at_odds() -> None:
    """III - (II - I) in microvolt, of leads with gains and offsets of their own."""
    rng = np.random.default_rng(0)
    signal = rng.integers(-500, 500, (4, 12, 50)).astype(np.int16)
    scale = rng.uniform(0.5, 5, (4, 12)).astype(np.float32)
    offset = rng.integers(-300, 300, (4, 12)).astype(np.float32)
    one, two, three = ((signal - offset[:, :, None]) * scale[:, :, None]).swapaxes(0, 1)[:3]
    expected = np.abs(three - (two - one)).max(axis=1)
    np.testing.assert_allclose(einthoven_uv(signal, scale, offset), expected, rtol=1e-5)
    np.testing.assert_allclose(einthoven_uv(-signal, scale, -offset), expected, rtol=1e-5)


def test_limb_leads_may_be_100_microvolt_at_odds() -> None:
    assert [breaks_einthoven(each) for each in (99.9, 100, 100.1)] == [False, False, True]


@pytest.mark.parametrize(
    ("folder", "records", "expected"),
    [
        ("ludb", 200, {"amplitude": 1}),
        ("ptbxl/hr_gt", 31, {}),
        ("ptbxl500/records500", 500, {"amplitude": 1}),
        # Wrong gains of old headers: three of 4,880 a mV, two of 200, where 1,000 is right.
        ("cinc2020", 42, {"amplitude": 5}),
    ],
)
def test_share_of_real_recordings(
    shared_data: Path, folder: str, records: int, expected: dict[str, int]
) -> None:
    found: Counter[str] = Counter()
    read = 0
    for item in discover([shared_data / folder]):
        if item.record_id.startswith("old_headers/"):
            continue
        try:
            samples = to_samples(read_record(item))
        except FormatError:
            continue
        for window in cut(samples, window="all", short="quarantine"):
            if isinstance(window, Window):
                read += 1
                found.update(set(_flags(window.signal, samples.scale_uv)) - {"flat_lead"})
    assert (read, dict(found)) == (records, expected)
