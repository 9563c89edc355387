"""Passes over int16 signals: lead statistics, frames to rows, and fingerprints of ECGs.

Native where that was built, NumPy elsewhere. A fingerprint stays alike under another gain, sampling
rate, offset or cut; equal ones are no proof of equal ECGs. N records, C leads, T timesteps.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfast_kernels.codec.format import CodecError
from ecgfast_kernels.codec.native import address, int16_signal, load

NUM_CORRELATIONS = 28  # pairs of 8 leads: I, II, V1 to V6; the four others follow from I and II
MAX_BEATS = 32
NO_BEAT = 0xFFFF
LEADS = (0, 1, 6, 7, 8, 9, 10, 11)
BOX = 5  # timesteps in a bin: 100 bins a second

_INVALID = -32768  # the marker of a missing timestep
_ALL_LEADS = 12
_STEP = 2  # bins from which a slope is taken: it passes 5 to 40 Hz, most at 25 Hz
_SMOOTH = 4  # bins to each side in the mean power: the width of a QRS complex
_REFRACTORY = 25  # bins to each side without another beat
_LEAST_POWER = 0.3  # of the median beat's
_MS_PER_TIMESTEP = 2.0


def lead_statistics(
    signal_NCT: NDArray[np.int16], valid: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and population standard deviation per lead, exact until they are rounded once.

    Args:
        signal_NCT: (N, C, T) int16, ADC units; -32768 marks a missing timestep and is left out.
        valid: (N, C, T) bool, False = left out as well, or None.
    Returns:
        Mean and standard deviation, (N, C) float32, ADC units; 0 and 0 for a lead without values.
    Raises:
        CodecError: shapes or dtypes disagree.
    """
    signal = int16_signal(signal_NCT)
    if valid is not None and valid.shape != signal.shape:
        raise CodecError(f"valid must have the signal's shape {signal.shape}, got {valid.shape}")
    use = None if valid is None else np.ascontiguousarray(valid, np.uint8)
    library = load()
    if library is None:
        return _statistics_in_numpy(signal, use)
    mean, std = (np.empty(signal.shape[:2], np.float32) for _ in range(2))
    mask = None if use is None else address(use)
    rows, timesteps = mean.size, signal.shape[2]
    library.ecgfast_lead_statistics(
        address(signal), mask, rows, timesteps, address(mean), address(std)
    )
    return mean, std


