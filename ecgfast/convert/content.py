"""Digest and fingerprint of each signal, by which the same ECG is recognised."""

from collections.abc import Sequence

import numpy as np
import xxhash
from ecgfast_kernels.codec.fingerprint import MAX_BEATS, NUM_CORRELATIONS, fingerprints
from numpy.typing import NDArray

LEAST_TIMESTEPS = 2400  # of signal: half of a window, and a margin

FINGERPRINT_BYTES = NUM_CORRELATIONS + 2 * MAX_BEATS
CORRELATION_STEPS = 127  # of a correlation of 1


def content_digests(
    signal_NCT: NDArray[np.int16], lead_std_NC: NDArray[np.float32]
) -> list[str | None]:
    """XXH3-128 of the digits, lead after lead, little endian: 32 hex digits.

    5 microseconds a record (SHA-256: 90). No protection: whoever wants two ECGs of one digest can
    make them.

    Args:
        signal_NCT: (N, 12, 5000) int16, ADC units.
        lead_std_NC: (N, 12), of the same.
    Returns:
        None where no lead ever changes: empty records are no duplicates of each other.
    """
    digits = np.ascontiguousarray(signal_NCT, "<i2")
    return [
        xxhash.xxh3_128_hexdigest(record) if changes else None
        for record, changes in zip(digits, np.any(lead_std_NC, axis=1).tolist(), strict=True)
    ]


def packed_fingerprints(signal_NCT: NDArray[np.int16]) -> list[bytes]:
    """Fingerprints as they wait beside the rows, 92 bytes each.

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
