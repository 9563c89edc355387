"""Likeness of two signals, by NumPy at a lag that is known."""

import numpy as np
import pytest
from numpy.typing import NDArray
from recordings import heart, irregular, recording
from scipy.signal import resample

from ecgfast.convert.same_signal import (
    Likeness,
    Smooth,
    _compare,
    _lags,
    _refined,
    _rest,
    _unit,
    likeness,
    smooth,
)

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
    np.testing.assert_allclose(made.plain, plain, atol=1e-3)  # of some 1,000 ADC units, in fp32
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


@pytest.mark.parametrize(
    ("found", "same"),
    [
        ((0.95, 0.95, 0.5), True),
        ((0.949, 1, 1), False),
        ((1, 0.949, 1), False),
        ((1, 1, 0.499), False),
    ],
)
def test_how_like_two_records_of_one_ecg_are(found: tuple[float, ...], same: bool) -> None:
    assert Likeness(*found).same is same


def ready(signal: NDArray[np.int16], beats: list[int] | None = None) -> Smooth:
    made = smooth(signal, 2 * np.array(beats or [], np.uint16))
    assert made is not None
    return made


def lags_by_sums(first: Smooth, second: Smooth) -> list[int]:
    """Up to five lags of at least half a correlation, over 10 bins apart, the best ones first."""
    rows = []
    for made in (first, second):
        plain = made.plain[:, : made.slope.shape[1] : 5]
        row = np.concatenate([made.slope[:, ::5], plain]).astype(float)
        row -= row.mean(axis=1, keepdims=True)
        rows.append(row / np.linalg.norm(row, axis=1, keepdims=True))
    a, b = rows
    values = {}
    for lag in range(1 - b.shape[1], a.shape[1]):
        low, high = max(0, lag), min(a.shape[1], lag + b.shape[1])
        if high - low >= 480:  # bins of 2,400 timesteps
            share = (high - low) / np.sqrt(a.shape[1] * b.shape[1])
            values[lag] = (a[:, low:high] * b[:, low - lag : high - lag]).sum() / 16 / share
    found: list[int] = []
    while len(found) < 5 and values and max(values.values()) >= 0.5:
        best = max(values, key=lambda lag: values[lag])
        found.append(5 * best)
        values = {lag: value for lag, value in values.items() if abs(lag - best) > 10}
    return found


def test_lags_of_a_regular_rhythm() -> None:
    """Records of two lengths, either one first: FFTs find what sums find."""
    paced = recording(heart(9), np.arange(0.4, 20, 0.8), seconds=20, seed=1)
    whole, part = ready(paced[:, :5000]), ready(paced[:, 1234:5434])
    for first, second in ((whole, part), (part, whole)):
        expected = lags_by_sums(first, second)
        assert len(expected) == 5
        assert list(_lags(first, second)) == expected


def test_lags_of_irregular_rhythms() -> None:
    whole = ready(LONG[:, :5000])
    for begin in (0, 1233, 2580, 2620):  # the last one has less in common than must overlap
        later = ready(LONG[:, begin : begin + 5000])
        assert list(_lags(whole, later)) == lags_by_sums(whole, later)
    other = ready(recording(heart(3), irregular(10, seed=3), seconds=10, seed=3))
    assert list(_lags(whole, other)) == lags_by_sums(whole, other) == []
    assert likeness(whole, other) == (0, 0, 0)


def test_lags_that_are_just_likely_enough() -> None:
    """Of ever noisier copies, whose best lag falls below half a correlation at last."""
    whole, noise = ready(LONG[:, :5000]), np.random.default_rng(0).normal(0, 1, (12, 4200))
    found = []
    for size in range(0, 240, 24):
        part = ready(np.rint(LONG[:, 500:4700] + size * noise).astype(np.int16))
        found.append(list(_lags(whole, part)))
        assert found[-1] == lags_by_sums(whole, part)
    assert found[0] == found[2] == [500]
    assert found[-1] == []


def test_the_rest_is_looked_at_where_slopes_and_signals_agree() -> None:
    beats = [int(beat) for beat in BEATS if beat < 5000]
    first = ready(LONG[:, :5000], beats)
    time, size = np.arange(5000), LONG.std(axis=1, keepdims=True)
    wander, hum = 0.6 * size * np.sin(time / 400), 0.25 * size * np.sin(time / 3.2)
    for added, slope, plain in ((0 * hum, True, True), (wander, True, False), (hum, False, True)):
        second = ready(np.rint(LONG[:, :5000] + added).astype(np.int16), beats)
        found = _compare(first, second, 0)
        assert (found.slope >= 0.95, found.plain >= 0.95) == (slope, plain)
        assert (found.rest > 0) is (slope and plain)


