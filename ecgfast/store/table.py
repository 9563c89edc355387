"""records.parquet, quarantine.csv and the sources table: built from the writer's lines."""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ecgfast.store.durable import write_durably
from ecgfast.store.format import QUARANTINE, RECORDS

SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("patient_id", pa.string()),
        ("site", pa.string()),
        ("split", pa.string()),
        ("age", pa.float64()),
        ("sex", pa.string()),
        ("ejection_fraction", pa.float64()),
        ("format", pa.string()),
        ("original_rate_hz", pa.float64()),
        ("original_timesteps", pa.int64()),
        ("start_timestep", pa.int64()),
        ("invalid_share", pa.float64()),
        ("quantisation_error_uv", pa.float64()),
        ("einthoven_uv", pa.float64()),
        ("flags", pa.string()),
    ]
)
_ROW_GROUP = 65536
_TYPES = {"number": pa.float64(), "bool": pa.bool_(), "text": pa.string()}


def column_kinds(rows: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Name and kind ("number", "bool", "text") of the label columns in some rows."""
    kinds: dict[str, str] = {}
    for row in rows:
        for name, value in row.get("labels", {}).items():
            if value is None or name in SCHEMA.names:
                continue
            kind = _kind(value)
            kinds[name] = kind if kinds.get(name, kind) == kind else "text"
    return kinds


def write_records(
    store: Path, lines: Iterable[list[dict[str, Any]]], kinds: dict[str, str]
) -> dict[str, int | str]:
    """Write records.parquet, one pass over the lines.

    Args:
        store: folder of the store.
        lines: the writer's lines.
        kinds: label columns, as `StoreWriter.columns` has them.
    Returns:
        its manifest entry.
    """
    fields = [pa.field(name, _TYPES[kind]) for name, kind in sorted(kinds.items())]
    schema = pa.schema([*SCHEMA, *fields])
    text = {name for name, kind in kinds.items() if kind == "text"}
    tables = (
        pa.Table.from_pylist([_flat(line["row"], text) for line in part if "row" in line], schema)
        for part in lines
    )
    return write_table(store, pa.concat_tables([schema.empty_table(), *tables]))


def write_table(store: Path, table: pa.Table, name: str = RECORDS) -> dict[str, int | str]:
    """Write records.parquet from a whole table; returns its manifest entry."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=_ROW_GROUP, compression="zstd")
    return write_durably(store / name, [sink.getvalue().to_pybytes()])


def write_quarantine(store: Path, lines: Iterable[list[dict[str, Any]]]) -> dict[str, int | str]:
    """Write quarantine.csv; returns its manifest entry."""
    columns = ("record_id", "format", "reason")
    rows = (line["refused"] for part in lines for line in part if "refused" in line)
    return write_durably(store / QUARANTINE, _csv(columns, rows))


def write_sources(path: Path, lines: Iterable[list[dict[str, Any]]]) -> None:
    """Write the table of readable paths and dates, mode 0600; it never enters the store."""
    rows = (
        {
            "record_id": (line.get("row") or line["refused"])["record_id"],
            "source": line["source"],
            "recorded": line.get("recorded", ""),
        }
        for part in lines
        for line in part
    )
    write_durably(path, _csv(("record_id", "source", "recorded"), rows), mode=0o600)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    return "number" if isinstance(value, int | float) else "text"


def _flat(row: dict[str, Any], text: set[str]) -> dict[str, Any]:
    labels = row.get("labels", {})
    as_text = {name: str(labels[name]) for name in text & labels.keys() if labels[name] is not None}
    return {**labels, **as_text, **{name: value for name, value in row.items() if name != "labels"}}


def _csv(columns: tuple[str, ...], rows: Iterable[dict[str, str]]) -> Iterator[bytes]:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(row)
        if buffer.tell() > 1 << 20:
            yield buffer.getvalue().encode()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue().encode()
