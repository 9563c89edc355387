"""Random access to the records of a store, straight from its shards."""

import hashlib
import os
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ecgfast_kernels.codec import CodecError
from numpy.typing import ArrayLike, NDArray

from ecgfast.errors import CorruptStoreError
from ecgfast.records import NUM_LEADS, NUM_TIMESTEPS
from ecgfast.store.format import (
    NEXT,
    QUARANTINE,
    RECORDS,
    SHARD_RECORDS,
    SHARDS,
    decode_chunks,
    lead_chunk_name,
    shard_name,
    with_crc32c,
)
from ecgfast.store.generations import as_of, generation_of, history_of, split_generation
from ecgfast.store.manifest import Manifest, read_file, read_manifest
from ecgfast.store.shard_table import ShardTable, read_shards
from ecgfast.store.shards import Shards
from ecgfast.store.table import read_records
from ecgfast.vocabulary import Codec

_BLOCK_RECORDS = 64  # decoded while their 2 MB of chunks are still in the cache

Chunks = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]


def open_store(path: str | Path) -> "StoreReader":
    """Open a finished store.

    Args:
        path: folder of the store; STORE@3 opens it as it was in generation 3.
    Raises:
        FormatError: no store, or one of another version.
        CorruptStoreError: the store is unfinished, or its manifest is damaged.
        ConfigError: it does not have that generation.
    """
    return StoreReader(*split_generation(Path(path)))


