"""What a store looks like on disk: names, shapes, codecs and the shard index."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from ecgfast_kernels.codec import crc32c
from numpy.typing import NDArray

from ecgfast.errors import ConfigError, CorruptStoreError
from ecgfast.records import NUM_LEADS, NUM_TIMESTEPS

Codec = Literal["ecgpack", "zstd", "none"]

FORMAT = "ecgfast-store"
FORMAT_VERSION = 1
CODECS: tuple[Codec, ...] = ("ecgpack", "zstd", "none")
ECGPACK = "ecgfast.ecgpack"  # the codec's name in zarr.json
ZSTD_LEVEL = 3

SHARD_RECORDS = 1024
CHUNK_SHAPE = (1, NUM_LEADS, NUM_TIMESTEPS)
SHARD_SHAPE = (SHARD_RECORDS, NUM_LEADS, NUM_TIMESTEPS)
LEAD_ARRAYS = ("scale_uv", "offset_adc", "lead_mean", "lead_std")  # float32 (N, 12)

ROW_TYPES = {  # columns of records.parquet, with the names that Arrow has for types
    "record_id": "string",
    "patient_id": "string",
    "site": "string",
    "split": "string",
    "fold": "int64",
    "age": "float64",
    "sex": "string",
    "ejection_fraction": "float64",
    "format": "string",
    "original_rate_hz": "float64",
    "original_timesteps": "int64",
    "start_timestep": "int64",
    "invalid_share": "float64",
    "quantisation_error_uv": "float64",
    "einthoven_uv": "float64",
    "flags": "string",
    "content": "string",
    "duplicate_of": "string",
}
# Columns that wait for the end of a conversion beside those, and enter no store.
WAITING_TYPES = {
    "labels": "string",
    "position": "int64",
    "patient_key": "string",
    "fingerprint": "binary",
    "segments": "string",
    "left_out": "string",
}
SOURCES_COLUMNS = (  # beside the store
    *("record_id", "source", "recorded", "record", "patient"),
    "detail",  # why an input was refused, in words that can hold names
)
QUARANTINE_COLUMNS = ("record_id", "format", "reason")

MANIFEST = "manifest.json"
RECORDS = "records.parquet"
NEXT_RECORDS = "records.parquet.next"  # while labels are joined; counts if the manifest says so
QUARANTINE = "quarantine.csv"
SIGNALS = "signals.zarr"

# Shard index: (offset u64, bytes u64) per chunk, then crc32c, at the end of the shard file.
NOT_WRITTEN = np.uint64(2**64 - 1)
INDEX_BYTES = SHARD_RECORDS * 16 + 4


def shard_name(shard: int) -> str:
    """Path of one shard file of the signal, relative to the store."""
    return f"{SIGNALS}/signal/c.{shard}.0.0"


def lead_chunk_name(array: str, shard: int) -> str:
    """Path of the chunk of a (N, 12) array that belongs to one shard, relative to the store."""
    return f"{SIGNALS}/{array}/c.{shard}.0"


def zarr_metadata_names() -> tuple[str, ...]:
    """Paths of every zarr.json, relative to the store."""
    arrays = (f"{SIGNALS}/{name}/zarr.json" for name in ("signal", *LEAD_ARRAYS))
    return (f"{SIGNALS}/zarr.json", *arrays)


def num_shards(num_records: int) -> int:
    """Shard files that hold `num_records`."""
    return -(-num_records // SHARD_RECORDS)


def beside(store: Path, suffix: str) -> Path:
    """The path STORE + suffix; a store given as . or .. is named by its folder.

    Raises:
        ConfigError: nothing can lie beside it, as with /.
    """
    named = store if store.name not in ("", "..") else store.resolve()
    if not named.name:
        raise ConfigError(f"a store must be a folder with a name, got {str(store)!r}")
    return named.with_name(named.name + suffix)


def refuse_inside_store(path: Path, option: str) -> None:
    """Refuse an output inside a store: it would be shared with it, and `verify` would refuse it.

    Args:
        path: of the output.
        option: that named it.
    Raises:
        ConfigError: a folder above it, or itself, is a store.
    """
    place = path.resolve()
    for folder in (place, *place.parents):
        if (folder / SIGNALS).is_dir():
            raise ConfigError(
                f"{option} {path} lies in the store {folder}, which holds nothing else and is "
                "meant to be shared; choose a place outside"
            )


def refuse_to_replace(path: Path, option: str, begins: bytes, what: str) -> None:
    """Refuse an output over a file that no earlier call wrote: it may be an ECG, or a key.

    Args:
        path: of the output.
        option: that named it.
        begins: first bytes of what is written there.
        what: that is.
    Raises:
        ConfigError: it is such a file.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        if file.read(len(begins)) != begins:
            raise ConfigError(
                f"{option} {path} exists and is no {what}; choose another name, or remove it"
            )


def key_beside(store: Path) -> Path:
    """The pseudonym key of a store: beside it, never in it."""
    return beside(store, ".key")


def sources_beside(store: Path) -> Path:
    """The table from record_id to readable path: beside the store, never in it."""
    return beside(store, ".sources.csv")


def passed_over_beside(store: Path) -> Path:
    """The table of examples of source files that nothing read: beside the store, never in it."""
    return beside(store, ".passed_over.csv")


def with_crc32c(data: bytes) -> bytes:
    """The data with its little-endian CRC32C behind it, as Zarr's crc32c codec writes it."""
    return data + crc32c(data).to_bytes(4, "little")


def pack_shard_index(lengths: Sequence[int]) -> bytes:
    """The index of a shard whose chunks lie one behind another from its first byte.

    Args:
        lengths: bytes of each chunk in order, at most 1024 of them.
    """
    index = np.full((SHARD_RECORDS, 2), NOT_WRITTEN, "<u8")
    ends = np.cumsum(lengths, dtype=np.uint64)
    index[: len(lengths), 1] = lengths
    index[: len(lengths), 0] = ends - index[: len(lengths), 1]
    return with_crc32c(index.tobytes())


def parse_shard_index(
    index: bytes, *, num_chunks: int, data_bytes: int, where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Check a shard index and return where its chunks lie.

    Args:
        index: the last `INDEX_BYTES` of the shard file.
        num_chunks: chunks that the shard must hold.
        data_bytes: size of the shard file without its index.
        where: the shard's name, for messages.
    Returns:
        offsets and lengths, int64 (num_chunks,).
    Raises:
        CorruptStoreError: wrong checksum, a missing chunk, or a range outside the file.
    """
    if len(index) != INDEX_BYTES or with_crc32c(index[:-4]) != index:
        raise CorruptStoreError(
            f"{where}: the checksum of the shard index is wrong; the file is damaged"
        )
    table = np.frombuffer(index, "<u8", count=2 * SHARD_RECORDS).reshape(-1, 2)[:num_chunks]
    missing = np.flatnonzero((table == NOT_WRITTEN).any(axis=1))
    if missing.size:
        raise CorruptStoreError(f"{where}: chunk {missing[0]} is missing; the store is damaged")
    limit = np.uint64(data_bytes)
    if (table > limit).any() or (table.sum(axis=1) > limit).any() or (table[:, 1] == 0).any():
        raise CorruptStoreError(
            f"{where}: the shard index points outside the file of {data_bytes} bytes"
        )
    offsets, lengths = table.astype(np.int64).T
    return np.ascontiguousarray(offsets), np.ascontiguousarray(lengths)
