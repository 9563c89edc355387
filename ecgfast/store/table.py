"""records.parquet: its rows during a conversion, then written, read and replaced as one table."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import RawIOBase
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ecgfast.errors import ConfigError, CorruptStoreError, ShapeError
from ecgfast.store.durable import DurableFile
from ecgfast.store.format import (
    NEXT_RECORDS,
    PENDING_TYPES,
    PSEUDONYM,
    RECORDS,
    ROW_TYPES,
)
from ecgfast.store.generations import commit, settle

if TYPE_CHECKING:
    from ecgfast.store.reader import StoreReader

SCHEMA = pa.schema(list(ROW_TYPES.items()))
PENDING = pa.schema([*SCHEMA, *PENDING_TYPES.items()])
_ROW_GROUP = 65536
_LATER = {  # columns that stores of earlier versions lack
    *("fold", "content", "duplicate_of", "row", "quality", "quality_leads"),
    *("amplitude_uv", "noise_uv", "wander_uv", "mains_uv", "pacing_spikes"),
}
_NEVER_NULL = ("record_id", "patient_id", "flags")
_TYPES = {"number": pa.float64(), "bool": pa.bool_(), "text": pa.string()}
_KINDS = {bool: "bool", int: "number", float: "number"}  # of the values of a row, which is JSON


class PendingRows:
    """Rows of a unit, kept for the end of the conversion.

    In columns: with a dict for each row, the garbage collector took a twentieth of the time.

    Attributes:
        kinds: label columns seen so far, name -> "number", "bool" or "text".
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in PENDING.names}
        self.kinds: dict[str, str] = {}

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take rows: cells by name, those of PENDING_TYPES too; labels by name under "labels"."""
        for name, column in self._columns.items():
            column += [row.get(name) for row in rows]
        labels = self._columns["labels"]
        labels[len(labels) - len(rows) :] = [json.dumps(row["labels"]) for row in rows]
        found = [
            {name: _KINDS.get(type(value), "text")}
            for row in rows
            for name, value in row["labels"].items()
            if value is not None and name not in ROW_TYPES
        ]
        self.kinds = joined_kinds([self.kinds, *found])

    def pack(self, text: Mapping[str, str]) -> bytes:
        """The rows, and what else is to be kept, by name, as an Arrow stream.

        Labels are JSON in it: the kinds of their columns are known only at the end.
        """
        table = pa.Table.from_pydict(self._columns, PENDING).replace_schema_metadata(text)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        data: bytes = sink.getvalue().to_pybytes()
        return data


def read_rows(path: Path) -> pa.Table:
    """The rows that `PendingRows` packed into a file."""
    options = pa.ipc.IpcReadOptions(use_threads=False)
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_stream(file, options=options).read_all().replace_schema_metadata()


def read_text(path: Path) -> dict[str, str]:
    """What else `PendingRows` packed into a file, by name."""
    with pa.OSFile(str(path)) as file:
        metadata = pa.ipc.open_stream(file).schema.metadata
    return {name.decode(): text.decode() for name, text in metadata.items()}


def joined_kinds(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The kinds of the label columns of several parts; where two differ, both hold text."""
    kinds: dict[str, str] = {}
    for part in parts:
        for name, kind in part.items():
            kinds[name] = kind if kinds.get(name, kind) == kind else "text"
    return kinds


def recording_of(record_id: str, start_timestep: int) -> str:
    """The id of the recording that a window is of: windows are ID, ID@5000, ID@10000 ..."""
    return record_id.rsplit("@", 1)[0] if start_timestep else record_id


def recordings_of(records: pa.Table) -> list[str]:
    """(N,) the id of each record's recording."""
    columns = (records[name].to_pylist() for name in ("record_id", "start_timestep"))
    return list(map(recording_of, *columns))


