"""Shards: their indexes, and reading many chunks with few calls."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import CorruptStoreError
from ecgfast.store.format import SHARD_RECORDS, address_of, shard_name, with_crc32c
from ecgfast.store.manifest import open_regular
from ecgfast.store.objects import Objects, at
from ecgfast.store.shard_table import ShardTable

# Shard index: (offset u64, bytes u64) per chunk, then crc32c, at the end of the shard file.
NOT_WRITTEN = np.uint64(2**64 - 1)
INDEX_BYTES = SHARD_RECORDS * 16 + 4

# Chunks this near to each other are read in one call: a page more is cheaper than a system call.
_GAP_BYTES = 4096
_ALIGNMENT = 16  # of each range in the buffer, for vector loads
_OPEN_FILES = 256
_REQUESTS = 64  # at a time, one for each shard
_HASHING_THREADS = 4  # 1.5 GB/s each with SHA instructions, as fast as most disks


def pack_shard_index(rows: Sequence[int], lengths: Sequence[int]) -> bytes:
    """The index of a shard whose chunks lie one behind another from its first byte.

    Args:
        rows: of each chunk in the shard, ascending, 0 to 1023; others are holes.
        lengths: bytes of each chunk.
    """
    index = np.full((SHARD_RECORDS, 2), NOT_WRITTEN, "<u8")
    ends = np.cumsum(lengths, dtype=np.uint64)
    index[rows, 1] = lengths
    index[rows, 0] = ends - index[rows, 1]
    return with_crc32c(index.tobytes())


def parse_shard_index(
    index: bytes, *, rows: NDArray[np.int64], data_bytes: int, where: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Check a shard index and return where its chunks lie.

    Args:
        index: the last `INDEX_BYTES` of the shard file.
        rows: (n,) int64, of the records in the shard, each of which must have a chunk.
        data_bytes: size of the shard file without its index.
        where: the shard's name, for messages.
    Returns:
        offsets and lengths, int64 (n,).
    Raises:
        CorruptStoreError: wrong checksum, a missing chunk, or a range outside the file.
    """
    if len(index) != INDEX_BYTES or with_crc32c(index[:-4]) != index:
        raise CorruptStoreError(
            f"{where}: the checksum of the shard index is wrong; the file is damaged"
        )
    table = np.frombuffer(index, "<u8", count=2 * SHARD_RECORDS).reshape(-1, 2)[rows]
    missing = np.flatnonzero((table == NOT_WRITTEN).any(axis=1))
    if missing.size:
        raise CorruptStoreError(
            f"{where}: chunk {rows[missing[0]]} is missing; the store is damaged"
        )
    limit = np.uint64(data_bytes)
    if (table > limit).any() or (table.sum(axis=1) > limit).any() or (table[:, 1] == 0).any():
        raise CorruptStoreError(
            f"{where}: the shard index points outside the file of {data_bytes} bytes"
        )
    offsets, lengths = table.astype(np.int64).T
    return np.ascontiguousarray(offsets), np.ascontiguousarray(lengths)


class ShardObject:
    """A shard in object storage: what a `ShardFile` does, by requests."""

    def __init__(self, objects: Objects, name: str) -> None:
        self._objects, self._name = objects, name

    def read_end(self, num_bytes: int) -> tuple[int, bytes]:
        """Size of the object, and its last bytes."""
        return self._objects.read_end(self._name, num_bytes)

    def sha256(self) -> str:
        """Digest of the object, in hex."""
        return self._objects.sha256(self._name)

    def read_parts(self, parts: Sequence[tuple[memoryview, int]]) -> None:
        """Fill each target from its offset on."""
        starts = [start for _, start in parts]
        ends = [start + len(target) for target, start in parts]
        found = self._objects.read_ranges(self._name, starts, ends)
        for (target, _), content in zip(parts, found, strict=True):
            if len(content) != len(target):
                raise CorruptStoreError(f"{self._objects.url}/{self._name} ends too early")
            target[:] = content


class ShardFile:
    """An open shard file; closed with its last user, so that no descriptor is reused too early."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = open_regular(path)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def read_end(self, num_bytes: int) -> tuple[int, bytes]:
        """Size of the file, and its last bytes."""
        size = os.fstat(self._fd).st_size
        return size, os.pread(self._fd, num_bytes, max(size - num_bytes, 0))

    def sha256(self) -> str:
        """Digest of the file, in hex."""
        with open(os.dup(self._fd), "rb") as file:  # shares the position, which preadv ignores
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read_parts(self, parts: Sequence[tuple[memoryview, int]]) -> None:
        """Fill each target from its offset on.

        Raises:
            CorruptStoreError: the file ends too early.
        """
        for target, offset in parts:
            done = 0
            while done < len(target):  # one call delivers at most 2 GiB
                got = os.preadv(self._fd, [target[done:]], offset + done)
                if got == 0:
                    raise CorruptStoreError(f"{self.path} ends too early; the store is damaged")
                done += got


@dataclass(slots=True)
class _Run:
    """Neighbours that are read in one call: bytes `start` to `end` of a shard's file."""

    shard: int
    start: int
    end: int
    place: int  # of the first byte in the buffer

    @property
    def place_end(self) -> int:
        return self.place + self.end - self.start


