"""The one writer of a store: takes encoded records in order, cuts shards, journals each."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from pickle import PickleBuffer
from typing import Any, Self, SupportsIndex

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.store.durable import explained, write_durably
from ecgfast.store.format import (
    LEAD_ARRAYS,
    SHARD_RECORDS,
    SIGNALS,
    lead_chunk_name,
    pack_shard_index,
    shard_name,
    with_crc32c,
)
from ecgfast.store.journal import Cursor, Entry, Journal
from ecgfast.store.table import QUARANTINE_COLUMNS, column_kinds, csv_lines, pack_rows, unpack_rows


@dataclass(frozen=True, kw_only=True)
class EncodedRecord:
    """One record, ready to be written.

    Attributes:
        chunk: its encoded signal.
        leads: (4, 12) float32: scale_uv, offset_adc, lead_mean, lead_std.
        row: its line of records.parquet; label columns under "labels".
        source: readable path, for the table beside the store.
        recorded: readable date of the recording, for the same table.
    """

    chunk: bytes | memoryview
    leads: NDArray[np.float32]
    row: dict[str, Any]
    source: str = ""
    recorded: str = ""

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Pickle everything but the chunk, which may travel beside the pickle."""
        rest = (self.leads.tobytes(), self.row, self.source, self.recorded)
        return _unpickled, (PickleBuffer(self.chunk), *rest)


def _unpickled(
    chunk: memoryview, leads: bytes, row: dict[str, Any], source: str, recorded: str
) -> EncodedRecord:
    leads_4C = np.frombuffer(leads, np.float32).reshape(len(LEAD_ARRAYS), -1)
    return EncodedRecord(chunk=chunk, leads=leads_4C, row=row, source=source, recorded=recorded)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One input, or one window of it, that the store does not take.

    Attributes:
        row: record_id (pseudonym), format, reason.
        source: readable path, for the table beside the store.
        recorded: empty: nothing was read.
    """

    row: dict[str, str]
    source: str = ""
    recorded: str = ""


Outcome = EncodedRecord | Refusal


@dataclass(kw_only=True)
class _Shard:
    """What goes into the next shard and its lines."""

    records: list[EncodedRecord] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)  # of each record's input
    refused: list[Sequence[str]] = field(default_factory=list)
    sources: list[Sequence[str]] = field(default_factory=list)

    def lines(self) -> bytes:
        """The table rows, as they wait for the end of the conversion."""
        text = {"quarantine": csv_lines(self.refused), "sources": csv_lines(self.sources)}
        return pack_rows([record.row for record in self.records], self.positions, text)


class StoreWriter:
    """Writes shards of 1024 records; opened again after a crash, it says where to go on.

    A full shard is written by a thread while the next one fills. Use it as a context manager: it
    leaves no thread behind that writes into a store whose lock is gone.

    Args:
        store: folder of the store.
        work: folder of the journal and of the rows, outside the store; removed by the caller when
            the store is sealed.
    """

    def __init__(self, store: Path, work: Path) -> None:
        self._store, self._work = store, work
        with explained(store):
            for name in ("signal", *LEAD_ARRAYS):
                (store / SIGNALS / name).mkdir(parents=True, exist_ok=True)
            work.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(work / "journal")
        self._next = _Shard()
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

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
        kinds: dict[str, str] = {}
        for entry in self._journal.entries:
            for name, kind in entry.columns.items():
                kinds[name] = kind if kinds.get(name, kind) == kind else "text"
        return kinds

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """Manifest entries of the durable files inside the store."""
        entries = self._journal.entries
        return {name: value for entry in entries for name, value in entry.files.items()}

    def add(self, outcome: Outcome, after: Cursor) -> None:
        """Take the next outcome.

        Args:
            outcome: a record or a refusal.
            after: the cursor behind it.
        Raises:
            EcgfastError: an earlier shard could not be written.
        """
        shard, row = self._next, outcome.row
        shard.sources.append((row.get("record_id", ""), outcome.source, outcome.recorded))
        if isinstance(outcome, Refusal):
            shard.refused.append([row[name] for name in QUARANTINE_COLUMNS])
            return
        shard.records.append(outcome)
        shard.positions.append(after.position)
        if len(shard.records) == SHARD_RECORDS:
            self._flush(after)

    def finish(self, end: Cursor) -> None:
        """Write what is left as the last shard; all is durable when this returns."""
        self._settle()
        if self.cursor != end:
            self._flush(end)
            self._settle()

    def lines(self) -> Iterator[tuple[pa.Table, dict[str, str]]]:
        """The durable lines, a shard at a time.

        Yields:
            rows of `unpack_rows`; lines of "quarantine" and "sources", CSV without a header.
        """
        for number in range(len(self._journal.entries)):
            yield unpack_rows(self._lines_path(number).read_bytes())

    def _lines_path(self, number: int) -> Path:
        return self._work / f"lines-{number:06d}.arrow"

    def _flush(self, cursor: Cursor) -> None:
        self._settle()  # at most one shard waits: memory stays bounded, errors come in order
        self._writing = self._thread.submit(self._write_shard, self._next, cursor)
        self._next = _Shard()

    def _settle(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def _write_shard(self, shard: _Shard, cursor: Cursor) -> None:
        number, records = len(self._journal.entries), shard.records
        files: dict[str, dict[str, Any]] = {}
        if records:
            chunks = [record.chunk for record in records]
            index = pack_shard_index([len(chunk) for chunk in chunks])
            files[shard_name(number)] = self._write(shard_name(number), [*chunks, index])
            leads = np.zeros((len(LEAD_ARRAYS), SHARD_RECORDS, records[0].leads.shape[1]), "<f4")
            leads[:, : len(records)] = np.stack([record.leads for record in records], axis=1)
            for array, values in zip(LEAD_ARRAYS, leads, strict=True):
                name = lead_chunk_name(array, number)
                files[name] = self._write(name, [with_crc32c(values.tobytes())])
        write_durably(self._lines_path(number), [shard.lines()], mode=0o600)
        columns = column_kinds(record.row for record in records)
        self._journal.append(
            Entry(num_records=len(records), cursor=cursor, columns=columns, files=files)
        )

    def _write(self, name: str, parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
        return write_durably(self._store / name, parts)
