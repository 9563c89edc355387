"""records.parquet: its rows during a conversion, written, read, replaced; and shards.parquet."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ecgfast.errors import CorruptStoreError, ShapeError
from ecgfast.store.durable import DurableFile, explained, sync_folder, write_durably
from ecgfast.store.format import (
    LEAD_ARRAYS,
    NEXT_RECORDS,
    PENDING_TYPES,
    RECORDS,
    ROW_TYPES,
    SHARD_RECORDS,
    num_shards,
    shard_files,
)
from ecgfast.store.manifest import Manifest, write_manifest

if TYPE_CHECKING:
    from ecgfast.store.reader import StoreReader

SCHEMA = pa.schema(list(ROW_TYPES.items()))
_PENDING = pa.schema([*SCHEMA, *PENDING_TYPES.items()])
_ROW_GROUP = 65536
_LATER = {"fold", "content", "duplicate_of", "row"}  # columns that stores of earlier versions lack
_NEVER_NULL = ("record_id", "patient_id", "flags")
_TYPES = {"number": pa.float64(), "bool": pa.bool_(), "text": pa.string()}
_KINDS = {bool: "bool", int: "number", float: "number"}  # of the values of a row, which is JSON
_SHARDS = pa.schema(
    [("shard", pa.int64()), ("records", pa.int64())]
    + [
        field
        for array in ("signal", *LEAD_ARRAYS)
        for field in ((f"{array}_bytes", pa.int64()), (f"{array}_sha256", pa.string()))
    ]
)


def pack_rows(rows: Sequence[Mapping[str, Any]], text: Mapping[str, str]) -> bytes:
    """Pack the rows of a shard for the end of the conversion, as an Arrow stream.

    Labels are JSON in it: the kinds of their columns are known only at that end.

    Args:
        rows: cells by name, those of PENDING_TYPES too; label columns by name under "labels".
        text: what else is to be kept, by name.
    """
    columns = {name: [row.get(name) for row in rows] for name in _PENDING.names}
    columns["labels"] = [json.dumps(each) if each else None for each in columns["labels"]]
    table = pa.Table.from_pydict(columns, _PENDING).replace_schema_metadata(text)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read_rows(path: Path) -> pa.Table:
    """The rows that `pack_rows` packed into a file."""
    options = pa.ipc.IpcReadOptions(use_threads=False)
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_stream(file, options=options).read_all().replace_schema_metadata()


def read_text(path: Path) -> dict[str, str]:
    """What else `pack_rows` packed into a file, by name."""
    with pa.OSFile(str(path)) as file:
        metadata = pa.ipc.open_stream(file).schema.metadata
    return {name.decode(): text.decode() for name, text in metadata.items()}


def kinds_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Name and kind ("number", "bool", "text") of the label columns in some rows."""
    found = {(name, type(value)) for row in rows for name, value in row["labels"].items()}
    return joined_kinds(
        {name: _KINDS.get(type_, "text")}
        for name, type_ in found
        if type_ is not type(None) and name not in ROW_TYPES
    )


