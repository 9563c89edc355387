"""Stores behind an address are read as local ones are, and copied once into a folder of copies."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faulty_server import served, whole
from numpy.typing import NDArray
from recordings import ecg_like, make_store, snapshot, write_wfdb

import ecgfast
from ecgfast.errors import ConfigError, CorruptStoreError, FormatError
from ecgfast.store.fetch import cached_store
from ecgfast.store.format import address_of
from ecgfast.store.info import describe
from ecgfast.store.objects import Objects
from ecgfast.store.verify import verify_store

pytest.importorskip("obstore", reason="obstore is not installed")
SHARD = "signals.zarr/signal/c.{}.0.0"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.int16]]:
    """A store of two shards, and what it holds."""
    folder = tmp_path_factory.mktemp("cohort")
    store, signal = make_store(folder, 6)
    write_wfdb(folder / "in/z", ecg_like(1, seed=7)[0])
    ecgfast.convert([folder / "in"], store, append=True, workers=1)
    return store, np.concatenate([signal, ecg_like(1, seed=7)])


@pytest.fixture
def copy(made: tuple[Path, NDArray[np.int16]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "bucket/store"))


@pytest.mark.parametrize(
    ("path", "url"),
    [
        (Path("s3://bucket/a/b"), "s3://bucket/a/b"),
        ("s3://bucket/a/", "s3://bucket/a"),
        (Path("file:///tmp/a"), "file:///tmp/a"),
        ("/tmp/s3:/a", None),
        (Path("s3"), None),
    ],
)
def test_addresses_survive_a_path(path: str | Path, url: str | None) -> None:
    assert address_of(path) == url


def test_what_no_file_name_is_free_of(tmp_path: Path) -> None:
    objects = Objects((tmp_path / "b ü").as_uri().replace("%20", " ").replace("%C3%BC", "ü"))
    for name in ("a b", "ü%20", "x#+?.y", "sub/1"):
        assert objects.put(name, name.encode(), create=True)
        assert objects.read(name) == name.encode()
    assert not objects.put("a b", b"other", create=True)
    assert objects.read("a b") == b"a b"
    assert sorted(objects.names()) == ["a b", "sub/1", "x#+?.y", "ü%20"]
    assert (objects.folder()[0], objects.size("sub/1"), objects.size("no")) == (["sub"], 5, None)
    objects.remove(["a b", "sub/1"])
    assert sorted(objects.names()) == ["x#+?.y", "ü%20"]


def test_records_behind_an_address(made: tuple[Path, NDArray[np.int16]]) -> None:
    store, signal = made
    reader = ecgfast.open_store(store.as_uri())
    rows = [6, 5, 3, 3, 0]
    np.testing.assert_array_equal(reader.read(rows), signal[rows])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read([6]), signal[[6]])
    np.testing.assert_array_equal(reader.scale_uv, ecgfast.open_store(store).scale_uv)
    assert len(ecgfast.open_store(f"{store.as_uri()}@1")) == 6
    assert describe(store.as_uri()).stored_bytes == describe(store).stored_bytes
    assert verify_store(store.as_uri()) == []


def test_damage_behind_an_address_is_found(copy: Path) -> None:
    shard = copy / SHARD.format(0)
    content = bytearray(shard.read_bytes())
    content[4000] ^= 1
    shard.write_bytes(content)
    (copy / SHARD.format(1)).unlink()
    (copy / "notes.txt").touch()
    reader = ecgfast.open_store(copy.as_uri())
    with pytest.raises(CorruptStoreError, match=r"record 0 in .* is damaged"):
        reader.read(range(6))
    with pytest.raises(CorruptStoreError, match=f"there is no file:.*{SHARD.format(1)}"):
        reader.read([6])
    problems = "\n".join(verify_store(copy.as_uri()))
    assert f"{SHARD.format(0)}: the digest is wrong" in problems
    assert f"{SHARD.format(1)} is missing" in problems
    assert "notes.txt does not belong to the store" in problems
    shard.write_bytes(content[:-1])
    with pytest.raises(CorruptStoreError, match="bytes, expected"):
        ecgfast.open_store(copy.as_uri()).read([0])


def test_where_no_store_is(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"is not a store: it has no manifest\.json"):
        ecgfast.open_store(tmp_path.as_uri())


def test_training_wants_a_copy(made: tuple[Path, NDArray[np.int16]]) -> None:
    with pytest.raises(ConfigError, match=r"--set data\.cache_dir=FOLDER, or .* ecgfast fetch"):
        ecgfast.build_loader(ecgfast.open_store(made[0].as_uri()), batch_size=2)


def test_a_copy_is_kept_and_another_store_is_another_copy(copy: Path, tmp_path: Path) -> None:
    cache, url = tmp_path / "cache", Path(copy.as_uri())
    first = cached_store(url, cache)
    assert snapshot(first) == snapshot(copy)
    assert cached_store(Path(f"{copy.as_uri()}@1"), cache) == first.with_name("store@1")
    inode = (first / SHARD.format(0)).stat().st_ino
    (first / SHARD.format(1)).write_bytes(b"damaged")
    assert cached_store(url, cache) == first
    assert (first / SHARD.format(0)).stat().st_ino == inode
    assert snapshot(first) == snapshot(copy)
    assert cached_store(copy, cache) == copy  # a local store needs none


@pytest.mark.parametrize("flips", [1, 2])
def test_a_byte_that_flips_on_its_way(
    made: tuple[Path, NDArray[np.int16]], tmp_path: Path, flips: int
) -> None:
    def fault(name: str, before: int) -> tuple[int, Callable[[bytes], bytes]]:
        flipped = name == SHARD.format(0) and before < flips
        return 200, (lambda content: content[:-1] + b"x") if flipped else whole

    with served(made[0], fault) as (url, asked):
        if flips == 2:
            with pytest.raises(CorruptStoreError, match=r"c\.0\.0\.0 has .* sha256"):
                cached_store(Path(url), tmp_path)
        copied = cached_store(Path(url), tmp_path)
        assert asked[SHARD.format(0)] == flips + 1
    assert snapshot(copied) == snapshot(made[0])
