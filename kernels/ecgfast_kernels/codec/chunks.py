"""Encodes and decodes chunks: many records per call, native where it was built, else NumPy.

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
    CRC,
    FLAG_RAW,
    NO_QUANTUM,
    PATCH_WIDTH,
    CodecError,
    Header,
    check_shape,
)
from ecgfast_kernels.codec.native import Chunks, address, int16_signal, load
from ecgfast_kernels.codec.reference_encode import encode_chunk

Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]

_ENCODE_BLOCK = 32  # records per native call: a buffer of 4 MB for the longest chunks


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
    signal = int16_signal(signal_NCT)
    num_records, num_leads, num_timesteps = signal.shape
    library = load()
    if library is None:
        return [encode_chunk(record) for record in signal]
    bound = library.ecgfast_encode_bound(num_leads, num_timesteps)
    buffer = np.empty((min(num_records, _ENCODE_BLOCK), bound), np.uint8)
    lengths = np.empty(len(buffer), np.int64)
    shape = (num_leads, num_timesteps)
    chunks: list[bytes] = []
    for start in range(0, num_records, _ENCODE_BLOCK):
        block = signal[start : start + _ENCODE_BLOCK]
        target = (address(buffer), bound, address(lengths), num_threads)
        _succeed(library.ecgfast_encode(address(block), len(block), *shape, *target))
        chunks += [buffer[i, : lengths[i]].tobytes() for i in range(len(block))]
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
        CodecError: a chunk is damaged (`index` is its number) or has another shape.
    """
    data, at, size = _chunks(buffer, offsets, lengths)
    check_shape(num_leads, num_timesteps)
    out = _output(out, (len(at), num_leads, num_timesteps), np.int16)
    library = load()
    if library is None:
        for i, (start, length) in enumerate(zip(at.tolist(), size.tolist(), strict=True)):
            chunk = data.data[start : start + length]
            try:
                out[i] = reference.decode_chunk(chunk, check=check, shape=out.shape[1:])
            except CodecError as error:
                raise CodecError.from_code(error.code, i) from None
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
        CodecError: a chunk is damaged (`index` is its number) or has another shape.
    """
    data, at, size = _chunks(buffer, offsets, lengths)
    mean, rstd = _moments(mean_NC, len(at)), _moments(rstd_NC, len(at))
    num_leads = mean.shape[1]
    check_shape(num_leads, num_timesteps)
    library = load()
    if library is None:
        shape = {"num_leads": num_leads, "num_timesteps": num_timesteps}
        signal = decode(data, at, size, **shape, check=check)
        return patches_from_int16(signal, mean, rstd, out=out)
    num_patches = num_leads * num_timesteps // COLUMN_TIMESTEPS
    out = _output(out, (len(at), num_patches, PATCH_WIDTH), np.float16)
    chunks = _describe(data, at, size, num_leads, num_timesteps)
    bad = ctypes.c_int64(-1)
    arrays = (address(mean), address(rstd), address(out))
    status = library.ecgfast_decode_patches(
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
    signal = int16_signal(signal_NCT)
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


def raw_chunks(
    signal_NCT: NDArray[np.int16],
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Write records as chunks of the RAW kind, uncompressed, for decoders that take only chunks.

    Args:
        signal_NCT: (N, C, T) int16, as for `encode`.
    Returns:
        The chunks' bytes, and offset and length of each, (N,) int64.
    Raises:
        CodecError: as `encode`.
    """
    signal = int16_signal(signal_NCT)
    num_records, num_leads, num_timesteps = signal.shape
    header = Header(
        flags=FLAG_RAW, num_timesteps=num_timesteps, num_leads=num_leads, quantum=NO_QUANTUM
    )
    heads = np.tile(np.frombuffer(header.pack(), np.uint8), (num_records, 1))
    values = signal.astype("<i2", copy=False).reshape(num_records, -1).view(np.uint8)
    chunks = np.concatenate([heads, values], axis=1)
    for chunk in chunks:
        chunk[CRC] = np.frombuffer(crc32c(chunk).to_bytes(4, "little"), np.uint8)
    lengths = np.full(num_records, header.raw_bytes, np.int64)
    return chunks.reshape(-1), np.arange(num_records, dtype=np.int64) * header.raw_bytes, lengths


def check_crcs(
    buffer: NDArray[np.uint8], offsets: NDArray[np.int64], lengths: NDArray[np.int64]
) -> None:
    """Compare the checksums of chunks, for decoders that do not.

    Args:
        buffer: bytes that hold the chunks; written to while this runs, the same afterwards.
        offsets: (N,) int64, first byte of each chunk.
        lengths: (N,) int64, bytes of each chunk.
    Raises:
        CodecError: a checksum differs (code 4); `index` is its number.
    """
    for i, (start, length) in enumerate(zip(offsets.tolist(), lengths.tolist(), strict=True)):
        chunk = buffer[start : start + length]
        stored = chunk[CRC].copy()
        chunk[CRC] = 0  # while the sum is made: a copy would cost more than the sum
        crc = crc32c(chunk)
        chunk[CRC] = stored
        if crc.to_bytes(4, "little") != stored.tobytes():
            raise CodecError.from_code(4, i)


def crc32c(data: Buffer) -> int:
    """CRC-32C (Castagnoli) of some bytes."""
    array = np.frombuffer(data, np.uint8)
    library = load()
    if library is None:
        return reference.crc32c(array.tobytes())
    return int(library.ecgfast_crc32c(address(array), array.size))


def _succeed(status: int, index: int = -1) -> None:
    if status != 0:
        raise CodecError.from_code(status, index)


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