def joined_kinds(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The kinds of the label columns of several parts; where two differ, both hold text."""
    kinds: dict[str, str] = {}
    for part in parts:
        for name, kind in part.items():
            kinds[name] = kind if kinds.get(name, kind) == kind else "text"
    return kinds


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
    labels = [json.loads(text) if text else {} for text in rows["labels"].to_pylist()]
    # A column of the schema that a source also has as a label keeps the schema's value.
    for name, kind in sorted(kinds.items()):
        values = [label.get(name) for label in labels]
        if kind == "text":
            values = [None if value is None else str(value) for value in values]
        table = table.append_column(name, pa.array(values, _TYPES[kind]))
    return table


def write_records(
    store: Path, parts: Iterable[pa.Table], schema: pa.Schema
) -> dict[str, int | str]:
    """Write records.parquet from its rows, a row group at a time; returns its manifest entry."""
    file = DurableFile(store / RECORDS)
    try:
        with pq.ParquetWriter(_Sink(file), schema, compression="zstd") as writer:
            waiting: list[pa.Table] = []
            for part in parts:
                waiting.append(part)
                if sum(each.num_rows for each in waiting) >= _ROW_GROUP:
                    writer.write_table(pa.concat_tables(waiting).cast(schema), _ROW_GROUP)
                    waiting.clear()
            if waiting:
                writer.write_table(pa.concat_tables(waiting).cast(schema), _ROW_GROUP)
    except BaseException:  # Ctrl-C too
        file.discard()
        raise
    return file.finish()


class _Sink(RawIOBase):
    """A durable file as Arrow writes to files."""

    def __init__(self, file: DurableFile) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:  # noqa: ANN401 (a buffer)
        self._file.write([memoryview(data)])
        return len(data)


def write_table(store: Path, table: pa.Table, name: str = RECORDS) -> dict[str, int | str]:
    """Write records.parquet from a whole table; returns its manifest entry."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=_ROW_GROUP, compression="zstd")
    return write_durably(store / name, [sink.getvalue().to_pybytes()])


class ShardTable:
    """Sizes and digests of the files of every shard that holds records, in ascending order.

    Args:
        table: as shards.parquet has it.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._row_of = {shard: row for row, shard in enumerate(table["shard"].to_pylist())}

    @classmethod
    def of(
        cls, shards: Iterable[tuple[int, int, Mapping[str, Mapping[str, int | str]]]]
    ) -> "ShardTable":
        """The table of shards given as number, records, path -> entry of each file."""
        rows = []
        for shard, records, files in shards:
            row: dict[str, int | str] = {"shard": shard, "records": records}
            for array, name in shard_files(shard).items():
                row |= {f"{array}_{key}": value for key, value in files[name].items()}
            rows.append(row)
        return cls(pa.Table.from_pylist(rows, _SHARDS))

    @classmethod
    def of_format_1(cls, manifest: Manifest) -> "ShardTable":
        """The table of a store whose manifest lists the files itself, and which has no holes."""
        total = manifest["num_records"]
        return cls.of(
            (shard, min(SHARD_RECORDS, total - shard * SHARD_RECORDS), manifest["files"])
            for shard in range(num_shards(total))
        )

    @property
    def num_bytes(self) -> int:
        """Of the signals."""
        return int(pc.sum(self.table["signal_bytes"]).as_py())

    def entry(self, shard: int, array: str = "signal") -> dict[str, Any]:
        """{"bytes", "sha256"} of a shard's file of one array."""
        row = self._row_of[shard]
        return {key: self.table[f"{array}_{key}"][row].as_py() for key in ("bytes", "sha256")}

    def files(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and entry of every file."""
        for shard in self._row_of:
            for array, name in shard_files(shard).items():
                yield name, self.entry(shard, array)

    def holds(self, slots: NDArray[np.int64], num_slots: int) -> bool:
        """Whether these (N,) rows of the arrays are as many in each shard, ascending, and inside.

        Args:
            slots: int64, of all records.
            num_slots: length of the arrays.
        """
        if (np.diff(slots, prepend=-1) <= 0).any() or slots.max(initial=0) >= num_slots:
            return False
        shards, records = np.unique(slots // SHARD_RECORDS, return_counts=True)
        ours = (self.table[name].to_pylist() for name in ("shard", "records"))
        return [shards.tolist(), records.tolist()] == list(ours)


def read_shards(data: bytes, num_records: int, where: str) -> ShardTable:
    """Read shards.parquet.

    Args:
        data: content of the file.
        num_records: of the store: more shards than that have no record.
        where: named in errors.
    Raises:
        CorruptStoreError: it is no such table.
    """
    table = _read_parquet(data, _SHARDS, where, at_most=num_records)
    if any(column.null_count for column in table.columns):
        raise CorruptStoreError(f"{where} has an empty cell")
    return ShardTable(table)


def read_records(data: bytes, num_records: int, where: str) -> pa.Table:
    """Read records.parquet; what its columns hold was checked where they were written.

    Args:
        data: content of the file.
        num_records: rows that it must have: some bytes can stand for billions.
        where: named in errors.
    Raises:
        CorruptStoreError: it is no such table.
    """
    table = _read_parquet(data, SCHEMA, where, exactly=num_records)
    if any(table[name].null_count for name in _NEVER_NULL):
        raise CorruptStoreError(f"{where} has a row without {' or '.join(_NEVER_NULL)}")
    return table


def _read_parquet(
    data: bytes, schema: pa.Schema, where: str, *, exactly: int | None = None, at_most: int = 0
) -> pa.Table:
    """Read a table whose number of rows and columns are checked first."""
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
        return file.read(use_threads=False)
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
    if records.num_rows != len(reader):
        raise ShapeError(f"records must have {len(reader)} rows, got {records.num_rows}")
    store = reader.path
    content = {key: value for key, value in reader.manifest.items() if key != "digest"}
    # A crash after an earlier seal may have left the table that counts under its second name.
    if (store / NEXT_RECORDS).exists() and reader.records_name == NEXT_RECORDS:
        os.replace(store / NEXT_RECORDS, store / RECORDS)
    files = content["files"] | {RECORDS: write_table(store, records, NEXT_RECORDS)}
    write_manifest(store, content | changed | {"files": files})
    with explained(store):
        os.replace(store / NEXT_RECORDS, store / RECORDS)
        sync_folder(store)
