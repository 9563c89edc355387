"""The one writer of a store: takes encoded records in order, cuts shards, journals each."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
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
from ecgfast.store.table import QUARANTINE_COLUMNS, column_kinds, csv_lines


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

    chunk: bytes
    leads: NDArray[np.float32]
    row: dict[str, Any]
    source: str = ""
    recorded: str = ""


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
Table = Literal["quarantine", "sources"]


class StoreWriter:
    """Writes shards of 1024 records; opened again after a crash, it says where to go on.

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
        self._pending: list[EncodedRecord] = []
        self._positions: list[int] = []
        self._refused: list[Sequence[str]] = []
        self._sources: list[Sequence[str]] = []

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
        """Take the next outcome; a full shard is written before this returns.

        Args:
            outcome: a record or a refusal.
            after: the cursor behind it.
        """
        row = outcome.row
        self._sources.append((row.get("record_id", ""), outcome.source, outcome.recorded))
        if isinstance(outcome, Refusal):
            self._refused.append([row[name] for name in QUARANTINE_COLUMNS])
            return
        self._pending.append(outcome)
        self._positions.append(after.position)
        if len(self._pending) == SHARD_RECORDS:
            self._flush(after)

    def finish(self, end: Cursor) -> None:
        """Write what is left as the last shard; doing it twice does no harm."""
        if self.cursor != end:
            self._flush(end)

    def rows(self) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
        """The durable rows of records.parquet and the inputs' positions, a shard at a time."""
        for number in range(len(self._journal.entries)):
            part = json.loads(self._part(number, "rows.json").read_bytes())
            yield part["positions"], part["rows"]

    def csv(self, table: Table) -> Iterator[bytes]:
        """The durable lines of one of the two CSV tables, in input order, without a header."""
        for number in range(len(self._journal.entries)):
            yield self._part(number, f"{table}.csv").read_bytes()

    def _part(self, number: int, name: str) -> Path:
        return self._work / f"{number:06d}.{name}"

    def _flush(self, cursor: Cursor) -> None:
        shard, records = len(self._journal.entries), self._pending
        files: dict[str, dict[str, Any]] = {}
        if records:
            chunks = [record.chunk for record in records]
            index = pack_shard_index([len(chunk) for chunk in chunks])
            files[shard_name(shard)] = self._write(shard_name(shard), [*chunks, index])
            leads = np.zeros((len(LEAD_ARRAYS), SHARD_RECORDS, records[0].leads.shape[1]), "<f4")
            leads[:, : len(records)] = np.stack([record.leads for record in records], axis=1)
            for array, values in zip(LEAD_ARRAYS, leads, strict=True):
                name = lead_chunk_name(array, shard)
                files[name] = self._write(name, [with_crc32c(values.tobytes())])
        rows = {"positions": self._positions, "rows": [record.row for record in records]}
        parts = {
            "rows.json": json.dumps(rows).encode(),
            "quarantine.csv": csv_lines(self._refused),
            "sources.csv": csv_lines(self._sources),
        }
        for name, part in parts.items():
            write_durably(self._part(shard, name), [part], mode=0o600)
        columns = column_kinds(record.row for record in records)
        self._journal.append(
            Entry(num_records=len(records), cursor=cursor, columns=columns, files=files)
        )
        self._pending, self._positions, self._refused, self._sources = [], [], [], []

    def _write(self, name: str, parts: list[bytes]) -> dict[str, Any]:
        return write_durably(self._store / name, parts)
