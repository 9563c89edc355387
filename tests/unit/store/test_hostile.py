"""Stores from others: files that block, that fill the memory, or whose digests fit nonsense."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from changed_stores import change_manifest, change_table, seal_as_it_is
from recordings import make_store

from ecgfast.errors import CorruptStoreError
from ecgfast.store.info import describe
from ecgfast.store.reader import open_store
from ecgfast.store.verify import verify_store

SHARD, LEADS = "signals.zarr/signal/c.0.0.0", "signals.zarr/scale_uv/c.0.0"
GIB = 1 << 30


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path, 2)[0]


READS: dict[str, Callable[[Path], object]] = {
    "manifest.json": open_store,
    "records.parquet": lambda store: open_store(store).records,
    "quarantine.csv": describe,
    "shards.parquet": lambda store: open_store(store).read([0]),
    SHARD: lambda store: open_store(store).read([0]),
    LEADS: lambda store: open_store(store).scale_uv,
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "nothing", "a link to itself"])
def test_what_is_no_file_is_damage(name: str, kind: str, store: Path) -> None:
    path = store / name
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a link to itself":
        path.symlink_to(path)
    if (name, kind) == ("manifest.json", "nothing"):
        with pytest.raises(CorruptStoreError, match="unfinished"):
            open_store(store)
        return
    with pytest.raises(CorruptStoreError, match=name.replace(".", r"\.")):
        READS[name](store)
    assert any(name in line for line in verify_store(store))


@pytest.mark.parametrize("name", READS)
def test_a_file_that_has_grown_is_not_read(name: str, store: Path) -> None:
    os.truncate(store / name, 64 * GIB)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 * GIB, hard))
    try:
        with pytest.raises(CorruptStoreError, match=name.replace(".", r"\.")):
            READS[name](store)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_table_of_too_many_rows_is_not_read(store: Path) -> None:
    part = pa.table({"site": pa.nulls(1 << 24, pa.string())})
    with pq.ParquetWriter(store / "records.parquet", part.schema) as writer:
        for _ in range(4):
            writer.write_table(part)
    change_manifest(store)
    del part
    highest = pa.default_memory_pool().max_memory()
    with pytest.raises(CorruptStoreError, match="has 67108864 rows, the signals 2"):
        _ = open_store(store).records
    assert pa.default_memory_pool().max_memory() == highest
    assert (store / "records.parquet").stat().st_size < 1 << 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["flags"]), "no right column flags"),
        (lambda table: _cast(table, "age", pa.string()), "no right column age"),
        (lambda table: table.append_column("site", table["site"]), "no right column site"),
        (lambda table: _cast(table, "patient_id", pa.null()), "no right column patient_id"),
        (lambda table: _nulled(table, "flags"), "a row without record_id"),
    ],
)
def test_a_table_of_other_columns_is_refused(
    change: Callable[[pa.Table], pa.Table], message: str, store: Path
) -> None:
    change_table(store, change)
    with pytest.raises(CorruptStoreError, match=message):
        _ = open_store(store).records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["records"]), "no right column records"),
        (lambda table: _cast(table, "lead_std_bytes", pa.string()), "no right column lead_std_byt"),
        (lambda table: _cast(table, "records", pa.int64()), "has an empty cell"),
        (lambda table: pa.concat_tables([table] * 3), "has 3 rows, allowed 2"),
        (lambda table: pa.concat_tables([table] * 2), "name other rows"),
        (lambda table: _filled(table, "shard", 1), "name other rows"),
        (lambda table: _filled(table, "records", 1), "name other rows"),
    ],
)
def test_shards_that_do_not_fit_are_refused(
    change: Callable[[pa.Table], pa.Table], message: str, store: Path
) -> None:
    table = change(pq.read_table(store / "shards.parquet"))
    pq.write_table(table, store / "shards.parquet")
    seal_as_it_is(store)
    with pytest.raises(CorruptStoreError, match=message):
        open_store(store).read([0])
    assert any(message in line for line in verify_store(store))


def test_a_table_that_is_none_is_refused(store: Path) -> None:
    (store / "records.parquet").write_bytes(b"PAR1" + bytes(99) + b"PAR1")
    change_manifest(store)
    with pytest.raises(CorruptStoreError, match="is no table that can be read"):
        _ = open_store(store).records


@pytest.mark.parametrize("name", ["fold", "content", "duplicate_of"])
def test_columns_of_later_versions_may_lack(name: str, store: Path) -> None:
    change_table(store, lambda table: table.drop_columns([name]))
    assert open_store(store).records.num_rows == 2


@pytest.mark.parametrize(
    "wrong",
    [
        *({"counts": None}, {"counts": {}}, {"counts": {"inputs": "2"}}, {"synthetic": None}),
        *({"identifiers": []}, {"request": 1}, {"labels": 5}, {"labels": "x"}, {"splits": []}),
        *({"patients": None}, {"retained": "x"}, {"passed_over": [1]}, {"source_files": "x"}),
        *({"passed_over": {"XML": "x"}}, {"left_out": {"a": [1]}}, {"quality": None}),
    ],
)
def test_entries_of_other_types_are_damage(wrong: dict[str, object], store: Path) -> None:
    change_manifest(store, **wrong)
    (key,) = wrong
    with pytest.raises(CorruptStoreError, match=f"manifest.json is damaged: '{key}' must"):
        open_store(store)


def _cast(table: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    at = table.column_names.index(name)
    return table.set_column(at, name, pa.nulls(table.num_rows, kind))


def _filled(table: pa.Table, name: str, value: int) -> pa.Table:
    at = table.column_names.index(name)
    return table.set_column(at, name, pa.array([value] * table.num_rows, pa.int64()))


def _nulled(table: pa.Table, name: str) -> pa.Table:
    return _cast(table, name, table.schema.field(name).type)
