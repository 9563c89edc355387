"""Likeness of two signals, by NumPy at a lag that is known."""

import numpy as np
import pytest
from hearts import heart, irregular, recording
from numpy.typing import NDArray

from ecgfast.convert.same_signal import likeness, smooth

LEADS = [0, 1, 6, 7, 8, 9, 10, 11]  # the others follow from I and II
TIMES = irregular(30, seed=5)
LONG = recording(heart(0), TIMES, seconds=30, seed=6)
BEATS = np.rint(500 * TIMES).astype(int)  # timesteps
LAG = 1001


def box_mean(signal: NDArray[np.int16]) -> NDArray[np.float64]:
    return np.stack([np.convolve(lead, np.ones(5) / 5, "valid") for lead in signal[LEADS]])


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]))


def rest(plain: NDArray[np.float64], beats: list[int]) -> NDArray[np.float64]:
    """What is left of each beat without the mean beat and its first two derivatives: (8, -1)."""
    parts = []
    for lead in plain:
        each = np.stack([lead[beat - 100 : beat + 200] for beat in beats])
        mean = each.mean(axis=0) - each.mean()
        slope = np.gradient(mean)
        basis = np.stack([mean, slope, np.gradient(slope)], axis=1)
        left = (each - each.mean(axis=0)).T
        parts.append((left - basis @ np.linalg.lstsq(basis, left)[0]).T.ravel())
    return np.stack(parts)


def test_a_record_is_made_ready_from_its_first_timestep_of_signal_on() -> None:
    signal = LONG[:, :5000].copy()
    signal[:, :701] = signal[:, 701:702] - 1  # a constant begin is padding, as is a constant end
    beats = [1001, 4003, 9999]  # milliseconds from the begin of the record
    made = smooth(signal, np.array(beats, np.uint16))
    assert made is not None
    plain = box_mean(signal[:, 701:4999])
    np.testing.assert_allclose(made.plain, plain, atol=1e-3)  # of some 1,000 digits, in fp32
    np.testing.assert_allclose(made.slope, plain[:, 10:] - plain[:, :-10], atol=2e-3)
    assert made.beats.tolist() == [500 - 701, 2001 - 701, 4999 - 701]


@pytest.mark.parametrize(("length", "enough"), [(2415, False), (2416, True)])
def test_half_of_a_window_must_be_signal(length: int, enough: bool) -> None:
    """2,400 timesteps of slopes over 10, of means over 5, behind a constant timestep."""
    signal = np.zeros((12, 5000), np.int16)
    signal[:, :length] = LONG[:, :length]
    signal[:, length - 1] = 7
    assert (smooth(signal, np.zeros(0, np.uint16)) is not None) is enough


def test_likeness_of_a_noisy_copy_that_begins_later() -> None:
    noise = np.random.default_rng(0).normal(0, 3, (12, 5000))
    pieces = [LONG[:, :5000], np.rint(LONG[:, LAG : LAG + 5000] + noise).astype(np.int16)]
    beats = [np.array([b - begin for b in BEATS if 0 < b - begin < 5000]) for begin in (0, LAG)]
    made = [smooth(p, (2 * b).astype(np.uint16)) for p, b in zip(pieces, beats, strict=True)]
    assert made[0] is not None
    assert made[1] is not None
    found = likeness(made[0], made[1])

    first, second = (box_mean(piece[:, 1:4999]) for piece in pieces)
    assert found.plain == pytest.approx(
        correlation(first[:, LAG::5], second[:, : first.shape[1] - LAG : 5]), abs=2e-4
    )  # a lag of 1 more costs 1e-4
    slopes = [each[:, 10:] - each[:, :-10] for each in (first, second)]
    at = correlation(slopes[0][:, LAG::5], slopes[1][:, : slopes[0].shape[1] - LAG : 5])
    assert at - 1e-3 < found.slope < at + 2e-3  # the top of a parabola through three lags
    inside = [b - 1 for b in beats[0].tolist() if b - 1 - LAG >= 100 and b + 199 <= first.shape[1]]
    assert len(inside) >= 3
    assert found.rest == pytest.approx(
        correlation(rest(first, inside), rest(second, [b - LAG for b in inside])), abs=1e-4
    )
    assert found.same
    back = likeness(made[1], made[0])
    assert tuple(back) == pytest.approx(tuple(found), abs=5e-3)
