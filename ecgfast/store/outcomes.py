"""What became of each input, records or refusals: made by the workers, taken by the writer."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pickle import PickleBuffer
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfast.records import NUM_LEADS
from ecgfast.store.format import PENDING_TYPES, QUARANTINE_COLUMNS, ROW_TYPES
from ecgfast.store.patients import UNNAMED


class Cursor(NamedTuple):
    """Where to resume: the next outcome of the next input.

    Attributes:
        position: index in the frozen input list.
        outcome: outcomes of that input (its windows) that are done already; behind the last one
            is the next input.
    """

    position: int = 0
    outcome: int = 0


@dataclass(frozen=True, kw_only=True)
class EncodedRecord:
    """One record, ready to be written.

    Attributes:
        after: the cursor behind it.
        chunk: its encoded signal.
        leads: (4, 12) float32: scale_uv, offset_adc, lead_mean, lead_std.
        row: its line of records.parquet, and what the end of the conversion needs with it: label
            columns under "labels", the input's number under "position", what duplicates are found
            by under "fingerprint" and "segments", `Pseudonyms.patient_key` under "patient_key",
            kinds of fields that stay out under "left_out".
        source: readable path, for the table beside the store.
        recorded: readable date of the recording, for the same table.
        record: readable id, for the same table.
    """

    after: Cursor
    chunk: bytes
    leads: NDArray[np.float32]
    row: dict[str, Any]
    source: str = ""
    recorded: str = ""
    record: str = ""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One input, or one window of it, that the store does not take.

    Attributes:
        after: the cursor behind it.
        row: record_id (pseudonym), format, and one of `errors.Reason`.
        source: readable path, for the table beside the store.
        recorded: empty: the date of what is refused is not kept.
        record: readable id, for the table beside the store.
        detail: what is wrong, names of files included, for the same table.
    """

    after: Cursor
    row: dict[str, str]
    source: str = ""
    recorded: str = ""
    record: str = ""
    detail: str = ""


Outcome = EncodedRecord | Refusal
_KINDS = {bool: "bool", int: "number", float: "number"}  # of the values of a row, which is JSON


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Outcomes in order, in columns: these pass between processes faster than objects do.

    Attributes:
        after: of each outcome, the cursor behind it as (position, outcome).
        sources: of each outcome, its line of the table beside the store.
        refused: of each outcome, its line of quarantine.csv; None for a record.
        rows: columns of records.parquet with one value for each record, "labels" in JSON.
        kinds: label columns of these rows, or of those that they were cut from, name -> "number",
            "bool" or "text".
        leads: (N, 4, 12) float32 of the records.
        chunks: encoded signals of the records.
    """

    after: list[tuple[int, int]]
    sources: list[tuple[str, ...]]
    refused: list[tuple[str, ...] | None]
    rows: dict[str, list[Any]]
    kinds: dict[str, str]
    leads: NDArray[np.float32]
    chunks: list[bytes | memoryview]

    def __getstate__(self) -> dict[str, Any]:
        """Chunks may be sent beside the pickle of all the rest (pickle protocol 5)."""
        return {**vars(self), "chunks": [PickleBuffer(chunk) for chunk in self.chunks]}

    @property
    def num_inputs(self) -> int:
        """Inputs that end among these outcomes."""
        return sum(1 for _, outcome in self.after if outcome == 0)

    def split(self, num_records: int) -> tuple["Outcomes", "Outcomes"]:
        """Cut behind the record of this number, counted from 1."""
        records = [place for place, line in enumerate(self.refused) if line is None]
        cut = records[num_records - 1] + 1
        head = self._part(slice(cut), slice(num_records))
        return head, self._part(slice(cut, None), slice(num_records, None))

    def _part(self, outcomes: slice, records: slice) -> "Outcomes":
        return Outcomes(
            after=self.after[outcomes],
            sources=self.sources[outcomes],
            refused=self.refused[outcomes],
            rows={name: values[records] for name, values in self.rows.items()},
            kinds=self.kinds,
            leads=self.leads[records],
            chunks=self.chunks[records],
        )


def in_columns(outcomes: Sequence[Outcome]) -> Outcomes:
    """Columns of some outcomes."""
    records = [each for each in outcomes if isinstance(each, EncodedRecord)]
    rows = [record.row for record in records]
    return Outcomes(
        after=[(*each.after,) for each in outcomes],
        sources=[_source(each) for each in outcomes],
        refused=[
            tuple(each.row[name] for name in QUARANTINE_COLUMNS)
            if isinstance(each, Refusal)
            else None
            for each in outcomes
        ],
        rows=_columns(rows),
        kinds=_kinds(rows),
        leads=np.array([each.leads for each in records], np.float32).reshape(-1, 4, NUM_LEADS),
        chunks=[record.chunk for record in records],
    )


def joined_kinds(parts: Iterable[dict[str, str]]) -> dict[str, str]:
    """The kinds of the label columns of several parts; where two differ, both hold text."""
    kinds: dict[str, str] = {}
    for part in parts:
        for name, kind in part.items():
            kinds[name] = kind if kinds.get(name, kind) == kind else "text"
    return kinds


def _source(each: Outcome) -> tuple[str, ...]:
    """The columns of SOURCES_COLUMNS."""
    patient = each.row.get("patient_key", "")
    named = "" if patient.startswith(UNNAMED) else patient
    detail = each.detail if isinstance(each, Refusal) else ""
    return each.row.get("record_id", ""), each.source, each.recorded, each.record, named, detail


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    names = (*ROW_TYPES, *PENDING_TYPES)
    columns = {name: [row.get(name) for row in rows] for name in names}
    columns["labels"] = [json.dumps(each) if each else None for each in columns["labels"]]
    return columns


def _kinds(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Name and kind ("number", "bool", "text") of the label columns in some rows."""
    found = {(name, type(value)) for row in rows for name, value in row.get("labels", {}).items()}
    return joined_kinds(
        {name: _KINDS.get(type_, "text")}
        for name, type_ in found
        if type_ is not type(None) and name not in ROW_TYPES
    )
