"""The ecgpack codec: many records per call, native where it was built, NumPy elsewhere.

Importing this imports neither torch nor triton. The format is docs/format.md, chapter 2.
Shapes: N records, C leads, T timesteps, P = C * T / 250 patches of 256 values.
"""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ecgfast_kernels.codec import reference
from ecgfast_kernels.codec.format import (
    COLUMN_TIMESTEPS,
    PATCH_WIDTH,
    CodecError,
    check_shape,
)
from ecgfast_kernels.codec.native import Chunks, address, load
from ecgfast_kernels.codec.reference_encode import encode_chunk

Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]

_ENCODE_BLOCK = 32  # records per native call: 4 MB of room for the longest chunks
_INVALID = -32768  # the marker of a missing timestep


def encode(signal_NCT: NDArray[np.int16], *, num_threads: int = 1) -> list[bytes]:
    """Encode records, one ecgpack chunk each.

    Args:
        signal_NCT: (N, C, T) int16; C up to 16, T a multiple of 250 up to 65,500.
        num_threads: threads to use.
    Returns:
        N chunks; the same bytes on every backend.
    Raises:
        CodecError: the shape or the dtype cannot be encoded.
    """
    signal = _signal(signal_NCT)
    num_records, num_leads, num_timesteps = signal.shape
    library = load()
    if library is None:
        return [encode_chunk(record) for record in signal]
    bound = library.ecgfast_encode_bound(num_leads, num_timesteps)
    room = np.empty((min(num_records, _ENCODE_BLOCK), bound), np.uint8)
    lengths = np.empty(len(room), np.int64)
    shape = (num_leads, num_timesteps)
    chunks: list[bytes] = []
    for start in range(0, num_records, _ENCODE_BLOCK):
        block = signal[start : start + _ENCODE_BLOCK]
        target = (address(room), bound, address(lengths), num_threads)
        _succeed(library.ecgfast_encode(address(block), len(block), *shape, *target))
        chunks += [room[i, : lengths[i]].tobytes() for i in range(len(block))]
    return chunks


def decode(
    buffer: Buffer,
    offsets: ArrayLike,
    lengths: ArrayLike,
    *,
    num_leads: int,
    num_timesteps: int,
    out: NDArray[np.int16] | None = None,
    num_threads: int = 1,
    check: bool = True,
) -> NDArray[np.int16]:
    """Decode chunks to their integers.

    Args:
        buffer: bytes that hold the chunks; needs no padding.
        offsets: (N,) int64, first byte of each chunk.
        lengths: (N,) int64, bytes of each chunk.
        num_leads: C, the same for all.
        num_timesteps: T, the same for all.
        out: (N, C, T) int16 to fill, or None.
        num_threads: threads to use.
        check: compare the checksums.
    Returns:
        (N, C, T) int16.
    Raises:
        CodecError: a chunk is damaged (`index` says which) or has another shape.
    """
    data, at, size = _chunks(buffer, offsets, lengths)
    check_shape(num_leads, num_timesteps)
    out = _output(out, (len(at), num_leads, num_timesteps), np.int16)
    library = load()
    if library is None:
        for i, chunk in enumerate(_slices(data, at, size)):
            out[i] = _decode_slowly(chunk, i, out.shape[1:], check=check)
        return out
    chunks = _describe(data, at, size, num_leads, num_timesteps)
    bad = ctypes.c_int64(-1)
    status = library.ecgfast_decode(
        ctypes.byref(chunks), address(out), num_threads, check, ctypes.byref(bad)
    )
    _succeed(status, bad.value)
    return out


def decode_patches(
    buffer: Buffer,
    offsets: ArrayLike,
    lengths: ArrayLike,
    mean_NC: ArrayLike,
    rstd_NC: ArrayLike,
    *,
    num_timesteps: int,
    out: NDArray[np.float16] | None = None,
    num_threads: int = 1,
    check: bool = True,
) -> NDArray[np.float16]:
    """Decode chunks straight to z-scored patches: z = (x - mean) * rstd (docs/format.md, 2.6).

    Args:
        buffer: bytes that hold the chunks; needs no padding.
        offsets: (N,) int64, first byte of each chunk.
        lengths: (N,) int64, bytes of each chunk.
        mean_NC: (N, C) float32, ADC units.
        rstd_NC: (N, C) float32, 1 / ADC units; 0 gives patches of zeros.
        num_timesteps: T, the same for all.
        out: (N, P, 256) float16 to fill, or None.
        num_threads: threads to use.
        check: compare the checksums.
    Returns:
        (N, P, 256) float16; patch n = lead * T / 250 + column; entries 250 to 255 are 0.
    Raises:
        CodecError: a chunk is damaged (`index` says which) or has another shape.
    """
    data, at, size = _chunks(buffer, offsets, lengths)
    mean, rstd = _moments(mean_NC, len(at)), _moments(rstd_NC, len(at))
    num_leads = mean.shape[1]
    check_shape(num_leads, num_timesteps)
    if load() is None:
        shape = {"num_leads": num_leads, "num_timesteps": num_timesteps}
        signal = decode(data, at, size, **shape, check=check)
        return patches_from_int16(signal, mean, rstd, out=out)
    num_patches = num_leads * num_timesteps // COLUMN_TIMESTEPS
    out = _output(out, (len(at), num_patches, PATCH_WIDTH), np.float16)
    chunks = _describe(data, at, size, num_leads, num_timesteps)
    bad = ctypes.c_int64(-1)
    arrays = (address(mean), address(rstd), address(out))
    status = _library().ecgfast_decode_patches(
        ctypes.byref(chunks), *arrays, num_threads, check, ctypes.byref(bad)
    )
    _succeed(status, bad.value)
    return out


