"""Interleaved frames of a recorder to one row per signal: native where it was built, else NumPy.

Importing this imports neither torch nor triton.
"""

import numpy as np
from numpy.typing import NDArray

from ecgfast_kernels.codec.native import address, load


def deinterleave(frames_TS: NDArray[np.int16]) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """Transpose the frames of a recording and sum each signal, in one pass.

    Args:
        frames_TS: (T, S) int16, C-contiguous: one frame after the other, a value of each signal.
    Returns:
        (S, T) int16, C-contiguous, and the sum of each signal mod 2^16, (S,) uint16: the checksum
        of WFDB headers.
    Source: WFDB Applications Guide, header(5) and signal(5).
    """
    assert frames_TS.ndim == 2
    assert frames_TS.dtype == np.int16
    assert frames_TS.flags.c_contiguous
    library = load()
    if library is None:
        rows = np.ascontiguousarray(frames_TS.T)
        return rows, np.add.reduce(rows, axis=1, dtype=np.int16).view(np.uint16)  # wraps
    rows = np.empty(frames_TS.shape[::-1], np.int16)
    sums = np.empty(len(rows), np.uint16)
    library.ecgfast_deinterleave(address(frames_TS), *frames_TS.shape, address(rows), address(sums))
    return rows, sums
