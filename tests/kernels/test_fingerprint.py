"""Fingerprints: known beats and correlations, and the native code beside the one in NumPy."""

import numpy as np
import pytest
from ecgfast_kernels.codec import CodecError
from ecgfast_kernels.codec.native import load
from ecgfast_kernels.codec.signals import NO_BEAT, _fingerprints_in_numpy, fingerprints, live_span
from recordings import heart, irregular, recording

BEATS = irregular(10, seed=1)


def of_heart(seed: int, seconds: float = 10) -> np.ndarray:
    return recording(heart(seed), BEATS, seconds=seconds, seed=seed)


def test_beats_are_where_they_were_put() -> None:
    beats = fingerprints(of_heart(0)[None], least_timesteps=2400).beats[0]
    found = beats[beats != NO_BEAT]
    inside = BEATS[(BEATS > 0.2) & (BEATS < 9.8)]
    # The QRS complex is two waves, 0 and 30 ms behind the beat; its middle is the same in all.
    apart = (found[:, None] - 1000 * inside[None]).ravel()
    apart = apart[np.abs(apart) < 60]
    assert len(apart) == len(inside)
    assert np.ptp(apart) <= 8


def test_correlations_of_known_leads() -> None:
    signal = of_heart(0)
    signal[1] = signal[0] + 300  # II as I, another baseline
    signal[6] = -2 * signal[0]
    signal[7] = 5
    found = fingerprints(signal[None], least_timesteps=2400).correlation[0]
    assert found[0] == pytest.approx(1, abs=1e-5)  # I and II
    assert found[1] == pytest.approx(-1, abs=1e-5)  # I and V1
    assert found[2] == 0  # I and V2, which is flat
    slopes = signal[[0, 8], 1:4996].reshape(2, 999, 5).sum(axis=2, dtype=np.float64)
    slopes = slopes[:, 2:] - slopes[:, :-2]
    cosine = (slopes[0] @ slopes[1]) / np.sqrt((slopes**2).sum(axis=1).prod())
    assert found[3] == pytest.approx(cosine, abs=1e-5)  # I and V3


def test_padding_changes_nothing() -> None:
    whole = of_heart(3, seconds=8)
    padded = np.full((12, 5000), -7, np.int16)
    padded[:, :4000] = whole
    a = fingerprints(whole[None, :, :3999], least_timesteps=2400)
    b = fingerprints(padded[None], least_timesteps=2400)
    assert live_span(padded) == (1, 4000)
    np.testing.assert_allclose(a.correlation, b.correlation, atol=1e-3)
    np.testing.assert_array_equal(a.beats, b.beats)


@pytest.mark.parametrize("length", [0, 1, 2000])
def test_too_little_signal(length: int) -> None:
    signal = np.zeros((1, 12, 5000), np.int16)
    signal[:, :, :length] = of_heart(4)[None, :, :length]
    found = fingerprints(signal, least_timesteps=2400)
    assert not found.correlation.any()
    assert (found.beats == NO_BEAT).all()


def test_the_live_span_by_hand() -> None:
    signal = np.zeros((12, 9), np.int16)
    assert live_span(signal) == (0, 0)
    signal[5, 3] = 1
    assert live_span(signal) == (3, 4)
    signal[0, 6:] = 1
    assert live_span(signal) == (3, 6)


def both(signal: np.ndarray, least_timesteps: int) -> tuple[np.ndarray, np.ndarray]:
    """Correlation and beats of one record, the same from both codes."""
    one = fingerprints(signal[None], least_timesteps=least_timesteps)
    other = _fingerprints_in_numpy(signal[None], least_timesteps)
    np.testing.assert_allclose(one.correlation, other.correlation, atol=1e-5)
    np.testing.assert_array_equal(one.beats, other.beats)
    return one.correlation[0], one.beats[0]


def test_pulses_far_weaker_than_the_median_are_no_beats() -> None:
    """The third has 16 % of the others' power, the fifth 36 %; the limit is 30 %."""
    signal = np.zeros((12, 5000), np.int16)
    signal[:, [0, -1]] = 1
    for number, size in enumerate((1000, 1000, 400, 1000, 600, 1000, 1000)):
        signal[:, 500 + 600 * number :][:, :25] = size
    beats = both(signal, 2400)[1]
    found = beats[beats != NO_BEAT].astype(int)
    assert np.diff(found).tolist() == [1200, 2400, 1200, 1200, 1200]  # ms
    assert abs(found[0] - 1025) < 60  # the middle of the first


@pytest.mark.parametrize(
    ("length", "least", "enough"),
    [
        (2400, 2400, True),
        (2399, 2400, False),
        (15, 0, True),
        (14, 0, False),
    ],
)
def test_the_least_length(length: int, least: int, enough: bool) -> None:
    signal = np.zeros((12, 3000), np.int16)
    signal[:, 100 : 100 + length] = np.random.default_rng(0).integers(1, 900, (12, length))
    assert live_span(signal) == (100, 100 + length)
    assert both(signal, least)[0].any() == enough


@pytest.mark.skipif(load() is None, reason="the native library was not built")
def test_native_as_numpy() -> None:
    signal = np.stack([of_heart(seed) for seed in range(6)])
    signal[1, :, 4000:] = 9
    signal[2, 3] = 0
    signal[3] = 0
    signal[4] = np.random.default_rng(0).integers(-32768, 32767, (12, 5000))
    native, numpy = fingerprints(signal, least_timesteps=2400), _fingerprints_in_numpy(signal, 2400)
    np.testing.assert_allclose(native.correlation, numpy.correlation, atol=1e-5)  # float32 sums
    np.testing.assert_array_equal(native.beats, numpy.beats)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((1, 8, 5000), np.int16),
        ((1, 12, 5000), np.int32),
        ((12,), np.int16),
        ((1, 12, 500, 2), np.int16),
    ],
)
def test_other_arrays_are_refused(shape: tuple[int, ...], kind: type) -> None:
    with pytest.raises(CodecError, match=r"signal must be int16 \(N, 12, T\), got"):
        fingerprints(np.zeros(shape, kind), least_timesteps=2400)
