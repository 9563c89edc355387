"""Content digest and fingerprint of stored signals, by which the same ECG is recognised."""

from collections.abc import Iterable

import numpy as np
import xxhash
from ecgfast_kernels.codec.signals import MAX_BEATS, NUM_CORRELATIONS, Fingerprints
from numpy.typing import NDArray

FINGERPRINT_BYTES = NUM_CORRELATIONS + 2 * MAX_BEATS
CORRELATION_STEPS = 127  # of a correlation of 1
LEAST_TIMESTEPS = 2400  # of signal that a fingerprint needs: half of a window, and a margin


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


def packed_fingerprints(found: Fingerprints) -> list[bytes]:
    """Fingerprints as they are kept beside the rows until the end, 92 bytes each.

    Returns:
        int8 correlations in steps of 1/127, then uint16 beats in milliseconds, little endian.
    """
    steps = np.rint(found.correlation * CORRELATION_STEPS).astype(np.int8).view(np.uint8)
    beats = found.beats.astype("<u2").view(np.uint8)
    return [row.tobytes() for row in np.concatenate([steps, beats], axis=1)]


def unpacked_fingerprints(
    packed: NDArray[np.uint8],
) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """Correlations (N, 28) in steps of 1/127 and beats (N, 32) of `packed_fingerprints`.

    Args:
        packed: (N, `FINGERPRINT_BYTES`); the results are views of it.
    """
    return packed[:, :NUM_CORRELATIONS].view(np.int8), packed[:, NUM_CORRELATIONS:].view("<u2")


def joined_fingerprints(packed: Iterable[bytes]) -> NDArray[np.uint8]:
    """(N, `FINGERPRINT_BYTES`) of `packed_fingerprints`."""
    return np.frombuffer(b"".join(packed), np.uint8).reshape(-1, FINGERPRINT_BYTES)
