"""Encode and decode the chunks of a store: one record each, by the store's codec."""

from typing import TYPE_CHECKING

import numpy as np
from ecgfast_kernels import codec as ecgpack
from ecgfast_kernels.codec import CodecError, crc32c
from numpy.typing import NDArray

from ecgfast.records import NUM_LEADS, NUM_TIMESTEPS
from ecgfast.store.format import ZSTD_LEVEL, Codec, with_crc32c

if TYPE_CHECKING:
    import pyarrow as pa

RECORD_BYTES = NUM_LEADS * NUM_TIMESTEPS * 2


def encode_chunks(codec: Codec, signal_NCT: NDArray[np.int16]) -> list[bytes]:
    """Encode records, one chunk each.

    Args:
        codec: "ecgpack", "zstd" or "none".
        signal_NCT: (N, 12, 5000) int16, ADC units.
    """
    if codec == "ecgpack":
        return ecgpack.encode(signal_NCT)
    raw = (np.ascontiguousarray(record, "<i2").tobytes() for record in signal_NCT)
    if codec == "zstd":
        zstd = _zstd()
        raw = (zstd.compress(data, asbytes=True) for data in raw)
    return [with_crc32c(data) for data in raw]


def decode_chunks(
    codec: Codec,
    buffer: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    lengths: NDArray[np.int64],
    *,
    out: NDArray[np.int16] | None = None,
    check: bool = True,
    num_threads: int = 1,
) -> NDArray[np.int16]:
    """Decode the chunks that lie in a buffer.

    Args:
        codec: "ecgpack", "zstd" or "none".
        buffer: (bytes,) uint8.
        offsets: (n,) int64, first byte of each chunk in `buffer`.
        lengths: (n,) int64, bytes.
        out: (n, 12, 5000) int16 to fill, or None for a new array.
        check: compare checksums.
        num_threads: threads of the ecgpack decoder.
    Returns:
        (n, 12, 5000) int16, ADC units.
    Raises:
        CodecError: a chunk is damaged.
    """
    if codec == "ecgpack":
        return ecgpack.decode(
            buffer,
            offsets,
            lengths,
            num_leads=NUM_LEADS,
            num_timesteps=NUM_TIMESTEPS,
            out=out,
            num_threads=num_threads,
            check=check,
        )
    if out is None:
        out = np.empty((len(offsets), NUM_LEADS, NUM_TIMESTEPS), np.int16)
    zstd = _zstd() if codec == "zstd" else None
    for n, (start, length) in enumerate(zip(offsets.tolist(), lengths.tolist(), strict=True)):
        out[n] = _decode_one(buffer[start : start + length], zstd, index=n, check=check)
    return out


def _zstd() -> "pa.Codec":
    import pyarrow as pa  # no worker that encodes ecgpack needs it

    return pa.Codec("zstd", compression_level=ZSTD_LEVEL)


def _decode_one(
    chunk: NDArray[np.uint8], zstd: "pa.Codec | None", *, index: int, check: bool
) -> NDArray[np.int16]:
    data, checksum = chunk[:-4], chunk[-4:]
    if check and crc32c(data) != int.from_bytes(checksum.tobytes(), "little"):
        raise CodecError("the checksum of the chunk is wrong", index=index)
    if zstd is not None:
        try:
            data = np.frombuffer(zstd.decompress(data, RECORD_BYTES), np.uint8)
        except OSError as error:  # what pyarrow raises on a damaged frame
            raise CodecError(f"the zstd frame is damaged: {error}", index=index) from error
    if data.size != RECORD_BYTES:
        reason = f"the chunk holds {data.size} bytes, expected {RECORD_BYTES}"
        raise CodecError(reason, index=index)
    return data.view("<i2").reshape(NUM_LEADS, NUM_TIMESTEPS)