@pytest.mark.parametrize("lag", [998, 999, 1000, 1001, 1002])
def test_a_lag_is_refined_to_a_timestep(lag: int) -> None:
    first, second = ready(LONG[:, :5000]), ready(LONG[:, lag : lag + 5000])
    assert _refined(first, second, 1000) == lag


def test_a_lag_is_refined_by_one_bin_at_most() -> None:
    first, second = ready(LONG[:, :5000]), ready(LONG[:, 1000:6000])
    num_valleys = 0
    for coarse in range(960, 1040):
        found = _refined(first, second, coarse)
        assert abs(found - coarse) <= 5
        before, at, after = (
            correlation(first.slope[:, lag::5], second.slope[:, : first.slope.shape[1] - lag : 5])
            for lag in (coarse - 5, coarse, coarse + 5)
        )
        if 2 * at < before + after:  # a parabola without a top
            assert found == coarse
            num_valleys += 1
    assert num_valleys > 10


@pytest.mark.parametrize("lag", [999, 1000, 1001])
def test_a_part_of_a_timestep_costs_no_likeness_of_slopes(lag: int) -> None:
    """The top of a parabola through three lags, in leads where the middle one is the highest."""
    between = resample(LONG.astype(float), 4 * LONG.shape[1], axis=1)[:, 1::4]
    first = ready(LONG[:, :5000])
    second = ready(np.rint(between[:, 1000:6000]).astype(np.int16))
    expected = []
    for a, b in zip(first.slope, second.slope, strict=True):
        three = [
            np.corrcoef(a[lag + near :: 5], b[: a.size - lag - near : 5])[0, 1]
            for near in (-1, 0, 1)
        ]
        two, one, zero = np.polyfit([-1, 0, 1], three, 2)
        expected.append(zero - one**2 / (4 * two) if max(three) == three[1] else three[1])
    found = _compare(first, second, lag).slope
    assert found == pytest.approx(np.mean(expected), abs=1e-5)
    assert (found > 0.999) is (lag == 1000)


def test_a_lead_that_never_changes_is_like_none() -> None:
    signal = LONG[:, :5000].copy()
    signal[7] = 12
    record = ready(signal)
    assert _compare(record, record, 0) == pytest.approx((7 / 8, 7 / 8, 0), abs=1e-5)


def white(num_timesteps: int = 1000) -> NDArray[np.float32]:
    """(8, T): nothing is like it but itself at lag 0."""
    rng = np.random.default_rng(0)
    noise: NDArray[np.float32] = rng.normal(size=(8, num_timesteps)).astype(np.float32)
    return noise


def with_beats(plain: NDArray[np.float32], beats: list[int]) -> Smooth:
    nothing = np.zeros((16, 0), np.complex64)
    return Smooth(plain=plain, slope=plain, spectrum=nothing, beats=np.array(beats, np.int64))


@pytest.mark.parametrize(
    ("beats", "rest"),
    [
        ([100, 400, 800], 1),  # from 100 timesteps before to 200 behind, three at least
        ([99, 400, 800], 0),
        ([100, 400, 801], 0),
        ([100, 800], 0),
        ([0, 100, 400, 800, 900], 1),
    ],
)
def test_beats_that_both_records_hold_whole(beats: list[int], rest: float) -> None:
    long, plain = white(1300), white()
    long[:, :1000] = plain
    for first, second in ((plain, long), (long, plain)):
        records = with_beats(first, beats), with_beats(second, [])
        assert _rest(*records, 0) == pytest.approx(rest, abs=1e-5)
    shifted = with_beats(long, [beat + 300 for beat in beats]), with_beats(long[:, 300:], [])
    assert _rest(*shifted, 300) == pytest.approx(rest, abs=1e-5)


@pytest.mark.parametrize(("apart", "moved"), [(0, False), (5, True), (-5, True), (6, False)])
def test_a_beat_is_taken_where_each_record_has_it(apart: int, moved: bool) -> None:
    """Within 5 timesteps; here the second record has no reason to have it elsewhere."""
    beats = [150, 450, 750]
    others = [beat + apart for beat in beats]
    found = _rest(with_beats(white(), beats), with_beats(white(), [0, *others, 990]), 0)
    assert (found < 0.5) is moved
    assert found == pytest.approx(1, abs=1e-5) or moved


def test_rows_of_one_length() -> None:
    found = _unit(np.array([[1, 3, 1, 3], [5, 5, 5, 5], [0, 0.25, 0, 0.25]], np.float32))
    assert found.tolist() == [[-0.5, 0.5, -0.5, 0.5], [0, 0, 0, 0], [-0.5, 0.5, -0.5, 0.5]]