class StoreReader:
    """A finished store; safe to share between threads and to send to other processes.

    Attributes:
        path: folder of the store.
        manifest: content of manifest.json, checked, as it was in this generation.
        identity: digest of the signals and of how they were made; labels do not change it.
        generation: 1 for the first convert; each that appends makes another one.
        history: entries of the generations before, oldest first.
        is_newest: whether no generation comes after it.
        num_slots: rows of the arrays in signals.zarr; those that hold no record are holes.
        codec: "ecgpack", "zstd" or "none".
        num_leads: 12.
        num_timesteps: 5000.
    """

    num_leads = NUM_LEADS
    num_timesteps = NUM_TIMESTEPS

    def __init__(self, path: Path, generation: int | None = None, *, erasing: bool = False) -> None:
        self.path = path
        newest = read_manifest(path, erasing=erasing)
        self.manifest: Manifest = as_of(newest, generation, path)
        self.generation = generation_of(self.manifest)
        self.history = history_of(self.manifest)
        self.is_newest = self.generation == generation_of(newest)
        self._num_written: int = newest["num_records"]  # rows of records.parquet
        self.identity: str = self.manifest["identity"]
        self.codec: Codec = self.manifest["codec"]
        self._num_records: int = self.manifest["num_records"]
        self.num_slots: int = self.manifest.get("num_slots") or self._num_records

    def at(self, identity: str) -> "StoreReader":
        """The generation of an identity; this one where the store does not have it (any more)."""
        for entry in self.history:
            if entry["identity"] == identity:
                return StoreReader(self.path, entry["generation"])
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreReader, (self.path, self.generation)

    def __len__(self) -> int:
        return self._num_records

    def __repr__(self) -> str:
        return f"StoreReader({str(self.path)!r}, {len(self)} records, {self.codec})"

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards on disk, as they were sealed."""
        return int(pc.sum(self.shard_table.table["signal_bytes"]).as_py())

    @cached_property
    def slots(self) -> NDArray[np.int64]:
        """int64 (N,): the row of each record in the arrays of signals.zarr, ascending.

        Raises:
            CorruptStoreError: records.parquet and shards.parquet name other rows.
        """
        if self.num_slots == len(self):
            slots = np.arange(len(self))
        elif "row" not in self.records.column_names or self.records["row"].null_count:
            raise CorruptStoreError(f"{self.path}: {RECORDS} does not say which rows are records")
        else:
            slots = self.records["row"].to_numpy()
        if not self.shard_table.holds(slots, self.num_slots):
            raise CorruptStoreError(
                f"{self.path}: {RECORDS} and {SHARDS} name other rows; restore them from a copy"
            )
        return slots

    @cached_property
    def shard_table(self) -> ShardTable:
        """Sizes and digests of the files of every shard."""
        if self.manifest["version"] == 1:
            return ShardTable.of_format_1(self.manifest)
        where = f"{self.path}: {SHARDS}"
        table = read_shards(self._sealed(SHARDS), self._num_written, where)
        return table.up_to(self.num_slots)

    @cached_property
    def _shards(self) -> Shards:
        return Shards(self.path, self.slots, self.shard_table)

    @cached_property
    def records(self) -> pa.Table:
        """records.parquet: one row per record, in the order of the signals."""
        return self.columns()

    def columns(self, *names: str) -> pa.Table:
        """Some columns of records.parquet, which takes less memory than all; without names, all."""
        data, where = self._sealed(RECORDS), f"{self.path}: {RECORDS}"
        return read_records(data, self._num_written, where, names).slice(0, len(self))

    @cached_property
    def scale_uv(self) -> NDArray[np.float32]:
        """float32 (N, 12): microvolt = (adc - offset_adc) * scale_uv."""
        return self._lead_array("scale_uv")

    @cached_property
    def offset_adc(self) -> NDArray[np.float32]:
        """float32 (N, 12), ADC units."""
        return self._lead_array("offset_adc")

    @cached_property
    def lead_mean(self) -> NDArray[np.float32]:
        """float32 (N, 12), ADC units, invalid timesteps left out."""
        return self._lead_array("lead_mean")

    @cached_property
    def lead_std(self) -> NDArray[np.float32]:
        """float32 (N, 12), ADC units, population standard deviation."""
        return self._lead_array("lead_std")

    def read(
        self, indices: ArrayLike, *, check: bool = True, num_threads: int = 1
    ) -> NDArray[np.int16]:
        """Decode records.

        Args:
            indices: record numbers, any order, repeats allowed.
            check: compare checksums; False is safe only after `ecgfast verify`.
            num_threads: threads of the ecgpack decoder.
        Returns:
            int16 (n, 12, 5000), ADC units.
        Raises:
            CorruptStoreError: a chunk is missing or damaged; names record and shard.
            IndexError: a number is outside the store.
        """
        index = self._checked_indices(indices)
        signal = np.empty((index.size, NUM_LEADS, NUM_TIMESTEPS), np.int16)
        block = _BLOCK_RECORDS * num_threads
        for start in range(0, index.size, block):
            part = slice(start, start + block)
            self._decode(index[part], signal[part], check=check, num_threads=num_threads)
        return signal

    def _decode(
        self, index: NDArray[np.int64], out: NDArray[np.int16], *, check: bool, num_threads: int
    ) -> None:
        chunks = self._shards.read(index)
        try:
            decode_chunks(self.codec, *chunks, out=out, check=check, num_threads=num_threads)
        except CodecError as error:
            record = int(index[error.index])
            where = f"record {record} in {shard_name(int(self.slots[record]) // SHARD_RECORDS)}"
            raise CorruptStoreError(f"{self.path}: {where} is damaged: {error}") from error

    def read_chunks(self, indices: ArrayLike) -> Chunks:
        """Read the encoded bytes of records, neighbours in one call.

        Args:
            indices: record numbers, any order, repeats allowed.
        Returns:
            buffer uint8 (bytes,), offsets int64 (n,), lengths int64 (n,), in that order.
        """
        return self._shards.read(self._checked_indices(indices))

    def load_chunks(self, indices: ArrayLike | None = None) -> Chunks:
        """Read the encoded bytes of the whole store, or of a selection, by large sequential reads.

        Returns:
            as `read_chunks`; the buffer holds the selection packed, to stay in memory for a run.
        """
        return self.read_chunks(np.arange(len(self)) if indices is None else indices)

    def check_digests(self, indices: ArrayLike | None = None) -> None:
        """Compare the shards of some records with the manifest's digests, each once per process.

        A chunk's checksum does not cover its position: only the digest of its shard finds another
        record in its place. About 1 s for 3 GB; logged when it takes longer.

        Args:
            indices: record numbers; None: all.
        Raises:
            CorruptStoreError: names the first shard that is not the manifest's.
        """
        index = np.arange(len(self)) if indices is None else self._checked_indices(indices)
        start = time.monotonic()
        num_bytes = self._shards.check_digests(index)
        seconds = time.monotonic() - start
        if seconds >= 1:
            from ecgfast import log  # with it comes rich, which no worker needs

            log.info(f"{self.path}: digests of {num_bytes / 1e9:.1f} GB compared ({seconds:.0f} s)")

    def _checked_indices(self, indices: ArrayLike) -> NDArray[np.int64]:
        index = np.asarray(indices)
        if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
            raise IndexError(
                f"record numbers must be a list of integers, got {index.dtype} {index.shape}; "
                "read one record with read([i])"
            )
        index = index.astype(np.int64, copy=False)
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(
                f"record numbers must be in [0, {len(self)}), got {index.min()} to {index.max()}"
            )
        return index

    def _lead_array(self, name: str) -> NDArray[np.float32]:
        leads = np.empty((len(self), NUM_LEADS), np.float32)
        shards, firsts = np.unique(self.slots // SHARD_RECORDS, return_index=True)
        for shard, first, last in zip(shards, firsts, [*firsts[1:], len(self)], strict=True):
            chunk, entry = lead_chunk_name(name, shard), self.shard_table.entry(int(shard), name)
            data = read_file(self.path / chunk, entry["bytes"])
            if with_crc32c(data[:-4]) != data:
                raise CorruptStoreError(f"{self.path}: the checksum of {chunk} is wrong")
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise CorruptStoreError(
                    f"{self.path}: {chunk} is not what the manifest says: it is of another store "
                    "or place"
                )
            rows = np.frombuffer(data[:-4], "<f4").reshape(SHARD_RECORDS, NUM_LEADS)
            leads[first:last] = rows[self.slots[first:last] - shard * SHARD_RECORDS]
        return leads

    @property
    def quarantine(self) -> bytes:
        """quarantine.csv, as it was written.

        Raises:
            CorruptStoreError: it is missing or damaged.
        """
        return self._sealed(QUARANTINE)

    def _sealed(self, name: str) -> bytes:
        """Read a file that has its digest in the manifest: it, or the next, not yet renamed.

        The quarantine.csv of an earlier generation is the first part of today's.
        """
        entry, grows = self._entry(name), name == QUARANTINE and not self.is_newest
        for path in (self.path / name, self.path / f"{name}{NEXT}"):
            with suppress(CorruptStoreError):
                data = read_file(path, entry["bytes"], or_more=grows)
                if hashlib.sha256(data).hexdigest() == entry["sha256"]:
                    return data
        raise CorruptStoreError(
            f"{self.path}: {name} is missing or damaged: its digest is wrong; restore it from a "
            "copy or convert again"
        )

    def _entry(self, name: str) -> dict[str, Any]:
        entry: dict[str, Any] = self.manifest["files"][name]
        return entry


def available_cores() -> int:
    """Cores that this process may use; containers and batch systems allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def as_store(store: "StoreReader | str | Path") -> StoreReader:
    """The reader itself, or the store opened at a path."""
    return store if isinstance(store, StoreReader) else open_store(store)