class Shards:
    """Chunk positions of all records, loaded shard by shard on first use.

    Args:
        store: folder of the store.
        slots: (N,) int64, row of each record in the arrays, ascending.
        table: sizes and digests of the shards.
    """

    def __init__(self, store: Path, slots: NDArray[np.int64], table: ShardTable) -> None:
        self._store, self._slots, self._table = store, slots, table
        # Untouched pages of these cost no memory: 16 bytes per record that is really visited.
        self._offsets = np.empty(len(slots), np.int64)
        self._lengths = np.empty(len(slots), np.int64)
        self._loaded = np.zeros(int(slots.max(initial=0)) // SHARD_RECORDS + 1, bool)
        self._compared = np.zeros_like(self._loaded)
        self._files: OrderedDict[int, ShardFile | ShardObject] = OrderedDict()
        self._lock = threading.Lock()

    def locate(
        self, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Shard, offset in its file and length of the chunks of some records, int64 (n,) each."""
        shards = self._slots[indices] // SHARD_RECORDS
        self._each(self._load, np.unique(shards[~self._loaded[shards]]).tolist())
        return shards, self._offsets[indices], self._lengths[indices]

    def check_digests(self, indices: NDArray[np.int64]) -> int:
        """Compare the shards of some records with the digests in the manifest, each once.

        Args:
            indices: record numbers.
        Returns:
            bytes that were compared.
        Raises:
            CorruptStoreError: names the first shard that is not the manifest's.
        """
        shards = np.unique(self._slots[indices] // SHARD_RECORDS)
        due = shards[~self._compared[shards]].tolist()
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            return sum(pool.map(self._compare, due))

    def _compare(self, shard: int) -> int:
        name, file = shard_name(shard), self._file(shard)
        if file.sha256() != self._table.entry(shard)["sha256"]:
            raise CorruptStoreError(
                f"{self._store}: {name} is not what the manifest says: it is damaged, or of "
                "another store or place; restore it from a copy or convert again"
            )
        self._compared[shard] = True
        return int(self._table.entry(shard)["bytes"])

    def read(
        self, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Read the chunks of some records, neighbours together.

        Args:
            indices: (n,) int64, any order, repeats allowed.
        Returns:
            buffer uint8 (bytes,), offsets int64 (n,), lengths int64 (n,), in that order.
        """
        if indices.size == 0:
            return np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int64)
        shards, offsets, lengths = self.locate(indices)
        order = np.lexsort((offsets, shards))
        places = np.empty_like(offsets)
        runs: list[_Run] = []
        # A loop, because a few dozen records are the rule: for them it beats a dozen array calls.
        for n, shard, start, length in zip(
            order.tolist(),
            shards[order].tolist(),
            offsets[order].tolist(),
            lengths[order].tolist(),
            strict=True,
        ):
            run = runs[-1] if runs else None
            if run is None or shard != run.shard or start > run.end + _GAP_BYTES:
                place = 0 if run is None else -(-run.place_end // _ALIGNMENT) * _ALIGNMENT
                run = _Run(shard=shard, start=start, end=start, place=place)
                runs.append(run)
            run.end = max(run.end, start + length)
            places[n] = run.place + start - run.start
        buffer = np.empty(runs[-1].place_end, np.uint8)
        parts: dict[int, list[tuple[memoryview, int]]] = {run.shard: [] for run in runs}
        for run in runs:
            parts[run.shard].append((buffer.data[run.place : run.place_end], run.start))
        self._each(lambda shard: self._file(shard).read_parts(parts[shard]), parts)
        return buffer, places, lengths

    def _each(self, do: Callable[[int], None], shards: Collection[int]) -> None:
        """Do something with some shards; where each waits for a server, with many at once."""
        if address_of(self._store) is None or len(shards) < 2:
            for shard in shards:
                do(shard)
            return
        with ThreadPoolExecutor(_REQUESTS) as pool:
            for _ in pool.map(do, shards):
                pass

    def _load(self, shard: int) -> None:
        file, name = self._file(shard), shard_name(shard)
        where = f"{self._store}: {name}"
        num_bytes, index = file.read_end(INDEX_BYTES)
        data_bytes = num_bytes - INDEX_BYTES
        if data_bytes < 0:
            raise CorruptStoreError(f"{where} has {num_bytes} bytes, less than its index")
        expected = self._table.entry(shard)["bytes"]
        if num_bytes != expected:
            raise CorruptStoreError(
                f"{where} has {num_bytes} bytes, expected {expected}: it is damaged, or of "
                "another store or place"
            )
        first = shard * SHARD_RECORDS
        records = slice(*np.searchsorted(self._slots, [first, first + SHARD_RECORDS]).tolist())
        self._offsets[records], self._lengths[records] = parse_shard_index(
            index, rows=self._slots[records] - first, data_bytes=data_bytes, where=where
        )
        self._loaded[shard] = True

    def _file(self, shard: int) -> ShardFile | ShardObject:
        with self._lock:
            file = self._files.get(shard)
            if file is None:
                path = self._store / shard_name(shard)
                there = at(path)
                file = ShardFile(path) if there is None else ShardObject(*there)
                self._files[shard] = file
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end(shard)
            return file
