"""One input file of any rate and length -> its windows of 12 x 5000 int16 at 500 Hz, or why not.

A 500 Hz integer record of at least 5000 timesteps passes through unchanged, bit for bit.
All that is done to others has a flag: resampled, cut, window, padded, interpolated, quantised.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import EcgfastError, FormatError
from ecgfast.ingest import ALL_LEADS, InputFile, read_record, unreadable
from ecgfast.ingest.files import check_values
from ecgfast.ingest.leads import SCALE_UV
from ecgfast.records import INVALID, NUM_LEADS, NUM_TIMESTEPS, SAMPLING_RATE_HZ, EcgRecord
from ecgfast.store.format import address_of
from ecgfast.vocabulary import Short, WindowChoice

MAX_INVALID_SHARE = 0.01
MIN_PADDED_TIMESTEPS = NUM_TIMESTEPS // 2  # half a window: below it, zeros are most of the record
_MAX_ADC = 32767
_SLOWEST_HZ = 50.0  # ECGs have 100 Hz and more; what is slower is likely a wrong number
_MAX_RATE_TERM = 1000  # 500/rate as a fraction with terms up to this; 499.998 Hz counts as 500


class Samples(NamedTuple):
    """A whole record at 500 Hz.

    Attributes:
        signal: (12, T) int16 ADC units.
        valid: (12, T) bool, or None where every timestep is valid.
        scale_uv: (12,) float32; microvolt = (adc - offset_adc) * scale_uv.
        offset_adc: (12,) float32.
        error_uv: largest error of quantisation, None where nothing was rounded.
        flags: what was done.
    """

    signal: NDArray[np.int16]
    valid: NDArray[np.bool_] | None
    scale_uv: NDArray[np.float32]
    offset_adc: NDArray[np.float32]
    error_uv: float | None
    flags: tuple[str, ...]


class Window(NamedTuple):
    """One window of a record, as it is stored.

    Attributes:
        signal: (12, 5000) int16 ADC units.
        valid: (12, 5000) bool, or None; what statistics leave out is False.
        start: first timestep of the window, at 500 Hz.
        invalid_share: of its values before interpolation.
        flags: those of the record and of this window.
    """

    signal: NDArray[np.int16]
    valid: NDArray[np.bool_] | None
    start: int
    invalid_share: float
    flags: tuple[str, ...]


class CutRecording(NamedTuple):
    """What one file gives.

    Attributes:
        record: as the reader gave it.
        samples: the whole record at 500 Hz.
        windows: in order of time; an error instead says why that window is refused.
    """

    record: EcgRecord
    samples: Samples
    windows: list[Window | FormatError]


def read_windows(
    item: InputFile,
    *,
    window: WindowChoice,
    short: Short,
    leads: Sequence[int] = ALL_LEADS,
    allow_missing: bool = False,
) -> CutRecording:
    """Read a file and cut its windows.

    Args:
        item: of `discover`'s list.
        window: which windows of a longer record.
        short: what happens to a shorter one.
        leads: as for `read_record`.
        allow_missing: likewise.
    Raises:
        FormatError, ShapeError: whatever is wrong with this one file, an array that the memory
            cannot hold too.
        OSError: the share fails.
    """
    record = read_record(item, leads=leads, allow_missing=allow_missing)
    try:
        with np.errstate(all="ignore"):  # what overflows is refused below
            samples = to_samples(record)
            windows = cut(samples, window=window, short=short)
    except (EcgfastError, ImportError, OSError):
        raise
    except Exception as error:  # MemoryError too: one odd file must not end a run over millions
        raise unreadable(item, error) from error
    return CutRecording(record=record, samples=samples, windows=windows)


def check_source(source: Path, *, again: str) -> None:
    """After a refusal: see that the source itself is still there.

    Args:
        source: folder or file of a command line.
        again: what to do when it is back.
    Raises:
        EcgfastError: it has gone, so that every further file would be refused.
        OSError: the share fails.
    """
    if address_of(source) is None and not source.exists():
        raise EcgfastError(f"source {source} has gone while it was read; bring it back and {again}")


def to_samples(record: EcgRecord) -> Samples:
    """Repair, resample and quantise a record as far as it needs.

    Raises:
        FormatError: an impossible rate or voltage, too many timesteps, or none that is valid.
    """
    ratio = _resampling(record.sampling_rate_hz)
    signal: NDArray[Any] = record.signal
    source = f"{record.record_id} at {SAMPLING_RATE_HZ} Hz"
    length = signal.shape[1] if ratio == 1 else math.ceil(signal.shape[1] * max(ratio, 1))
    check_values(length, NUM_LEADS, source)
    valid = _valid(signal)
    flags = record.flags if valid is None else (*record.flags, "interpolated")
    samples = Samples(
        signal=signal,
        valid=valid,
        scale_uv=record.scale_uv,
        offset_adc=record.offset_adc,
        error_uv=None,
        flags=flags,
    )
    is_integer = signal.dtype == np.int16
    if is_integer and ratio == 1:
        if valid is None:
            return samples
        return samples._replace(signal=np.rint(_interpolated(signal, valid)).astype(np.int16))
    values = signal.astype(np.float64) if valid is None else _interpolated(signal, valid)
    if ratio != 1:
        flags = (*flags, "resampled")
        if record.sampling_rate_hz < _SLOWEST_HZ:
            flags = (*flags, "rate_implausible")
        from scipy.signal import resample_poly  # slow to import, and most workers never need it

        # "line": the default pads with zeros, which rings where a lead has an offset.
        values = resample_poly(values, ratio.numerator, ratio.denominator, axis=1, padtype="line")
        valid = None if valid is None else _resampled_mask(valid, ratio, values.shape[1])
        samples = samples._replace(valid=valid, flags=flags)
    return _quantised(samples, values, integers=is_integer)


def cut(samples: Samples, *, window: WindowChoice, short: Short) -> list[Window | FormatError]:
    """Cut the windows of a record.

    Args:
        samples: the record at 500 Hz.
        window: "first", or "all" (whole windows one behind another; a shorter rest is dropped).
        short: what happens to records of fewer than 5000 timesteps.
    Returns:
        windows in order of time; an error instead says why that window is refused.
    """
    length = samples.signal.shape[1]
    if length < NUM_TIMESTEPS:
        if length < MIN_PADDED_TIMESTEPS:
            return [
                FormatError(
                    f"too short: {length} timesteps at {SAMPLING_RATE_HZ} Hz, {NUM_TIMESTEPS} "
                    f"needed, {MIN_PADDED_TIMESTEPS} with --short pad",
                    reason="shorter than 5 s",
                )
            ]
        if short == "quarantine":
            return [
                FormatError(
                    f"too short: {length} timesteps at {SAMPLING_RATE_HZ} Hz, {NUM_TIMESTEPS} "
                    "needed; --short pad fills with zeros",
                    reason="shorter than 10 s; --short pad takes it",
                )
            ]
        return [_window(_padded(samples), 0, unpadded=length)]
    if length == NUM_TIMESTEPS:
        return [_window(samples, 0)]
    if window == "first":
        return [_window(samples._replace(flags=(*samples.flags, "cut")), 0)]
    samples = samples._replace(flags=(*samples.flags, "window"))
    starts = range(0, length - NUM_TIMESTEPS + 1, NUM_TIMESTEPS)
    return [_window(samples, start) for start in starts]


def num_windows(num_timesteps: int, rate_hz: float) -> int:
    """How many windows `cut` makes of a recording with `--window all`, refused ones too.

    Raises:
        FormatError: an impossible rate, or too many timesteps.
    """
    length = math.ceil(num_timesteps * _resampling(rate_hz))
    check_values(length, NUM_LEADS, "the recording")
    return max(1, length // NUM_TIMESTEPS)


def _window(samples: Samples, start: int, unpadded: int = NUM_TIMESTEPS) -> Window | FormatError:
    span = slice(start, start + NUM_TIMESTEPS)
    valid = None if samples.valid is None else samples.valid[:, span]
    flags, share = samples.flags, 0.0
    if valid is not None:
        share = float((~valid[:, :unpadded]).mean())  # 1 - mean would lie above 1 % at 1 %
        if share > MAX_INVALID_SHARE:
            return FormatError(
                f"{100 * share:.1f} % of the window at timestep {start} is marked invalid, "
                f"allowed {100 * MAX_INVALID_SHARE:.0f} %",
                reason="more than 1 % is marked invalid",
            )
        if share == 0:
            flags = tuple(flag for flag in flags if flag != "interpolated")
            valid = valid if unpadded < NUM_TIMESTEPS else None
    return Window(
        signal=samples.signal[:, span], valid=valid, start=start, invalid_share=share, flags=flags
    )


def _padded(samples: Samples) -> Samples:
    """Fill up to 5000 timesteps with 0 microvolt, left out of the statistics."""
    length = samples.signal.shape[1]
    zero = np.clip(np.rint(samples.offset_adc), -_MAX_ADC, _MAX_ADC).astype(np.int16)
    signal = np.repeat(zero[:, None], NUM_TIMESTEPS, axis=1)
    signal[:, :length] = samples.signal
    valid = np.zeros(signal.shape, bool)
    valid[:, :length] = True if samples.valid is None else samples.valid
    return samples._replace(signal=signal, valid=valid, flags=(*samples.flags, "padded"))


@lru_cache
def _resampling(rate_hz: float) -> Fraction:
    if not 1 <= rate_hz <= 100_000:
        raise FormatError(
            f"sampling rate must be in [1, 100000] Hz, got {rate_hz}",
            reason="the sampling rate is not allowed",
        )
    return Fraction(SAMPLING_RATE_HZ / rate_hz).limit_denominator(_MAX_RATE_TERM)


def _valid(signal: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Mask of valid timesteps, or None where all are: for integers the minimum alone shows it."""
    if signal.shape[1] == 0:
        raise FormatError("the record has no timesteps", reason="there are no timesteps")
    if signal.dtype == np.int16:
        return signal != INVALID if signal.min() == INVALID else None
    finite: NDArray[np.bool_] = np.isfinite(signal)
    return None if finite.all() else finite