def _statistics_in_numpy(
    signal: NDArray[np.int16], use: NDArray[np.uint8] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    keep = signal != _INVALID
    if use is not None:
        keep &= use != 0
    values = np.where(keep, signal, 0).astype(np.int64)
    count = keep.sum(axis=2)
    total, squares = values.sum(axis=2), (values * values).sum(axis=2)
    n = np.maximum(count, 1).astype(np.float64)
    variance = (count * squares - total * total).astype(np.float64) / (n * n)
    return (total / n).astype(np.float32), np.sqrt(variance).astype(np.float32)


def deinterleave(
    frames_TS: NDArray[np.int16], out: NDArray[np.int16] | None = None
) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """Transpose the frames of a recording and sum each signal, in one pass.

    Args:
        frames_TS: (T, S) int16, C-contiguous: one frame after the other, a value of each signal.
        out: (S, T) int16 to fill, C-contiguous, or None.
    Returns:
        (S, T) int16, C-contiguous, and the sum of each signal mod 2^16, (S,) uint16: the checksum
        of WFDB headers.
    Source: WFDB Applications Guide, header(5) and signal(5).
    """
    assert frames_TS.ndim == 2
    assert frames_TS.dtype == np.int16
    assert frames_TS.flags.c_contiguous
    rows = np.empty(frames_TS.shape[::-1], np.int16) if out is None else out
    assert rows.shape == frames_TS.shape[::-1]
    assert rows.dtype == np.int16
    assert rows.flags.c_contiguous
    library = load()
    if library is None:
        rows[:] = frames_TS.T
        return rows, np.add.reduce(rows, axis=1, dtype=np.int16).view(np.uint16)  # wraps
    sums = np.empty(len(rows), np.uint16)
    library.ecgfast_deinterleave(address(frames_TS), *frames_TS.shape, address(rows), address(sums))
    return rows, sums


class Fingerprints(NamedTuple):
    """Fingerprints of N records.

    Attributes:
        correlation: (N, 28) float32 in [-1, 1], of the slopes of each two leads over the record:
            the lead axes and the course of the heart's dipole, but neither gain nor place in time.
        beats: (N, 32) uint16, milliseconds from the record's begin, ascending; `NO_BEAT` behind
            the last.
    """

    correlation: NDArray[np.float32]
    beats: NDArray[np.uint16]


def fingerprints(signal_NCT: NDArray[np.int16], *, least_timesteps: int) -> Fingerprints:
    """Fingerprint records of 500 Hz.

    A constant begin or end of all leads is left out: it is padding.

    Args:
        signal_NCT: (N, 12, T) int16, ADC units; T up to 30,000.
        least_timesteps: records with fewer timesteps of signal get zeros and no beats.
    Raises:
        CodecError: another shape or dtype.
    """
    if signal_NCT.ndim != 3 or signal_NCT.shape[1] != _ALL_LEADS or signal_NCT.dtype != np.int16:
        raise CodecError(
            f"signal must be int16 (N, {_ALL_LEADS}, T), got {signal_NCT.dtype} {signal_NCT.shape}"
        )
    signal = np.ascontiguousarray(signal_NCT)
    library = load()
    if library is None:
        return _fingerprints_in_numpy(signal, least_timesteps)
    found = _none(len(signal))
    size = (len(signal), signal.shape[2], least_timesteps)
    library.ecgfast_fingerprints(
        address(signal), *size, address(found.correlation), address(found.beats)
    )
    return found


def live_span(signal_CT: NDArray[np.int16]) -> tuple[int, int]:
    """First timestep and end of what is not a constant begin or end of all leads; 0, 0 for none."""
    changed = np.flatnonzero((signal_CT[:, 1:] != signal_CT[:, :-1]).any(axis=0))
    return (int(changed[0]) + 1, int(changed[-1]) + 1) if changed.size else (0, 0)


def _none(num_records: int) -> Fingerprints:
    return Fingerprints(
        correlation=np.zeros((num_records, NUM_CORRELATIONS), np.float32),
        beats=np.full((num_records, MAX_BEATS), NO_BEAT, np.uint16),
    )


def _fingerprints_in_numpy(signal: NDArray[np.int16], least_timesteps: int) -> Fingerprints:
    found = _none(len(signal))
    upper = np.triu_indices(len(LEADS), 1)
    for record, signal_CT in enumerate(signal):
        first, end = live_span(signal_CT)
        num_bins = (end - first) // BOX
        if end - first < least_timesteps or num_bins <= _STEP:
            continue
        binned = signal_CT[list(LEADS), first : first + BOX * num_bins].astype(np.float64)
        bins = binned.reshape(len(LEADS), num_bins, BOX).sum(axis=2)
        slopes = bins[:, _STEP:] - bins[:, :-_STEP]
        size = np.sqrt((slopes**2).mean(axis=1, keepdims=True))
        slopes = np.divide(slopes, size, out=np.zeros_like(slopes), where=size > 0)
        found.correlation[record] = (slopes @ slopes.T / slopes.shape[1])[upper]
        beats = _beats((slopes**2).sum(axis=0))
        times = np.rint((first + BOX * beats) * _MS_PER_TIMESTEP)
        found.beats[record, : len(times)] = times
    return found


def _beats(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Peaks of the mean power, in bins."""
    mean = np.convolve(power, np.ones(2 * _SMOOTH + 1), "full")[_SMOOTH : _SMOOTH + len(power)]
    around = np.pad(mean, _REFRACTORY)
    highest = np.lib.stride_tricks.sliding_window_view(around, 2 * _REFRACTORY + 1).max(axis=1)
    peak = np.flatnonzero(mean[1:-1] == highest[1:-1]) + 1
    peak = peak[(mean[peak] > mean[peak - 1]) & (mean[peak] >= mean[peak + 1])]
    if peak.size == 0:
        return np.zeros(0)
    median = np.sort(mean[peak])[peak.size // 2]
    peak = peak[mean[peak] > _LEAST_POWER * median][:MAX_BEATS]
    left, top, right = mean[peak - 1], mean[peak], mean[peak + 1]
    at: NDArray[np.float64] = peak + 0.5 * (left - right) / (left - 2 * top + right)
    return at