def copies(records: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of duplicates, and for each of them the row of the record that it names.

    Raises:
        CorruptStoreError: one names a record that is not there.
    """
    later = np.flatnonzero(records["duplicate_of"].is_valid())
    if not len(later):
        return later, later
    ids, names = records["record_id"], records["duplicate_of"].drop_null().combine_chunks()
    is_named = pc.is_in(ids, value_set=names)  # a table of a few names, not of all ids
    at = pc.index_in(names, value_set=ids.filter(is_named).combine_chunks())
    if at.null_count:
        raise CorruptStoreError(
            f"duplicate_of names {at.null_count} records that the store does not have; restore "
            "records.parquet from a copy, or convert again"
        )
    return later, np.flatnonzero(is_named)[at.to_numpy()]


def kinds_of(schema: pa.Schema) -> dict[str, str]:
    """Columns of records.parquet that can be labels: name -> "number", "bool" or "text"."""
    kinds = {column: kind for kind, column in _TYPES.items()}
    own = {*SCHEMA.names, PSEUDONYM}
    return {
        each.name: kinds[each.type]
        for each in schema
        if each.name not in own and each.type in kinds
    }


def records_schema(kinds: Mapping[str, str], more: Sequence[str] = ()) -> pa.Schema:
    """The schema of records.parquet.

    Args:
        kinds: label columns, of `joined_kinds`.
        more: text columns behind them.
    """
    labels = [pa.field(name, _TYPES[kind]) for name, kind in sorted(kinds.items())]
    return pa.schema([*SCHEMA, *labels, *(pa.field(name, pa.string()) for name in more)])


def with_labels(rows: pa.Table, kinds: Mapping[str, str]) -> pa.Table:
    """The rows of a unit as records.parquet has them, with a column for each label.

    Args:
        rows: of `read_rows`.
        kinds: label columns of all units, of `joined_kinds`.
    """
    table = rows.select(SCHEMA.names)
    labels = [json.loads(text) for text in rows["labels"].to_pylist()]
    # A column of the schema that a source also has as a label keeps the schema's value.
    for name, kind in sorted(kinds.items()):
        values = [label.get(name) for label in labels]
        if kind == "text":
            values = [None if value is None else str(value) for value in values]
        table = table.append_column(name, pa.array(values, _TYPES[kind]))
    return table


def write_table(
    store: Path, parts: Iterable[pa.Table], schema: pa.Schema, name: str = RECORDS
) -> dict[str, int | str]:
    """Write a table from its parts, a row group at a time; returns its manifest entry."""
    file = DurableFile(store / name)
    try:
        with pq.ParquetWriter(Sink(file), schema, compression="zstd") as writer:
            for group in row_groups((part.cast(schema) for part in parts), schema):
                writer.write_table(group)
    except BaseException:  # Ctrl-C too
        file.discard()
        raise
    return file.finish()


def row_groups(parts: Iterable[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Join parts of a table to some of a row group each, or more where a part has more."""
    waiting: list[pa.Table] = []
    for part in chain(parts, [None]):
        waiting += [] if part is None else [part]
        if part is None or sum(each.num_rows for each in waiting) >= _ROW_GROUP:
            yield pa.concat_tables([schema.empty_table(), *waiting])
            waiting.clear()


class Sink(RawIOBase):
    """A durable file as Arrow writes to files."""

    def __init__(self, file: DurableFile) -> None:
        self._file = file

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401 (a buffer)
        """Add to the file."""
        self._file.write([memoryview(data)])
        return len(data)


def read_records(
    data: bytes, num_records: int, where: str, columns: Sequence[str] = ()
) -> pa.Table:
    """Read records.parquet; what its columns hold was checked where they were written.

    Args:
        data: content of the file.
        num_records: rows that it must have: some bytes can stand for billions.
        where: named in errors.
        columns: to read; none: all.
    Raises:
        CorruptStoreError: it is no such table.
    """
    table = read_parquet(data, SCHEMA, where, exactly=num_records, columns=columns)
    if any(table[name].null_count for name in _NEVER_NULL if name in table.column_names):
        raise CorruptStoreError(f"{where} has a row without {' or '.join(_NEVER_NULL)}")
    return table


def read_parquet(
    data: bytes,
    schema: pa.Schema,
    where: str,
    *,
    exactly: int | None = None,
    at_most: int = 0,
    columns: Sequence[str] = (),
) -> pa.Table:
    """Read a table whose number of rows and columns are checked first.

    Args:
        data: content of the file.
        schema: columns that it must have, among others.
        where: named in errors.
        exactly: rows that it must have.
        at_most: rows that it may have, where that is not known.
        columns: to read; none: all.
    Raises:
        CorruptStoreError: it is no such table.
    """
    try:
        # On this thread alone: Arrow's own, still waking up, abort a process that ends at once.
        file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
        num_rows = file.metadata.num_rows
        if exactly is not None and num_rows != exactly:
            raise CorruptStoreError(f"{where} has {num_rows} rows, the signals {exactly}")
        if exactly is None and num_rows > at_most:
            raise CorruptStoreError(f"{where} has {num_rows} rows, allowed {at_most}")
        wrong = [field.name for field in schema if not _is_right(file.schema_arrow, field)]
        if wrong:
            raise CorruptStoreError(f"{where} has no right column {', '.join(wrong)}")
        return file.read(columns=columns or None, use_threads=False)
    except CorruptStoreError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise CorruptStoreError(f"{where} is no table that can be read: {error!s:.80}") from error


def _is_right(schema: pa.Schema, field: pa.Field) -> bool:
    """Whether a column has its type; stores of earlier versions lack some."""
    at = schema.get_all_field_indices(field.name)
    return (field.name in _LATER and not at) or (
        len(at) == 1 and schema.field(at[0]).type == field.type
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
    if not reader.is_newest:
        raise ConfigError(f"{reader.path} is changed as a whole; give it without @")
    if records.num_rows != len(reader):
        raise ShapeError(f"records must have {len(reader)} rows, got {records.num_rows}")
    store = reader.path
    settle(store)  # a crash after an earlier seal may have left the table that counts under NEXT
    content = {key: value for key, value in reader.manifest.items() if key != "digest"}
    entry = write_table(store, [records], records.schema, NEXT_RECORDS)
    commit(store, content | changed | {"files": content["files"] | {RECORDS: entry}}, [RECORDS])
