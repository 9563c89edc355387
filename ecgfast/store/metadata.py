"""The zarr.json files of signals.zarr, made by zarr-python itself."""

from pathlib import Path
from typing import Any

import zarr
from zarr.abc.codec import ArrayBytesCodec, BytesBytesCodec
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from ecgfast.records import LEADS, SAMPLING_RATE_HZ
from ecgfast.store.durable import write_durably
from ecgfast.store.format import (
    CHUNK_SHAPE,
    LEAD_ARRAYS,
    SHARD_RECORDS,
    SHARD_SHAPE,
    SIGNALS,
    ZSTD_LEVEL,
    Codec,
)
from ecgfast.store.zarr_codec import EcgpackCodec


def write_metadata(store: Path, codec: Codec, num_records: int) -> dict[str, dict[str, Any]]:
    """Write every zarr.json, atomically and synced.

    zarr-python writes into memory, because on disk it neither syncs nor replaces atomically.

    Returns:
        their manifest entries.
    """
    content: dict[str, Buffer] = {}
    attributes = {
        "leads": list(LEADS),
        "sampling_rate_hz": SAMPLING_RATE_HZ,
        "microvolt": "(signal - offset_adc) * scale_uv",
    }
    group = zarr.create_group(MemoryStore(content), attributes=attributes)
    serializer, compressors = _codecs(codec)
    encoding: dict[str, Any] = {"name": "default", "separator": "."}  # one flat folder per array
    group.create_array(
        "signal",
        shape=(num_records, *CHUNK_SHAPE[1:]),
        dtype="int16",
        chunks=CHUNK_SHAPE,
        shards=SHARD_SHAPE,
        serializer=serializer,
        compressors=compressors,
        filters=(),
        fill_value=0,
        chunk_key_encoding=encoding,
        dimension_names=("record", "lead", "timestep"),
    )
    for name in LEAD_ARRAYS:
        group.create_array(
            name,
            shape=(num_records, len(LEADS)),
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
        f"{SIGNALS}/{name}": write_durably(store / SIGNALS / name, [data.to_bytes()])
        for name, data in sorted(content.items())
    }


def _codecs(codec: Codec) -> tuple[ArrayBytesCodec, tuple[BytesBytesCodec, ...]]:
    if codec == "ecgpack":
        return EcgpackCodec(), ()
    if codec == "zstd":
        return BytesCodec(endian="little"), (ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec())
    return BytesCodec(endian="little"), (Crc32cCodec(),)
