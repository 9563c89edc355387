"""The manifest: whole, of our version, and stable."""

import hashlib
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from changed_stores import change_manifest, seal_as_it_is
from recordings import convert_quietly, make_store

import ecgfast
from ecgfast.errors import CorruptStoreError, FormatError
from ecgfast.store.format import shard_files
from ecgfast.store.manifest import read_manifest
from ecgfast.store.shard_table import ShardTable
from ecgfast.store.table import write_table


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path, 2)[0]


def test_says_what_the_store_holds(store: Path) -> None:
    manifest = read_manifest(store)
    assert manifest["counts"] == {
        "inputs": 2,
        "converted": 2,
        "quarantined": 0,
        "records": 2,
        "duplicates": 0,
    }
    files = {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}
    listed = manifest["files"] | dict(ecgfast.open_store(store).shard_table.files())
    assert set(listed) == files - {"manifest.json"}
    for name, entry in listed.items():
        data = (store / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_ten_million_records_open_at_once(store: Path) -> None:
    """The manifest has 3 KB then too; the table of shards is read when it is first asked for."""
    num_records = 10_000_000
    entry: dict[str, int | str] = {"bytes": 12_345_678, "sha256": hashlib.sha256().hexdigest()}
    shards = ShardTable.of(
        (shard, min(1024, num_records - 1024 * shard), dict.fromkeys(files.values(), entry))
        for shard, files in ((shard, shard_files(shard)) for shard in range(9766))
    )
    write_table(store, [shards.table], shards.table.schema, "shards.parquet")
    seal_as_it_is(store, num_records=num_records, num_slots=num_records)
    began = time.process_time()
    reader = ecgfast.open_store(store)
    assert time.process_time() - began < 0.05
    assert (store / "manifest.json").stat().st_size < 5_000
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        reader = ecgfast.open_store(store)
        assert tracemalloc.get_traced_memory()[1] < 1e6
        assert reader.shard_table.entry(9765) == entry
        grown = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before
    finally:
        tracemalloc.stop()
    assert grown < 20e6


def test_newer_version_is_a_clear_error(store: Path) -> None:
    change_manifest(store, version=3)
    with pytest.raises(FormatError, match="format version 3, this ecgfast reads 1 to 2"):
        ecgfast.open_store(store)


@pytest.mark.parametrize("text", ["", "[]", "{}", "not JSON", "[" * 100_000, '{"digest": 1}'])
def test_damage(store: Path, text: str) -> None:
    (store / "manifest.json").write_text(text)
    with pytest.raises(CorruptStoreError, match="damaged"):
        ecgfast.open_store(store)


def test_added_white_space_is_damage(store: Path) -> None:
    path = store / "manifest.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(CorruptStoreError, match="damaged"):
        ecgfast.open_store(store)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", None, "has format version None, this ecgfast reads 1 to 2"),
        ("codec", "lzma", "codec 'lzma'"),
        ("num_records", -1, "with -1 records"),
        ("num_records", 2_000_000, "'num_slots' must be at least 2000000, got 2"),
        ("num_slots", "2", "'num_slots' must be at least 2, got '2'"),
        ("identity", None, "'identity' must be of type str, got None"),
        ("preprocessing", [], r"'preprocessing' must be of type dict, got \[\]"),
    ],
)
def test_a_manifest_with_a_right_digest_and_wrong_content(
    store: Path, key: str, value: object, message: str
) -> None:
    change_manifest(store, **{key: value})
    with pytest.raises((CorruptStoreError, FormatError), match=message) as caught:
        ecgfast.open_store(store)
    assert "\n" not in str(caught.value)


def test_identity_is_of_the_signals(tmp_path: Path) -> None:
    first, _ = make_store(tmp_path / "a", 2)
    same, _ = make_store(tmp_path / "b", 2)
    other, _ = make_store(tmp_path / "c", 2, seed=1)
    identities = [ecgfast.open_store(path).identity for path in (first, same, other)]
    assert identities[0] == identities[1] != identities[2]


def test_identity_is_of_how_the_signals_were_made(tmp_path: Path) -> None:
    """No record is short here, so both stores hold the same signals."""
    path, _ = make_store(tmp_path, 2)
    convert_quietly([tmp_path / "in"], tmp_path / "other", short="pad")
    first, second = ecgfast.open_store(path), ecgfast.open_store(tmp_path / "other")
    (shard,) = path.glob("signals.zarr/signal/c.*")
    assert shard.read_bytes() == (second.path / shard.relative_to(path)).read_bytes()
    assert first.identity != second.identity
