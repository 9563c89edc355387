"""ecgpack as a Zarr v3 codec, and the zarr.json files of a store, made by zarr-python itself.

`zarr.open_group` reads a store wherever ecgfast is installed.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from ecgfast_kernels import codec as ecgpack
from zarr.abc.codec import ArrayBytesCodec, BytesBytesCodec
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import register_codec
from zarr.storage import MemoryStore

from ecgfast.errors import ShapeError
from ecgfast.records import INVALID, LEADS, SAMPLING_RATE_HZ
from ecgfast.store.durable import write_durably
from ecgfast.store.format import (
    CHUNK_SHAPE,
    ECGPACK,
    LEAD_ARRAYS,
    SHARD_RECORDS,
    SHARD_SHAPE,
    SIGNALS,
    ZSTD_LEVEL,
)
from ecgfast.vocabulary import Codec


@dataclass(frozen=True)
class EcgpackCodec(ArrayBytesCodec):
    """One chunk of int16 (n, C, T) with n = 1 to its ecgpack bytes and back."""

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Build the codec from its entry in zarr.json, which has no configuration."""
        if data.get("name") != ECGPACK:
            raise ValueError(f"codec name must be {ECGPACK!r}, got {data.get('name')!r}")
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """The codec's entry in zarr.json."""
        return {"name": ECGPACK}

    def compute_encoded_size(self, _input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        """Not known before encoding."""
        raise NotImplementedError

    def _encode_sync(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        _one_record(chunk_spec)
        signal = np.ascontiguousarray(chunk_data.as_numpy_array(), np.int16)
        return chunk_spec.prototype.buffer.from_bytes(ecgpack.encode(signal)[0])

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        leads, timesteps = _one_record(chunk_spec)
        data = chunk_data.as_numpy_array()
        start, length = np.zeros(1, np.int64), np.array([data.size], np.int64)
        signal = ecgpack.decode(data, start, length, num_leads=leads, num_timesteps=timesteps)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(signal)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(self._encode_sync, chunk_data, chunk_spec)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_data, chunk_spec)


def _one_record(spec: ArraySpec) -> tuple[int, int]:
    if len(spec.shape) != 3 or spec.shape[0] != 1:
        raise ShapeError(f"ecgpack chunks must have shape (1, leads, timesteps), got {spec.shape}")
    return spec.shape[1], spec.shape[2]


# For source checkouts; an installation announces the codec by its entry point.
register_codec(ECGPACK, EcgpackCodec)


def write_metadata(
    store: Path, codec: Codec, *, num_slots: int, num_records: int, suffix: str = ""
) -> dict[str, dict[str, Any]]:
    """Write every zarr.json, atomically and synced.

    zarr-python writes into memory, because on disk it neither syncs nor replaces atomically.

    Args:
        store: its folder.
        codec: of the chunks.
        num_slots: rows of the arrays.
        num_records: of them, records.
        suffix: behind the names of the files, `NEXT` where they are to replace others.
    Returns:
        their manifest entries.
    """
    content: dict[str, Buffer] = {}
    attributes = {
        "leads": list(LEADS),
        "sampling_rate_hz": SAMPLING_RATE_HZ,
        "microvolt": "(signal - offset_adc) * scale_uv",
        "holes": num_slots - num_records,
        "rows": f"records.parquet has the row of each record; other rows are holes, all {INVALID}",
    }
    group = zarr.create_group(MemoryStore(content), attributes=attributes)
    serializer, compressors = _codecs(codec)
    encoding: dict[str, Any] = {"name": "default", "separator": "."}  # one flat folder per array
    group.create_array(
        "signal",
        shape=(num_slots, *CHUNK_SHAPE[1:]),
        dtype="int16",
        chunks=CHUNK_SHAPE,
        shards=SHARD_SHAPE,
        serializer=serializer,
        compressors=compressors,
        filters=(),
        fill_value=INVALID,
        chunk_key_encoding=encoding,
        dimension_names=("record", "lead", "timestep"),
    )
    for name in LEAD_ARRAYS:
        group.create_array(
            name,
            shape=(num_slots, len(LEADS)),
            dtype="float32",
            chunks=(SHARD_RECORDS, len(LEADS)),
            serializer=BytesCodec(endian="little"),
            compressors=(Crc32cCodec(),),
            filters=(),
            fill_value=0,
            chunk_key_encoding=encoding,
            dimension_names=("record", "lead"),
        )
    return {
        f"{SIGNALS}/{name}": write_durably(store / SIGNALS / f"{name}{suffix}", [data.to_bytes()])
        for name, data in sorted(content.items())
    }


def _codecs(codec: Codec) -> tuple[ArrayBytesCodec, tuple[BytesBytesCodec, ...]]:
    if codec == "ecgpack":
        return EcgpackCodec(), ()
    if codec == "zstd":
        return BytesCodec(endian="little"), (ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec())
    return BytesCodec(endian="little"), (Crc32cCodec(),)