def patches_from_int16(
    signal_NCT: NDArray[np.int16],
    mean_NC: ArrayLike,
    rstd_NC: ArrayLike,
    *,
    out: NDArray[np.float16] | None = None,
    num_threads: int = 1,
) -> NDArray[np.float16]:
    """The patches of `decode_patches`, bit for bit, from records that are decoded already.

    Args:
        signal_NCT: (N, C, T) int16.
        mean_NC: (N, C) float32, ADC units.
        rstd_NC: (N, C) float32, 1 / ADC units.
        out: (N, P, 256) float16 to fill, or None.
        num_threads: threads to use.
    Returns:
        (N, P, 256) float16.
    Raises:
        CodecError: shapes or dtypes disagree.
    """
    signal = _signal(signal_NCT)
    num_records, num_leads, num_timesteps = signal.shape
    mean, rstd = _moments(mean_NC, num_records), _moments(rstd_NC, num_records)
    num_columns = num_timesteps // COLUMN_TIMESTEPS
    out = _output(out, (num_records, num_leads * num_columns, PATCH_WIDTH), np.float16)
    library = load()
    if library is None:
        z_NCT = (signal.astype(np.float32) - mean[..., None]) * rstd[..., None]
        out[..., COLUMN_TIMESTEPS:] = 0
        with np.errstate(over="ignore"):
            out[..., :COLUMN_TIMESTEPS] = z_NCT.reshape(*out.shape[:2], COLUMN_TIMESTEPS)
        return out
    arrays = (address(mean), address(rstd), address(out))
    library.ecgfast_patches(address(signal), *signal.shape, *arrays, num_threads)
    return out


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
    signal = _signal(signal_NCT)
    if valid is not None and valid.shape != signal.shape:
        raise CodecError(f"valid must have the signal's shape {signal.shape}, got {valid.shape}")
    use = None if valid is None else np.ascontiguousarray(valid, np.uint8)
    library = load()
    if library is None:
        return _statistics_slowly(signal, use)
    mean, std = (np.empty(signal.shape[:2], np.float32) for _ in range(2))
    mask = None if use is None else address(use)
    rows, timesteps = mean.size, signal.shape[2]
    library.ecgfast_lead_statistics(
        address(signal), mask, rows, timesteps, address(mean), address(std)
    )
    return mean, std


def crc32c(data: Buffer) -> int:
    """CRC-32C (Castagnoli) of some bytes."""
    array = np.frombuffer(data, np.uint8)
    library = load()
    if library is None:
        return reference.crc32c(array.tobytes())
    return int(library.ecgfast_crc32c(address(array), array.size))


def _library() -> ctypes.CDLL:
    library = load()
    assert library is not None
    return library


def _succeed(status: int, index: int = -1) -> None:
    if status != 0:
        raise CodecError.from_code(status, index)


def _signal(signal_NCT: NDArray[np.int16]) -> NDArray[np.int16]:
    if signal_NCT.ndim != 3 or signal_NCT.dtype != np.int16:
        raise CodecError(
            f"signal must be int16 (records, leads, timesteps), got {signal_NCT.dtype} "
            f"{signal_NCT.shape}"
        )
    check_shape(*signal_NCT.shape[1:])
    return np.ascontiguousarray(signal_NCT)


def _moments(values: ArrayLike, num_records: int) -> NDArray[np.float32]:
    array = np.ascontiguousarray(values, np.float32)
    if array.ndim != 2 or len(array) != num_records:
        raise CodecError(f"mean and rstd must be ({num_records}, leads), got {array.shape}")
    return array


def _chunks(
    buffer: Buffer, offsets: ArrayLike, lengths: ArrayLike
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    data = np.frombuffer(buffer, np.uint8)
    at, size = np.ascontiguousarray(offsets, np.int64), np.ascontiguousarray(lengths, np.int64)
    if at.ndim != 1 or at.shape != size.shape:
        raise CodecError(f"offsets and lengths must be (records,), got {at.shape}, {size.shape}")
    outside = np.flatnonzero((at < 0) | (size < 0) | (at > data.size - size))
    if outside.size:
        i = int(outside[0])
        raise CodecError(
            f"chunk {i} at {at[i]} with {size[i]} bytes lies outside the buffer of {data.size}",
            index=i,
        )
    return data, at, size


def _output(out: NDArray[Any] | None, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise CodecError(
            f"out must be C-contiguous {np.dtype(dtype)} {shape}, got {out.dtype} {out.shape}"
        )
    return out


def _describe(
    data: NDArray[np.uint8],
    at: NDArray[np.int64],
    size: NDArray[np.int64],
    num_leads: int,
    num_timesteps: int,
) -> Chunks:
    return Chunks(
        buffer=address(data),
        buffer_bytes=data.size,
        offsets=address(at),
        lengths=address(size),
        num_records=at.size,
        num_leads=num_leads,
        num_timesteps=num_timesteps,
    )


def _slices(
    data: NDArray[np.uint8], at: NDArray[np.int64], size: NDArray[np.int64]
) -> list[memoryview]:
    view = data.data
    return [view[a : a + s] for a, s in zip(at.tolist(), size.tolist(), strict=True)]


def _decode_slowly(
    chunk: memoryview, index: int, shape: tuple[int, ...], *, check: bool
) -> NDArray[np.int16]:
    try:
        return reference.decode_chunk(chunk, check=check, shape=shape)
    except CodecError as error:
        raise CodecError.from_code(error.code, index) from None


def _statistics_slowly(
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
