"""z-scored patches have the same bits however they are made; statistics are exact."""

import numpy as np
import pytest
from codec_records import KINDS, make, native_backends, set_backend
from ecgfast_kernels import codec
from numpy.typing import NDArray

BACKENDS = native_backends()


def expected(
    signal: NDArray[np.int16], mean: NDArray[np.float32], rstd: NDArray[np.float32]
) -> NDArray[np.float16]:
    """docs/format.md, 2.6, word for word."""
    num_records, num_leads, num_timesteps = signal.shape
    num_columns = num_timesteps // 250
    out = np.zeros((num_records, num_leads * num_columns, 256), np.float16)
    with np.errstate(over="ignore"):
        z = ((signal.astype(np.float32) - mean[..., None]) * rstd[..., None]).astype(np.float16)
    for lead in range(num_leads):
        for column in range(num_columns):
            patch = z[:, lead, 250 * column : 250 * (column + 1)]
            out[:, lead * num_columns + column, :250] = patch
    return out


def moments(signal: NDArray[np.int16]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Statistics, and rstd from 0 over subnormal results to infinite ones."""
    mean, std = codec.lead_statistics(signal)
    scale = 10.0 ** np.random.default_rng(5).uniform(-8, 3, std.shape)
    rstd = np.where(std > 0, scale / np.maximum(std, 1), 0).astype(np.float32)
    return mean, rstd


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(12, 1000), (3, 250)])
def test_bits_agree(backend: str, shape: tuple[int, int]) -> None:
    signal = np.stack([make(kind, *shape, seed=3) for kind in sorted(KINDS)])
    mean, rstd = moments(signal)
    truth = expected(signal, mean, rstd)
    assert np.isinf(truth).any()
    assert ((truth != 0) & (abs(truth) < 2.0**-14)).any()  # subnormal numbers round as well
    chunks = codec.encode(signal)
    lengths = np.array([len(chunk) for chunk in chunks])
    offsets = np.cumsum(lengths) - lengths
    set_backend(backend)
    try:
        out = np.full(truth.shape, np.nan, np.float16)
        codec.patches_from_int16(signal, mean, rstd, out=out)
        np.testing.assert_array_equal(out.view(np.uint16), truth.view(np.uint16))
        for threads in (1, 3):
            out[...] = np.nan
            codec.decode_patches(
                b"".join(chunks),
                offsets,
                lengths,
                mean,
                rstd,
                num_timesteps=shape[1],
                out=out,
                num_threads=threads,
            )
            np.testing.assert_array_equal(out.view(np.uint16), truth.view(np.uint16))
    finally:
        set_backend("")


def test_statistics_leave_missing_timesteps_out() -> None:
    signal = np.stack([make(kind, 4, 5000, seed=9) for kind in sorted(KINDS)])
    valid = np.random.default_rng(2).random(signal.shape) < 0.9
    signal[0, 0] = -32768
    signal[1, 1] = 1234
    for mask in (None, valid):
        mean, std = codec.lead_statistics(signal, mask)
        use = (signal != -32768) & (mask if mask is not None else True)
        for n, lead in np.ndindex(mean.shape):
            values = signal[n, lead][use[n, lead]].astype(np.float64)
            truth = (values.mean(), values.std()) if values.size else (0, 0)
            np.testing.assert_allclose((mean[n, lead], std[n, lead]), truth, rtol=1e-6, atol=1e-9)
        assert mean[0, 0] == std[0, 0] == 0
        assert (mean[1, 1], std[1, 1]) == (1234, 0)


def test_statistics_check_the_mask() -> None:
    with pytest.raises(codec.CodecError, match="valid must have"):
        codec.lead_statistics(np.zeros((1, 2, 250), np.int16), np.ones((1, 2, 1), bool))


def test_moments_are_checked() -> None:
    signal = np.zeros((2, 12, 250), np.int16)
    with pytest.raises(codec.CodecError, match="mean and rstd"):
        codec.patches_from_int16(signal, np.zeros((3, 12)), np.zeros((3, 12)))
