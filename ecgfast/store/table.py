"""records.parquet: its rows during a conversion, then written, read and replaced as one table."""

import json
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ecgfast.errors import CorruptStoreError, ShapeError
from ecgfast.store.durable import explained, sync_folder, write_durably
from ecgfast.store.format import NEXT_RECORDS, PENDING_TYPES, RECORDS, ROW_TYPES
from ecgfast.store.manifest import write_manifest

if TYPE_CHECKING:
    from ecgfast.store.reader import StoreReader

SCHEMA = pa.schema(list(ROW_TYPES.items()))
_PENDING = pa.schema([*SCHEMA, *PENDING_TYPES.items()])
_ROW_GROUP = 65536
_LATER = {"fold", "content", "duplicate_of"}  # columns that stores of earlier versions lack
_NEVER_NULL = ("record_id", "patient_id", "flags")
_TYPES = {"number": pa.float64(), "bool": pa.bool_(), "text": pa.string()}
_SEALED = ("format", "version", "identity", "digest")  # manifest entries that sealing makes


def pack_rows(parts: Sequence[dict[str, list[Any]]], text: dict[str, str]) -> bytes:
    """Pack the rows of a shard for the end of the conversion, as an Arrow stream.

    Labels are JSON in it: the kinds of their columns are known only at that end.

    Args:
        parts: columns of these rows, as `Outcomes` has them, part after part.
        text: further lines to keep, by name.
    """
    columns = {
        name: list(chain.from_iterable(part[name] for part in parts)) for name in _PENDING.names
    }
    table = pa.Table.from_pydict(columns, _PENDING).replace_schema_metadata(text)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def unpack_rows(data: bytes) -> tuple[pa.Table, dict[str, str]]:
    """What `pack_rows` packed: the rows with their positions, and the lines by name."""
    options = pa.ipc.IpcReadOptions(use_threads=False)
    table = pa.ipc.open_stream(data, options=options).read_all()
    text = {name.decode(): line.decode() for name, line in table.schema.metadata.items()}
    return table.replace_schema_metadata(), text


def records_table(parts: Iterable[pa.Table], kinds: dict[str, str]) -> pa.Table:
    """Build the table of records.parquet.

    Args:
        parts: of `unpack_rows`.
        kinds: label columns, as `StoreWriter.columns` has them.
    """
    fields = [pa.field(name, _TYPES[kind]) for name, kind in sorted(kinds.items())]
    schema = pa.schema([*SCHEMA, *fields])
    tables = (_with_labels(part, fields, kinds) for part in parts)
    return pa.concat_tables([schema.empty_table(), *tables])


def write_table(store: Path, table: pa.Table, name: str = RECORDS) -> dict[str, int | str]:
    """Write records.parquet from a whole table; returns its manifest entry."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=_ROW_GROUP, compression="zstd")
    return write_durably(store / name, [sink.getvalue().to_pybytes()])


def read_records(data: bytes, num_records: int, where: str) -> pa.Table:
    """Read records.parquet; what its columns hold was checked where they were written.

    Args:
        data: content of the file.
        num_records: rows that it must have: some bytes can stand for billions.
        where: named in errors.
    Raises:
        CorruptStoreError: it is no such table.
    """
    try:
        # On this thread alone: Arrow's own, still waking up, abort a process that ends at once.
        file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
        if file.metadata.num_rows != num_records:
            raise CorruptStoreError(
                f"{where} has {file.metadata.num_rows} rows, the signals {num_records}"
            )
        schema = file.schema_arrow
        wrong = [name for name, kind in ROW_TYPES.items() if not _is_right(schema, name, kind)]
        if wrong:
            raise CorruptStoreError(f"{where} has no right column {', '.join(wrong)}")
        table = file.read(use_threads=False)
    except CorruptStoreError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise CorruptStoreError(f"{where} is no table that can be read: {error!s:.80}") from error
    if any(table[name].null_count for name in _NEVER_NULL):
        raise CorruptStoreError(f"{where} has a row without {' or '.join(_NEVER_NULL)}")
    return table


def _is_right(schema: pa.Schema, name: str, kind: str) -> bool:
    """Whether a column has its type; stores of earlier versions lack some."""
    at = schema.get_all_field_indices(name)
    return (name in _LATER and not at) or (
        len(at) == 1 and schema.field(at[0]).type == pa.type_for_alias(kind)
    )


def replace_records(reader: "StoreReader", records: pa.Table, changed: dict[str, Any]) -> None:
    """Replace records.parquet and seal the manifest again; a crash leaves the old or the new table.

    The new table lies beside the old one until the manifest names it: whichever of the two files
    has the manifest's digest is the one that counts.

    Args:
        reader: the store; the caller holds its lock.
        records: one row per record, in the same order.
        changed: entries of the manifest that change with it, such as what was joined.
    """
    if records.num_rows != len(reader):
        raise ShapeError(f"records must have {len(reader)} rows, got {records.num_rows}")
    store = reader.path
    content = {key: value for key, value in reader.manifest.items() if key not in _SEALED}
    # A crash after an earlier seal may have left the table that counts under its second name.
    if (store / NEXT_RECORDS).exists() and reader.records_name == NEXT_RECORDS:
        os.replace(store / NEXT_RECORDS, store / RECORDS)
    files = content["files"] | {RECORDS: write_table(store, records, NEXT_RECORDS)}
    write_manifest(store, content | changed | {"files": files})
    with explained(store):
        os.replace(store / NEXT_RECORDS, store / RECORDS)
        sync_folder(store)


def _with_labels(part: pa.Table, fields: list[pa.Field], kinds: dict[str, str]) -> pa.Table:
    table = part.select(SCHEMA.names)
    if not fields:
        return table
    labels = [json.loads(text) if text else {} for text in part["labels"].to_pylist()]
    # A column of the schema that a source also has as a label keeps the schema's value.
    for field in fields:
        column = _label(labels, field.name, as_text=kinds[field.name] == "text")
        table = table.append_column(field, pa.array(column, field.type))
    return table


def _label(labels: list[dict[str, Any]], name: str, *, as_text: bool) -> list[Any]:
    values = [label.get(name) for label in labels]
    return [None if value is None else str(value) for value in values] if as_text else values
