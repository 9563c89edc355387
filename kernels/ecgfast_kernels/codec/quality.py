"""How good an ECG's signal is, lead by lead: one pass, native where that was built, else NumPy.

N records, 12 leads, T timesteps at 500 Hz. The first and last 0.2 s are left out, because filters
of some devices hold a value there; the rest is measured in segments of 1.2 s, each long enough for
a beat, and in blocks of 48 ms. Medians over the segments: one artefact changes no measure but the
wander, which is the range of all.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfast_kernels.codec.format import CodecError
from ecgfast_kernels.codec.native import address, load

ENDS = 100  # timesteps at both ends that are not looked at
SEGMENT = 600  # timesteps
BLOCK = 24  # timesteps
HELD_RUN = 4  # timesteps; sharp peaks of real recordings hold their top for up to 3

_ALL_LEADS = 12
_INVALID = -32768
_MOST_INVALID = SEGMENT // 10  # timesteps of a segment that still counts
_FOLD = 100  # timesteps: the period of 5 Hz, and so of every multiple of it
_TONES = (45, 50, 55, 60, 65)  # Hz
_HZ = 500.0
_REACH = 2  # timesteps from a value to those that it is compared with, for noise and spikes
# Mean |2 a - b - c| of white noise of standard deviation 1.
_WHITE = float(np.sqrt(6) * np.sqrt(2 / np.pi))


class LeadMeasures(NamedTuple):
    """Measures of N records; (N, 12) float32 in ADC units where nothing else is said.

    A lead without a segment that counts has 0 everywhere.

    Attributes:
        up: from the segment's level to its highest value, median over the segments.
        down: from its lowest value to its level, likewise.
        level: median over the segments of their level, which is the median of block means.
        wander: highest level less the lowest.
        noise: standard deviation of white noise that has as much curvature over 4 ms to both sides
            as the median block has: passes 40 Hz and more, of 50 Hz 0.69 of the amplitude.
        mains: amplitude at 50 Hz or 60 Hz, the larger, less what is found 5 Hz beside it.
        flat: timesteps of the longest constant stretch, in whole blocks.
        high: largest value.
        low: smallest value.
        held_high: timesteps at `high`, in runs of 4 and more.
        held_low: timesteps at `low`, likewise.
        spikes: (N,) int32, blocks with a spike, those one behind another once: in at least
            `spike_leads` leads a value lies on one side of both values 4 ms away, by
            more than the lead's limit.
    """

    up: NDArray[np.float32]
    down: NDArray[np.float32]
    level: NDArray[np.float32]
    wander: NDArray[np.float32]
    noise: NDArray[np.float32]
    mains: NDArray[np.float32]
    flat: NDArray[np.float32]
    high: NDArray[np.float32]
    low: NDArray[np.float32]
    held_high: NDArray[np.float32]
    held_low: NDArray[np.float32]
    spikes: NDArray[np.int32]


_PER_LEAD = len(LeadMeasures._fields) - 1


def lead_measures(
    signal_NCT: NDArray[np.int16],
    valid_NCT: NDArray[np.bool_] | None,
    spike_limit_NC: NDArray[np.float32],
    *,
    spike_leads: int,
) -> LeadMeasures:
    """Measure records of 500 Hz.

    Args:
        signal_NCT: (N, 12, T) int16, ADC units; at least 0.4 s and a segment.
        valid_NCT: (N, 12, T) bool, False = padding or interpolated; None where all are valid. A
            segment with more than a tenth of such timesteps does not count.
        spike_limit_NC: (N, 12) float32, ADC units.
        spike_leads: in how many leads a spike must be.
    Raises:
        CodecError: another shape or dtype.
    """
    shape = signal_NCT.shape
    least = 2 * ENDS + SEGMENT
    if len(shape) != 3 or shape[1] != _ALL_LEADS or shape[2] < least or signal_NCT.dtype != "<i2":
        raise CodecError(
            f"signal must be int16 (N, {_ALL_LEADS}, {least} or more), "
            f"got {signal_NCT.dtype} {shape}"
        )
    if valid_NCT is not None and valid_NCT.shape != shape:
        raise CodecError(f"valid must have the signal's shape {shape}, got {valid_NCT.shape}")
    if spike_limit_NC.shape != shape[:2]:
        raise CodecError(f"spike_limit must be {shape[:2]}, got {spike_limit_NC.shape}")
    signal = np.ascontiguousarray(signal_NCT)
    valid = None if valid_NCT is None else np.ascontiguousarray(valid_NCT, np.uint8)
    limit = np.ascontiguousarray(spike_limit_NC, np.float32)
    library = load()
    measures = np.zeros((_PER_LEAD, *shape[:2]), np.float32)
    spikes = np.zeros(len(signal), np.int32)
    if library is None:
        for n, signal_CT in enumerate(signal):
            valid_CT = None if valid is None else valid[n] != 0
            measures[:, n], spikes[n] = _in_numpy(signal_CT, valid_CT, limit[n], spike_leads)
    else:
        library.ecgfast_lead_measures(
            address(signal),
            None if valid is None else address(valid),
            *(len(signal), shape[2], spike_leads),
            *(address(limit), address(measures), address(spikes)),
        )
    return LeadMeasures(**dict(zip(LeadMeasures._fields, measures, strict=False)), spikes=spikes)


def _in_numpy(
    signal_CT: NDArray[np.int16],
    valid_CT: NDArray[np.bool_] | None,
    limit_C: NDArray[np.float32],
    spike_leads: int,
) -> tuple[NDArray[np.float32], int]:
    """(11, 12) measures of a record, and its spikes."""
    num_segments = (signal_CT.shape[1] - 2 * ENDS) // SEGMENT
    span = slice(ENDS, ENDS + num_segments * SEGMENT)
    x = signal_CT[:, span].astype(np.int64)
    before = signal_CT[:, span.start - _REACH : span.stop - _REACH].astype(np.int64)
    after = signal_CT[:, span.start + _REACH : span.stop + _REACH].astype(np.int64)
    valid = np.ones(x.shape, bool) if valid_CT is None else valid_CT[:, span]
    blocks = (_ALL_LEADS, num_segments, SEGMENT // BLOCK, BLOCK)
    whole_CB = np.asarray(valid.reshape(_ALL_LEADS, -1, BLOCK).all(axis=2))
    curvature = np.abs(2 * x - before - after).reshape(blocks).sum(axis=3)
    level = np.median(x.reshape(blocks).mean(axis=3), axis=2)
    segments = x.reshape(_ALL_LEADS, num_segments, SEGMENT)
    tone = _tones(segments)
    beside = (tone[..., :-2] + tone[..., 2:]) / 2
    power: NDArray[np.float64] = (tone[..., 1:-1] - beside)[..., ::2].max(axis=-1)
    counts = (~valid).reshape(segments.shape).sum(axis=2) <= _MOST_INVALID
    result = np.zeros((_PER_LEAD, _ALL_LEADS), np.float32)
    for lead in np.flatnonzero(counts.any(axis=1)).tolist():
        use = counts[lead]
        levels, each = level[lead, use], segments[lead, use]
        high, low = each.max(), each.min()
        result[:, lead] = (
            np.median(each.max(axis=1) - levels),
            np.median(levels - each.min(axis=1)),
            np.median(levels),
            levels.max() - levels.min(),
            _upper_median(curvature[lead, use]) / (BLOCK * _WHITE),
            np.sqrt(max(np.median(power[lead, use]), 0.0)),
            _longest_flat(x[lead].reshape(-1, BLOCK), whole_CB[lead]),
            high,
            low,
            _held(each, high),
            _held(each, low),
        )
    apart = np.minimum(x - before, x - after), np.minimum(before - x, after - x)
    spike_CB = np.maximum(*apart).reshape(_ALL_LEADS, -1, BLOCK).max(axis=2)
    spike_CB[~whole_CB] = 0
    at_B = (spike_CB > limit_C[:, None]).sum(axis=0) >= spike_leads
    return result, int(np.count_nonzero(at_B & ~np.append(False, at_B[:-1])))


def _upper_median(values: NDArray[np.int64]) -> float:
    return float(np.sort(values, axis=None)[values.size // 2])


def _tones(segments: NDArray[np.int64]) -> NDArray[np.float64]:
    """(12, S, 5) squared amplitudes at `_TONES`."""
    folded = segments.reshape(*segments.shape[:2], -1, _FOLD).sum(axis=2)
    angle = 2 * np.pi / _HZ * np.outer(np.arange(_FOLD), _TONES)
    power: NDArray[np.float64] = np.abs(folded @ np.exp(1j * angle) * (2 / SEGMENT)) ** 2
    return power


def _longest_flat(blocks: NDArray[np.int64], whole_B: NDArray[np.bool_]) -> int:
    """Timesteps of the longest run of constant, wholly valid blocks of one value."""
    constant = whole_B & (blocks == blocks[:, :1]).all(axis=1)
    longest = run = 0
    for block, is_constant in enumerate(constant.tolist()):
        joins = run and blocks[block, 0] == blocks[block - 1, 0]
        run = (run + 1 if joins else 1) if is_constant else 0
        longest = max(longest, run)
    return longest * BLOCK


def _held(segments: NDArray[np.int64], value: int) -> int:
    """Timesteps of segments (S, 600) at a value, in runs of `HELD_RUN` or more."""
    at_ST = np.pad(segments == value, ((0, 0), (1, 1)))  # no run goes on in the next segment
    edges = np.flatnonzero(np.diff(at_ST.ravel()))
    lengths = edges[1::2] - edges[::2]
    return int(lengths[lengths >= HELD_RUN].sum())
