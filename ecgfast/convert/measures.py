"""What is measured on batches of stored signals: signal checks, content digest, fingerprint.

The checks: flat, saturated, too small or large, limb leads at odds. Their limits were chosen on
real recordings, as they are and with a wrong gain or a clipped lead; docs/datasets.md has the
shares of what is found and of false alarms. By digest and fingerprint the same ECG is recognised.
"""

from collections.abc import Sequence

import numpy as np
import xxhash
from ecgfast_kernels.codec.signals import MAX_BEATS, NUM_CORRELATIONS, fingerprints
from numpy.typing import NDArray

from ecgfast.records import NUM_LEADS

FINGERPRINT_BYTES = NUM_CORRELATIONS + 2 * MAX_BEATS
CORRELATION_STEPS = 127  # of a correlation of 1
LEAST_TIMESTEPS = 2400  # of signal that a fingerprint needs: half of a window, and a margin

_EINTHOVEN_LIMIT_UV = 100.0  # 500 Hz recordings of real devices: 1 unit, at most 5 microvolt
_AMPLITUDE_UV = (400.0, 4000.0)  # peak to peak, of the middle leads
_HELD_RUN = 4  # timesteps; sharp peaks of real recordings hold their top for up to 3
_HELD_TIMESTEPS = 20  # in such runs
_HELD_FROM_MEAN_UV = 1000.0  # an isoelectric line in coarse units holds its value too
_ENDS = 100  # timesteps: filters of some devices hold the first or last value for 0.1 s


