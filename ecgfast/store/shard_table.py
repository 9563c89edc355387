"""shards.parquet: sizes and digests of the files of every shard."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast.errors import CorruptStoreError
from ecgfast.store.format import LEAD_ARRAYS, SHARD_RECORDS, num_shards, shard_files
from ecgfast.store.manifest import Manifest
from ecgfast.store.table import read_parquet

_ENTRY = {"bytes": pa.int64(), "sha256": pa.string()}
_ARRAYS = ("signal", *LEAD_ARRAYS)
_FILES = {f"{array}_{key}": kind for array in _ARRAYS for key, kind in _ENTRY.items()}
_GENERATION = "generation"  # column of the table of a store that has grown
_SCHEMA = pa.schema({"shard": pa.int64(), "records": pa.int64(), **_FILES})

Entry = Mapping[str, int | str]  # of a file: {"bytes", "sha256"}


class ShardTable:
    """Sizes and digests of the files of every shard that holds records, in ascending order.

    Args:
        table: as shards.parquet has it.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._row_of = {shard: row for row, shard in enumerate(table["shard"].to_pylist())}

    @classmethod
    def of(cls, shards: Iterable[tuple[int, int, Mapping[str, Entry]]]) -> "ShardTable":
        """The table of shards given as number, records, path -> entry of each file."""
        rows = []
        for shard, records, files in shards:
            row: dict[str, int | str] = {"shard": shard, "records": records}
            for array, name in shard_files(shard).items():
                row |= {f"{array}_{key}": value for key, value in files[name].items()}
            rows.append(row)
        return cls(pa.Table.from_pylist(rows, _SCHEMA))

    @classmethod
    def of_format_1(cls, manifest: Manifest) -> "ShardTable":
        """The table of a store whose manifest lists the files itself, and which has no holes."""
        total = manifest["num_records"]
        return cls.of(
            (shard, min(SHARD_RECORDS, total - shard * SHARD_RECORDS), manifest["files"])
            for shard in range(num_shards(total))
        )

    def entry(self, shard: int, array: str = "signal") -> dict[str, Any]:
        """{"bytes", "sha256"} of a shard's file of one array."""
        row = self._row_of[shard]
        return {key: self.table[f"{array}_{key}"][row].as_py() for key in _ENTRY}

    def files(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and entry of every file."""
        for shard in self._row_of:
            for array, name in shard_files(shard).items():
                yield name, self.entry(shard, array)

    def up_to(self, num_slots: int) -> "ShardTable":
        """Those of the first rows of the arrays."""
        return ShardTable(self.table.filter(pc.field("shard") < num_shards(num_slots)))

    def joined(self, more: "ShardTable", generation: int) -> "ShardTable":
        """With shards that a generation has added; those without a number are of the first."""
        parts = [(self.table, 1), (more.table, generation)]
        tables = [
            part
            if _GENERATION in part.column_names
            else part.append_column(_GENERATION, pa.array([number] * len(part), pa.int64()))
            for part, number in parts
        ]
        return ShardTable(pa.concat_tables(tables))

    def replaced(self, changed: Mapping[int, tuple[int, Mapping[str, Entry]]]) -> "ShardTable":
        """With other files of some shards: number -> records, path -> entry of each file.

        Those without records are left out.
        """
        rows = {row["shard"]: row for row in self.table.to_pylist()}
        for shard, (records, files) in changed.items():
            if not records:
                del rows[shard]
                continue
            rows[shard]["records"] = records
            for array, name in shard_files(shard).items():
                rows[shard] |= {f"{array}_{key}": value for key, value in files[name].items()}
        return ShardTable(pa.Table.from_pylist([*rows.values()], self.table.schema))

    def holds(self, slots: NDArray[np.int64], num_slots: int) -> bool:
        """Whether the rows of all records, (N,) int64, are as many in each shard, and ascend."""
        if (np.diff(slots, prepend=-1) <= 0).any() or slots.max(initial=0) >= num_slots:
            return False
        shards, records = np.unique(slots // SHARD_RECORDS, return_counts=True)
        ours = (self.table[name].to_pylist() for name in ("shard", "records"))
        return [shards.tolist(), records.tolist()] == list(ours)


def read_shards(data: bytes, num_records: int, where: str) -> ShardTable:
    """Read shards.parquet of a store with so many records; `where` is named in errors.

    Raises:
        CorruptStoreError: it is no such table.
    """
    table = read_parquet(data, _SCHEMA, where, at_most=num_records)
    if any(column.null_count for column in table.columns):
        raise CorruptStoreError(f"{where} has an empty cell")
    return ShardTable(table)
