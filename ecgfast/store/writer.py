"""The one writer of a store: takes outcomes in order, cuts shards, and journals each shard."""

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.store.csv_files import csv_lines
from ecgfast.store.durable import DurableFile, explained, sync_folder, write_durably
from ecgfast.store.format import (
    LEAD_ARRAYS,
    SHARD_RECORDS,
    SIGNALS,
    lead_chunk_name,
    shard_name,
    with_crc32c,
)
from ecgfast.store.manifest import Manifest, write_manifest
from ecgfast.store.outcomes import Cursor, Outcomes, joined_kinds
from ecgfast.store.shards import pack_shard_index
from ecgfast.store.table import pack_rows, unpack_rows
from ecgfast.vocabulary import Codec

_CHUNK_FILE = re.compile(r"c\.\d+\.0(\.0)?|\.c\.\d+\.0(\.0)?\.tmp")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One finished shard.

    Attributes:
        num_records: records in it.
        cursor: where the input resumes after it.
        columns: label columns that its rows hold, name -> "number", "bool" or "text".
        files: relative path -> {"bytes", "sha256"} of what was written.
    """

    num_records: int
    cursor: Cursor
    columns: dict[str, str]
    files: dict[str, dict[str, Any]]


class Journal:
    """Entries of finished shards; a line torn by a crash is cut off when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        if path.exists():
            self._load()

    def append(self, entry: Entry) -> None:
        """Add an entry and make it durable."""
        text = json.dumps(vars(entry), sort_keys=True)
        fresh = not self.path.exists()
        with explained(self.path):
            with open(self.path, "ab", opener=_open_no_link) as file:
                file.write(f"{zlib.crc32(text.encode()):08x} {text}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                sync_folder(self.path.parent)
        self.entries.append(entry)

    def _load(self) -> None:
        good = 0
        with self.path.open("rb") as file:
            for line in file:
                entry = _parse(line)
                if entry is None:
                    break
                self.entries.append(entry)
                good += len(line)
        with explained(self.path):
            os.truncate(self.path, good)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _parse(line: bytes) -> Entry | None:
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != f"{zlib.crc32(text):08x}".encode():
        return None
    body = json.loads(text)
    return Entry(**body | {"cursor": Cursor(*body["cursor"])})


class _Shard:
    """The shard being written: chunks go straight to its temporary file, table rows are buffered.

    Args:
        path: of the shard file; a shard of refusals alone has none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: DurableFile | None = None
        self.lengths: list[int] = []  # of its chunks
        self.parts: list[Outcomes] = []

    def add(self, outcomes: Outcomes) -> None:
        """Take outcomes; the memory of chunks and leads may change when this returns."""
        if outcomes.chunks:
            if self._file is None:
                self._file = DurableFile(self._path)
            self._file.write(outcomes.chunks)
            self.lengths += map(len, outcomes.chunks)
        self.parts.append(replace(outcomes, chunks=[], leads=outcomes.leads.copy()))

    def finish(self) -> dict[str, Any] | None:
        """Make the chunks durable, with their index; returns their manifest entry."""
        if self._file is None:
            return None
        self._file.write([pack_shard_index(self.lengths)])
        return self._file.finish()

    def discard(self) -> None:
        if self._file is not None:
            self._file.discard()

    def leads(self) -> NDArray[np.float32]:
        """The arrays of `LEAD_ARRAYS`, (4, 1024, 12) float32."""
        leads_N4C = np.concatenate([part.leads for part in self.parts])
        padded = np.zeros((len(LEAD_ARRAYS), SHARD_RECORDS, leads_N4C.shape[2]), "<f4")
        padded[:, : len(leads_N4C)] = leads_N4C.swapaxes(0, 1)
        return padded

    def lines(self) -> bytes:
        """The table rows, packed to be read again at the end of the conversion."""
        refused = (line for part in self.parts for line in part.refused if line is not None)
        sources = (line for part in self.parts for line in part.sources)
        text = {"quarantine": csv_lines(refused), "sources": csv_lines(sources)}
        return pack_rows([part.rows for part in self.parts], text)


class StoreWriter:
    """Writes shards of 1024 records; opened again after a crash, its cursor is where to resume.

    A thread makes a full shard durable while the next one is filled. Use it as a context manager:
    no thread is left that writes into a store whose lock was released.

    Args:
        store: folder of the store.
        work: folder of the journal and of the rows, outside the store; `seal` removes it.
    """

    def __init__(self, store: Path, work: Path) -> None:
        self._store, self._work = store, work
        with explained(store):
            for name in ("signal", *LEAD_ARRAYS):
                (store / SIGNALS / name).mkdir(parents=True, exist_ok=True)
            work.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(work / "journal")
        self._remove_unfinished()
        self._number = len(self._journal.entries)  # of the shard being filled
        self._shard = _Shard(store / shard_name(self._number))
        self._thread = ThreadPoolExecutor(1)
        self._flushing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._shard.discard()

    @property
    def cursor(self) -> Cursor:
        """The first outcome that is not yet durable."""
        entries = self._journal.entries
        return entries[-1].cursor if entries else Cursor()

    @property
    def num_records(self) -> int:
        """Durable records."""
        return sum(entry.num_records for entry in self._journal.entries)

    @property
    def columns(self) -> dict[str, str]:
        """Label columns seen so far, name -> "number", "bool" or "text"."""
        return joined_kinds(entry.columns for entry in self._journal.entries)

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """Manifest entries of the durable files inside the store."""
        entries = self._journal.entries
        return {name: value for entry in entries for name, value in entry.files.items()}

    def add(self, outcomes: Outcomes) -> None:
        """Take the next outcomes; the memory of chunks and leads may change when this returns.

        Raises:
            EcgfastError: this shard or an earlier one could not be written.
        """
        while (missing := SHARD_RECORDS - len(self._shard.lengths)) <= len(outcomes.chunks):
            head, outcomes = outcomes.split(missing)
            self._shard.add(head)
            self._flush(Cursor(*head.after[-1]))
        self._shard.add(outcomes)

    def finish(self, end: Cursor) -> None:
        """Write what is left as the last shard; all is durable when this returns."""
        self._await_flush()
        if self.cursor != end:
            self._flush(end)
            self._await_flush()

    def seal(
        self, codec: Codec, tables: dict[str, dict[str, int | str]], content: dict[str, Any]
    ) -> Manifest:
        """Write metadata and manifest of the finished store, then remove the journal.

        Args:
            codec: of the chunks.
            tables: manifest entries of records.parquet and quarantine.csv.
            content: further entries of the manifest.
        """
        from ecgfast.store.zarr_codec import write_metadata  # zarr takes half a second to import

        files = self.files | tables | write_metadata(self._store, codec, self.num_records)
        entries = {"codec": codec, "num_records": self.num_records, "files": files}
        manifest = write_manifest(self._store, content | entries)
        shutil.rmtree(self._work)
        return manifest

    def lines(self) -> Iterator[tuple[pa.Table, dict[str, str]]]:
        """The durable lines, a shard at a time.

        Yields:
            rows of `unpack_rows`; lines of "quarantine" and "sources", CSV without a header.
        """
        for number in range(len(self._journal.entries)):
            yield unpack_rows(self._lines_path(number).read_bytes())

    def _remove_unfinished(self) -> None:
        """Remove what a crash left of a shard: with other inputs gone, it may never be complete."""
        durable = self.files
        with explained(self._store):
            for path in (self._store / SIGNALS).glob("*/*"):
                is_ours = _CHUNK_FILE.fullmatch(path.name) is not None
                if is_ours and path.relative_to(self._store).as_posix() not in durable:
                    path.unlink()

    def _lines_path(self, number: int) -> Path:
        return self._work / f"lines-{number:06d}.arrow"

    def _flush(self, cursor: Cursor) -> None:
        self._await_flush()  # at most one shard is under way: errors come in order
        self._flushing = self._thread.submit(self._make_durable, self._shard, self._number, cursor)
        self._number += 1
        self._shard = _Shard(self._store / shard_name(self._number))

    def _await_flush(self) -> None:
        if self._flushing is not None:
            self._flushing.result()
            self._flushing = None

    def _make_durable(self, shard: _Shard, number: int, cursor: Cursor) -> None:
        files: dict[str, dict[str, Any]] = {}
        chunks = shard.finish()
        if chunks is not None:
            files[shard_name(number)] = chunks
            for array, values in zip(LEAD_ARRAYS, shard.leads(), strict=True):
                name = lead_chunk_name(array, number)
                files[name] = write_durably(self._store / name, [with_crc32c(values.tobytes())])
        write_durably(self._lines_path(number), [shard.lines()], mode=0o600)
        columns = joined_kinds(part.kinds for part in shard.parts)
        self._journal.append(
            Entry(num_records=len(shard.lengths), cursor=cursor, columns=columns, files=files)
        )