def _interpolated(signal: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Straight lines over invalid timesteps, the nearest value at the ends, 0 in an empty lead."""
    values = signal.astype(np.float64)
    time = np.arange(signal.shape[1])
    for lead in range(NUM_LEADS):
        good = valid[lead]
        if not good.any():
            values[lead] = 0.0
        elif not good.all():
            values[lead, ~good] = np.interp(time[~good], time[good], values[lead, good])
    return values


def _resampled_mask(valid: NDArray[np.bool_], ratio: Fraction, length: int) -> NDArray[np.bool_]:
    """The mask at 500 Hz: each timestep takes the nearest one of the source."""
    nearest = np.rint(np.arange(length) / float(ratio)).astype(np.int64)
    return valid[:, np.minimum(nearest, valid.shape[1] - 1)]


def _quantised(samples: Samples, values: NDArray[np.float64], *, integers: bool) -> Samples:
    """Round to int16: in the source's own units where it had integers, else as fine as fits."""
    if integers and np.abs(values).max() <= _MAX_ADC:
        signal = np.rint(values)
        error = np.abs(values - signal).max(axis=1) * samples.scale_uv
        return samples._replace(signal=signal.astype(np.int16), error_uv=float(error.max()))
    microvolt = values
    if integers:
        microvolt = (values - samples.offset_adc[:, None]) * samples.scale_uv[:, None]
    peak = np.abs(microvolt).max(axis=1)
    if peak.max() > SCALE_UV[1] * _MAX_ADC:
        raise FormatError(
            f"a lead reaches {peak.max():g} microvolt, allowed {SCALE_UV[1] * _MAX_ADC:g}; correct "
            "the gain or scale",
            reason="a gain, scale or offset is not allowed",
        )
    # No finer than a picovolt: float dust in a flat lead is no signal.
    scale = np.where(peak > 0, np.maximum(peak / _MAX_ADC, SCALE_UV[0]), 1.0).astype(np.float32)
    exact = scale.astype(np.float64)[:, None]
    signal = np.clip(np.rint(microvolt / exact), -_MAX_ADC, _MAX_ADC)
    return samples._replace(
        signal=signal.astype(np.int16),
        scale_uv=scale,
        offset_adc=np.zeros_like(scale),
        error_uv=float(np.abs(microvolt - signal * exact).max()),
        flags=(*samples.flags, "quantised"),
    )