def signal_flags(
    signal_NCT: NDArray[np.int16],
    valid_NCT: NDArray[np.bool_] | None,
    mean_NC: NDArray[np.float32],
    std_NC: NDArray[np.float32],
    scale_NC: NDArray[np.float32],
    einthoven_N: Sequence[float],
) -> list[list[str]]:
    """Names of the checks that each record fails.

    Args:
        signal_NCT: (N, 12, T) int16, ADC units.
        valid_NCT: (N, 12, T) bool, False = padding or interpolated; None where all are valid.
        mean_NC: (N, 12) float32, ADC units, of the valid timesteps.
        std_NC: (N, 12) float32, the same.
        scale_NC: (N, 12) float32, microvolt per unit.
        einthoven_N: of `einthoven_uv`.
    Returns:
        N lists of "flat_lead", "einthoven", "saturated" and "amplitude".
    """
    if valid_NCT is not None:
        signal_NCT = np.where(valid_NCT, signal_NCT, np.rint(mean_NC)[:, :, None].astype(np.int16))
    # Of every four timesteps the first, a quarter of the time: a 64-bit word holds four.
    some_NCT = signal_NCT.view("<i8").astype(np.int16)[:, :, _ENDS // 4 : -_ENDS // 4]
    low_NC, high_NC = some_NCT.min(axis=2), some_NCT.max(axis=2)
    found = {
        "flat_lead": flat_leads(std_NC),
        "einthoven": np.array([breaks_einthoven(each) for each in einthoven_N]),
        "saturated": _saturated(signal_NCT, some_NCT, (low_NC, high_NC), mean_NC, scale_NC),
        "amplitude": _implausible((high_NC.astype(np.float32) - low_NC) * scale_NC),
    }
    return [[flag for flag in found if found[flag][n]] for n in range(len(signal_NCT))]


def flat_leads(lead_std_NC: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Records with a lead that never changes; (N, 12) ADC units -> (N,)."""
    flat: NDArray[np.bool_] = (lead_std_NC == 0).any(axis=1)
    return flat


def einthoven_uv(
    signal_NCT: NDArray[np.int16], scale_NC: NDArray[np.float32], offset_NC: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Largest deviation of III from II - I.

    Args:
        signal_NCT: (N, 12, T) int16, ADC units.
        scale_NC: (N, 12) float32, microvolt per unit.
        offset_NC: (N, 12) float32, ADC units.
    Returns:
        (N,) float32, microvolt.
    """
    scale = scale_NC[:, :3] * np.array([1, -1, 1], np.float32)
    constant = (offset_NC[:, :3] * scale).sum(axis=1)
    deviation = np.matmul(scale[:, None, :], signal_NCT[:, :3].astype(np.float32))[:, 0]
    high, low = deviation.max(axis=1) - constant, deviation.min(axis=1) - constant
    largest: NDArray[np.float32] = np.maximum(high, -low)
    return largest


def breaks_einthoven(deviation_uv: float) -> bool:
    """Whether the limb leads contradict each other."""
    return deviation_uv > _EINTHOVEN_LIMIT_UV


def content_digests(
    signal_NCT: NDArray[np.int16], lead_std_NC: NDArray[np.float32]
) -> list[str | None]:
    """XXH3-128 of the samples, lead after lead, little endian: 32 hex digits.

    5 microseconds a record (SHA-256: 90). It is no protection against forgery: two ECGs of one
    digest can be made on purpose.

    Args:
        signal_NCT: (N, 12, 5000) int16, ADC units.
        lead_std_NC: (N, 12), of the same.
    Returns:
        None where no lead ever changes: empty records are no duplicates of each other.
    """
    samples = np.ascontiguousarray(signal_NCT, "<i2")
    return [
        xxhash.xxh3_128_hexdigest(record) if changes else None
        for record, changes in zip(samples, np.any(lead_std_NC, axis=1).tolist(), strict=True)
    ]


def packed_fingerprints(signal_NCT: NDArray[np.int16]) -> list[bytes]:
    """Fingerprints as they are kept beside the rows until the end, 92 bytes each.

    Args:
        signal_NCT: (N, 12, 5000) int16, ADC units.
    Returns:
        int8 correlations in steps of 1/127, then uint16 beats in milliseconds, little endian.
    """
    found = fingerprints(signal_NCT, least_timesteps=LEAST_TIMESTEPS)
    steps = np.rint(found.correlation * CORRELATION_STEPS).astype(np.int8).view(np.uint8)
    beats = found.beats.astype("<u2").view(np.uint8)
    return [row.tobytes() for row in np.concatenate([steps, beats], axis=1)]


def unpacked_fingerprints(
    packed: Sequence[bytes],
) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """Correlations (N, 28) in steps of 1/127 and beats (N, 32) of `packed_fingerprints`."""
    rows = np.frombuffer(b"".join(packed), np.uint8).reshape(-1, FINGERPRINT_BYTES)
    beats = np.ascontiguousarray(rows[:, NUM_CORRELATIONS:]).view("<u2").astype(np.uint16)
    return np.ascontiguousarray(rows[:, :NUM_CORRELATIONS]).view(np.int8), beats


def _implausible(peak_to_peak_NC: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N,) records whose leads are mostly too small or too large for a heart; microvolt.

    The middle of the leads: a loose electrode does not count, a wrong gain of all leads does.
    """
    low, high = _AMPLITUDE_UV
    middle_N = np.sort(peak_to_peak_NC, axis=1)[:, NUM_LEADS // 2]
    implausible: NDArray[np.bool_] = (middle_N < low) | (middle_N > high)
    return implausible


def _saturated(
    signal_NCT: NDArray[np.int16],
    some_NCT: NDArray[np.int16],
    extremes: Sequence[NDArray[np.int16]],
    mean_NC: NDArray[np.float32],
    scale_NC: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """(N,) records with a lead that is held at its smallest or largest value, far from its mean.

    Args:
        signal_NCT: all timesteps.
        some_NCT: every fourth of them, without the ends: of what is held, at least 1 of 7.
        extremes: the smallest values of these, (N, 12), and the largest.
        mean_NC: as in `signal_flags`.
        scale_NC: as in `signal_flags`.
    """
    saturated = np.zeros(len(signal_NCT), bool)
    for extreme_NC in extremes:
        far_NC = np.abs(extreme_NC - mean_NC) * scale_NC >= _HELD_FROM_MEAN_UV
        records, leads = np.nonzero(far_NC)  # one in six
        extreme_L = extreme_NC[records, leads]
        held_L = _count(some_NCT[records, leads] == extreme_L[:, None])
        for far in np.flatnonzero(7 * held_L >= _HELD_TIMESTEPS).tolist():
            lead_T = signal_NCT[records[far], leads[far], _ENDS:-_ENDS]
            if extreme_L[far] in (lead_T.min(), lead_T.max()):
                held = _timesteps_in_runs(lead_T == extreme_L[far])
                saturated[records[far]] |= held >= _HELD_TIMESTEPS
    return saturated


def _count(at_LT: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(L,) how many of up to 2,040 timesteps are True: each byte of a sum counts an eighth."""
    sums_L = np.add.reduce(at_LT.view(np.uint64), axis=1)
    count: NDArray[np.int64] = sums_L[:, None].view(np.uint8).sum(axis=1, dtype=np.int64)
    return count


def _timesteps_in_runs(at_T: NDArray[np.bool_]) -> int:
    """How many timesteps are True in runs of `_HELD_RUN` or more."""
    edges = np.flatnonzero(np.diff(at_T, prepend=False, append=False))
    lengths = edges[1::2] - edges[::2]
    return int(lengths[lengths >= _HELD_RUN].sum())
