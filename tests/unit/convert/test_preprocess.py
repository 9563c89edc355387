"""From any record to windows of 12 x 5000 int16 at 500 Hz."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import scipy.signal
from recordings import ecg_like

from ecgfast.convert.preprocess import Window, cut, to_samples
from ecgfast.errors import FormatError
from ecgfast.records import INVALID, EcgRecord
from ecgfast.vocabulary import Short


def record(signal: np.ndarray, rate: float = 500, offset: float = 0) -> EcgRecord:
    return EcgRecord(
        record_id="r",
        signal=signal,
        scale_uv=np.full(12, 5, np.float32),
        offset_adc=np.full(12, offset, np.float32),
        sampling_rate_hz=rate,
        flags=("seen",),
    )


def first(ecg: EcgRecord, **options: str) -> Window:
    segment = cut(to_samples(ecg), **{"window": "first", "short": "quarantine", **options})[0]  # type: ignore[arg-type]  # any of its options
    assert isinstance(segment, Window), segment
    return segment


def refused(ecg: EcgRecord) -> str:
    (reason,) = cut(to_samples(ecg), window="first", short="quarantine")
    assert isinstance(reason, FormatError)
    return str(reason)


def sine(rate: float, seconds: float, offset: float = 0) -> np.ndarray:
    time = np.arange(round(rate * seconds)) / rate
    return np.tile(1000 * np.sin(2 * np.pi * 7 * time) + offset, (12, 1))


def test_exact_copy() -> None:
    signal = ecg_like(1, seed=0)[0]
    samples = to_samples(record(signal))
    assert (samples.valid, samples.error_uv, samples.flags) == (None, None, ("seen",))
    segment = first(record(signal))
    np.testing.assert_array_equal(segment.signal, signal)
    assert (segment.valid, segment.flags, segment.invalid_share) == (None, ("seen",), 0)


@pytest.mark.parametrize("rate", [500, 499.998])
def test_longer_record_is_cut(rate: float) -> None:
    signal = ecg_like(1, seed=0, num_timesteps=12_345)[0]
    segment = first(record(signal, rate))
    np.testing.assert_array_equal(segment.signal, signal[:, :5000])
    assert segment.flags == ("seen", "cut")


def test_all_windows() -> None:
    signal = ecg_like(1, seed=0, num_timesteps=12_345)[0]
    segments = cut(to_samples(record(signal)), window="all", short="quarantine")
    assert [segment.start for segment in segments] == [0, 5000]  # type: ignore[union-attr]  # no refusal here
    np.testing.assert_array_equal(segments[1].signal, signal[:, 5000:10_000])  # type: ignore[union-attr]  # no refusal here


def test_short_record() -> None:
    signal = ecg_like(1, seed=0)[0, :, :4999]
    assert "too short: 4999 timesteps" in refused(record(signal))
    segment = first(record(signal, offset=100.4), short="pad")
    np.testing.assert_array_equal(segment.signal[:, :4999], signal)
    assert (segment.signal[:, 4999] == 100).all()  # 0 microvolt
    assert segment.valid is not None
    assert segment.valid[:, :4999].all()
    assert not segment.valid[:, 4999].any()
    assert "padded" in segment.flags


@pytest.mark.parametrize("length", [1, 2499])
def test_half_a_window_is_the_least_that_is_padded(length: int) -> None:
    signal = ecg_like(1, seed=0)[0]
    samples = to_samples(record(signal[:, :length]))
    reason = f"too short: {length} timesteps at 500 Hz, 5000 needed, 2500 with --short pad"
    for short in get_args(Short):
        (error,) = cut(samples, window="first", short=short)
        assert str(error) == reason
    assert first(record(signal[:, :2500]), short="pad").signal.shape == (12, 5000)


@pytest.mark.parametrize("rate", [100, 250, 257, 360, 1000])
def test_resampling_keeps_the_curve(rate: float) -> None:
    signal = np.rint(sine(rate, 10.5, offset=300)).astype(np.int16)
    samples = to_samples(record(signal, rate))
    # The filter sees nothing beyond the ends, so the first and last half second may differ.
    inner = slice(250, 5000)
    np.testing.assert_allclose(samples.signal[:, inner], sine(500, 10.5, 300)[:, inner], atol=5)
    assert "resampled" in samples.flags
    assert samples.error_uv is not None
    assert 0 < samples.error_uv <= 0.5 * 5 + 1e-3
    np.testing.assert_array_equal(samples.scale_uv, np.full(12, 5, np.float32))


@pytest.mark.parametrize(("rate", "up", "down"), [(250, 2, 1), (1000, 1, 2)])
def test_the_error_of_rounding_is_in_microvolt(rate: float, up: int, down: int) -> None:
    signal = ecg_like(1, seed=0, num_timesteps=10_000)[0]
    samples = to_samples(record(signal, rate))
    exact = scipy.signal.resample_poly(signal.astype(float), up, down, axis=1, padtype="line")
    assert samples.error_uv == pytest.approx(5 * np.abs(exact - samples.signal).max())


@pytest.mark.parametrize(
    ("rate", "hole", "at_500_hz"),
    [
        (1000, slice(300, 320), slice(150, 160)),
        (100, slice(100, 104), slice(498, 518)),
        (100, slice(998, 1000), slice(4988, 5000)),
    ],
)
def test_a_hole_is_where_it_was_after_resampling(
    rate: float, hole: slice, at_500_hz: slice
) -> None:
    """Each timestep at 500 Hz is as valid as the nearest one of the source."""
    signal = np.rint(sine(rate, 10)).astype(np.int16)
    signal[7, hole] = INVALID
    segment = first(record(signal, rate))
    expected = np.ones((12, 5000), bool)
    expected[7, at_500_hz] = False
    np.testing.assert_array_equal(segment.valid, expected)


def test_resampling_does_not_ring_at_an_offset() -> None:
    samples = to_samples(record(np.full((12, 10_000), 2000, np.int16), 1000))
    np.testing.assert_array_equal(samples.signal, np.full((12, 5000), 2000))


def test_resampled_overshoot_is_rescaled_not_clipped() -> None:
    square = np.where(np.arange(10_000) // 100 % 2, 32_767, -32_767).astype(np.int16)
    ecg = record(np.tile(square, (12, 1)), 250)
    samples = to_samples(ecg)
    assert np.abs(samples.signal.astype(int)).max() == 32_767
    assert samples.scale_uv[0] > 5
    assert {"resampled", "quantised"} <= set(samples.flags)


def test_few_invalid_samples_are_interpolated_and_left_out() -> None:
    signal = ecg_like(1, seed=0)[0]
    holed = signal.copy()
    holed[4, 100:150] = INVALID
    holed[0, :3] = INVALID
    segment = first(record(holed))
    hole = holed == INVALID
    np.testing.assert_array_equal(segment.signal[~hole], signal[~hole])
    np.testing.assert_array_equal(segment.valid, ~hole)
    line = np.linspace(signal[4, 99], signal[4, 150], 52)[1:-1]
    np.testing.assert_allclose(segment.signal[4, 100:150], line, atol=0.5)
    assert (segment.signal[0, :3] == signal[0, 3]).all()
    assert segment.invalid_share == pytest.approx(53 / 60_000)
    assert "interpolated" in segment.flags


def test_many_invalid_samples_are_refused() -> None:
    signal = ecg_like(1, seed=0)[0]
    signal[4, :600] = INVALID
    assert first(record(signal)).invalid_share == pytest.approx(0.01)  # the most that is allowed
    signal[4, :601] = INVALID
    assert "1.0 % of the window" in refused(record(signal))
    signal[4] = INVALID
    assert "8.3 %" in refused(record(signal))


def test_invalid_samples_beyond_the_window_do_not_matter() -> None:
    signal = ecg_like(1, seed=0, num_timesteps=9000)[0]
    signal[:, 6000:] = INVALID
    segment = first(record(signal))
    assert (segment.valid, segment.flags) == (None, ("seen", "cut"))
    np.testing.assert_array_equal(segment.signal, signal[:, :5000])


def test_float_input_is_quantised_as_fine_as_fits() -> None:
    rng = np.random.default_rng(0)
    microvolt = rng.normal(0, 400, (12, 5000)).astype(np.float32)
    microvolt[3] = 0
    ecg = replace(record(microvolt), scale_uv=np.ones(12, np.float32))
    samples = to_samples(ecg)
    back = samples.signal * samples.scale_uv[:, None].astype(np.float64)
    assert (
        np.abs(samples.signal.astype(int)).max(axis=1).tolist() == [32_767] * 3 + [0] + [32_767] * 8
    )
    assert samples.error_uv == pytest.approx(np.abs(back - microvolt).max())
    assert samples.error_uv <= samples.scale_uv.max() * 0.501
    assert "quantised" in samples.flags


def test_nan_is_invalid() -> None:
    microvolt = np.ones((12, 5000), np.float32)
    microvolt[2, 10] = np.nan
    segment = first(record(microvolt))
    assert segment.valid is not None
    assert not segment.valid[2, 10]
    assert segment.signal[2, 10] == segment.signal[2, 9]


@pytest.mark.parametrize("rate", [0, -500, 1e9, float("nan")])
def test_impossible_rates(rate: float) -> None:
    with pytest.raises(FormatError, match="sampling rate"):
        to_samples(record(ecg_like(1, seed=0)[0], rate))


def test_empty_record() -> None:
    with pytest.raises(FormatError, match="no timesteps"):
        to_samples(record(np.zeros((12, 0), np.int16)))


def test_two_windows_of_a_record_that_holds_just_two() -> None:
    signal = ecg_like(1, seed=0, num_timesteps=10_000)[0]
    segments = cut(to_samples(record(signal)), window="all", short="quarantine")
    assert [segment.start for segment in segments] == [0, 5000]  # type: ignore[union-attr]  # no refusal here
    assert segments[1].flags == ("seen", "window")  # type: ignore[union-attr]  # no refusal here


@pytest.mark.parametrize(("rate", "flagged"), [(49.9, True), (50, False), (100, False)])
def test_a_rate_that_no_ecg_has(rate: float, flagged: bool) -> None:
    samples = to_samples(record(np.ones((12, 1000), np.int16), rate))
    assert ("rate_implausible" in samples.flags) is flagged


@pytest.mark.parametrize("rate", [0.99, 100_000.5])
def test_rates_beyond_the_limits(rate: float) -> None:
    with pytest.raises(FormatError, match="must be in"):
        to_samples(record(np.zeros((12, 400), np.int16), rate))
    within = min(max(rate, 1), 100_000)
    length = 400 * 500 // int(within)
    assert to_samples(record(np.zeros((12, 400), np.int16), within)).signal.shape == (12, length)


@pytest.mark.parametrize(("rate", "length"), [(1, 23_000), (500, 12_000_000), (1000, 12_000_000)])
def test_a_record_that_would_take_too_much_memory_is_refused(rate: float, length: int) -> None:
    """1 GiB of 8-byte numbers are 11,184,810 timesteps, as the file has them or at 500 Hz."""
    with pytest.raises(FormatError, match="allowed 1 GiB"):
        to_samples(record(np.broadcast_to(np.int16(0), (12, length)), rate))


@pytest.mark.parametrize(("offset", "zero"), [(-40_000, -32_767), (40_000, 32_767)])
def test_padding_where_0_microvolt_is_no_digit(offset: float, zero: int) -> None:
    segment = first(record(ecg_like(1, seed=0)[0, :, :3000], offset=offset), short="pad")
    assert (segment.signal[:, 3000:] == zero).all()


@pytest.mark.parametrize(("num_invalid", "taken"), [(30, True), (31, False)])
def test_padding_is_no_valid_signal(num_invalid: int, taken: bool) -> None:
    """One percent of 3,000 timesteps of 12 leads, whatever is padded."""
    signal = ecg_like(1, seed=0)[0, :, :3000]
    signal[:, 100 : 100 + num_invalid] = INVALID
    (found,) = cut(to_samples(record(signal)), window="first", short="pad")
    assert isinstance(found, Window) is taken
    if isinstance(found, Window):
        assert found.invalid_share == pytest.approx(0.01)


def test_a_lead_without_a_valid_timestep_is_0() -> None:
    signal = ecg_like(1, seed=0)[0]
    signal[4] = INVALID
    samples = to_samples(record(signal))
    assert (samples.signal[4] == 0).all()
    np.testing.assert_array_equal(samples.signal[5:], signal[5:])


def test_what_is_rescaled_has_its_0_at_0_microvolt() -> None:
    square = np.where(np.arange(5000) // 100 % 2, 32_767, -32_767).astype(np.int16)
    ecg = record(np.tile(square, (12, 1)), 250, offset=1000)
    samples = to_samples(ecg)
    exact = scipy.signal.resample_poly(square.astype(float), 2, 1, padtype="line")
    microvolt = (exact - 1000) * 5
    assert (samples.offset_adc == 0).all()
    np.testing.assert_allclose(
        samples.signal[3] * samples.scale_uv[3].astype(float), microvolt, atol=samples.scale_uv[3]
    )
    assert np.abs(samples.signal.astype(int)).max() == 32_767


def test_no_scale_is_finer_than_a_picovolt() -> None:
    microvolt = np.zeros((12, 5000), np.float32)
    microvolt[1, 7], microvolt[2, 7] = 1e-3, 0.1
    samples = to_samples(record(microvolt))
    assert samples.scale_uv[:4].tolist() == pytest.approx([1, 1e-6, 0.1 / 32_767, 1])
    assert samples.signal[:4, 7].tolist() == [0, 1000, 32_767, 0]


@pytest.mark.parametrize(("microvolt", "taken"), [(3.2e10, True), (-3.2e10, True), (3.3e10, False)])
def test_the_largest_voltage(microvolt: float, taken: bool) -> None:
    """A volt for each of 32,767 samples."""
    signal = np.zeros((12, 5000), np.float32)
    signal[3, 100] = microvolt
    if taken:
        assert abs(to_samples(record(signal)).signal[3, 100]) == 32_767
        return
    with pytest.raises(FormatError, match=r"a lead reaches 3\.3e\+10 microvolt"):
        to_samples(record(signal))
