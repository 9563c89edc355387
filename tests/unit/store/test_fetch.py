"""Copies of stores over a connection: the same bytes, or one clear error."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from faulty_server import Fault, served, whole
from recordings import convert_quietly, snapshot, write_cohort

from ecgfast.errors import ConfigError, CorruptStoreError, EcgfastError
from ecgfast.store import fetch as module
from ecgfast.store.fetch import fetch_store
from ecgfast.store.verify import verify_store

pytest.importorskip("obstore", reason="obstore is not installed")
SHARD = "signals.zarr/signal/c.0.0.0"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder / "in", 20)
    convert_quietly([folder / "in"], folder / "bucket/store")
    return folder / "bucket/store"


def sound(name: str, before: int) -> tuple[int, Callable[[bytes], bytes]]:
    return 200, whole


def only(name: str, status: int, body: Callable[[bytes], bytes], *, times: int = 99) -> Fault:
    """One file goes wrong so many times."""

    def fault(asked: str, before: int) -> tuple[int, Callable[[bytes], bytes]]:
        return (status, body) if asked == name and before < times else (200, whole)

    return fault


def flipped(content: bytes) -> bytes:
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


def torn(content: bytes) -> bytes:
    return content[: len(content) // 2]


def test_a_copy_has_the_same_bytes_and_says_how_far_it_is(store: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    out = tmp_path / "new/copy"
    assert fetch_store(store.as_uri(), out, lambda *step: steps.append(step)) == out
    assert snapshot(out) == snapshot(store)
    assert verify_store(out) == []
    assert steps[-1][0] == steps[-1][1] == sum(
        path.stat().st_size for path in store.rglob("*") if path.is_file()
    ) - (store / "manifest.json").stat().st_size  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["copy"]


def test_a_copy_that_was_damaged_later_is_mended(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(store, out)
    (out / SHARD).write_bytes(flipped((store / SHARD).read_bytes()))
    (out / "records.parquet").unlink()
    with served(store, sound) as (url, asked):
        fetch_store(url, out)
    assert set(asked) == {"manifest.json", "records.parquet", SHARD}
    assert snapshot(out) == snapshot(store)


def test_what_is_there_already_is_not_asked_for(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(store, tmp_path / "copy.fetch")  # as a copy that was killed before its end
    (tmp_path / "copy.fetch/quarantine.csv").write_bytes(b"half")
    with served(store, sound) as (url, asked):
        fetch_store(url, out)
        assert snapshot(out) == snapshot(store)
        assert set(asked) == {"manifest.json", "quarantine.csv"}
        fetch_store(url, out)
        assert asked["manifest.json"] == 2
        assert asked["quarantine.csv"] == 1


@pytest.mark.parametrize(
    ("status", "body", "times"), [(200, flipped, 1), (503, whole, 2), (200, torn, 1)]
)
def test_what_comes_wrong_is_fetched_again(
    store: Path, tmp_path: Path, status: int, body: Callable[[bytes], bytes], times: int
) -> None:
    with served(store, only(SHARD, status, body, times=times)) as (url, asked):
        fetch_store(url, tmp_path / "copy")
    assert asked[SHARD] == times + 1
    assert snapshot(tmp_path / "copy") == snapshot(store)


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (200, flipped, "c.0.0.0 has [0-9,]+ bytes and sha256 [0-9a-f]{64}, its store lists"),
        (403, whole, "c.0.0.0 was refused; give credentials"),
        (404, whole, "there is no http.*c.0.0.0"),
    ],
)
def test_what_stays_wrong_is_one_error_and_nothing_is_lost(
    store: Path, tmp_path: Path, status: int, body: Callable[[bytes], bytes], text: str
) -> None:
    out = tmp_path / "copy"
    with (
        served(store, only(SHARD, status, body)) as (url, _),
        pytest.raises(EcgfastError, match=text),
    ):
        fetch_store(url, out)
    assert not out.exists()
    with served(store, sound) as (url, asked):
        fetch_store(url, out)
    assert asked["records.parquet"] == 0  # it had come before
    assert snapshot(out) == snapshot(store)


def test_a_folder_that_holds_something_else_is_left_alone(store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("precious")
    with pytest.raises(ConfigError, match="holds something else than the store at"):
        fetch_store(store.as_uri(), tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "precious"


@pytest.mark.parametrize("url", ["store", "ftp://host/store", "S3:/bucket"])
def test_other_addresses_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the address of a store begins with s3://"):
        fetch_store(url, tmp_path / "copy")


def test_an_address_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ConfigError, match=r"az://box/one cannot be opened: .*; check the address$"):
        fetch_store("az://box/one", tmp_path / "copy")


def test_where_no_store_is(tmp_path: Path) -> None:
    with pytest.raises(CorruptStoreError, match=r"there is no .*manifest.json; a store's address"):
        fetch_store((tmp_path / "empty").as_uri(), tmp_path / "copy")


def test_a_manifest_names_no_file_outside(store: Path, tmp_path: Path) -> None:
    """Sealed by somebody who means harm: the digest is right."""
    hostile = tmp_path / "bucket"
    shutil.copytree(store, hostile)
    content = json.loads((hostile / "manifest.json").read_text())
    content["files"]["../../stolen"] = {"bytes": 3, "sha256": "0" * 64}
    del content["digest"]
    from ecgfast.store.manifest import write_manifest

    write_manifest(hostile, content)
    with pytest.raises(EcgfastError, match="stolen"):
        fetch_store(hostile.as_uri(), tmp_path / "deep/copy")
    assert not (tmp_path / "stolen").exists()


def test_a_disk_without_space_is_said_before_the_shards(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=100_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(EcgfastError, match=r"bytes more at .*, which has 100,000; free some space"):
        fetch_store(store.as_uri(), tmp_path / "copy")


def test_a_full_disk_leaves_no_half_file(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(EcgfastError, match="disk full while writing"):
            fetch_store(store.as_uri(), tmp_path / "copy")
    assert list((tmp_path / "copy.fetch").rglob("*.tmp")) == []
