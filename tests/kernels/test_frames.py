"""Frames to rows: every shape against NumPy, and sums that wrap."""

import numpy as np
import pytest
from ecgfast_kernels.codec.signals import deinterleave


@pytest.mark.parametrize("num_signals", [1, 2, 7, 8, 9, 12, 15, 16, 17])
@pytest.mark.parametrize("num_timesteps", [0, 1, 7, 8, 9, 5003])
def test_rows_and_sums(num_timesteps: int, num_signals: int) -> None:
    rng = np.random.default_rng(num_timesteps * 100 + num_signals)
    frames = rng.integers(-32768, 32768, (num_timesteps, num_signals)).astype(np.int16)
    rows, sums = deinterleave(frames)
    np.testing.assert_array_equal(rows, frames.T)
    assert rows.flags.c_contiguous
    np.testing.assert_array_equal(sums, frames.astype(np.int64).sum(axis=0) % 65536)
