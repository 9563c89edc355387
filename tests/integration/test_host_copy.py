"""Two ranks on this machine hold one copy of a cohort, and read the same batches from it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty_server import served, whole
from recordings import snapshot

from ecgfast.store import open_store

pytestmark = pytest.mark.slow  # ranks


def on_two_ranks(store: Path | str, engine: str, *cache: Path) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).parents[1] / "helpers" / "host_copies.py"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [sys.executable, *launcher, script, store, engine, *cache],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def copies(store: Path | str, engine: str, *cache: Path) -> list[list[Any]]:
    done = on_two_ranks(store, engine, *cache)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("COPIES"))
    found: list[list[Any]] = json.loads(line.removeprefix("COPIES"))
    return found


def test_two_ranks_hold_one_copy(store: Path) -> None:
    resident, alone = copies(store, "resident"), copies(store, "cpu")
    assert [digest for digest, *_ in resident] == [digest for digest, *_ in alone]
    assert resident[0][0] != resident[1][0]  # each rank has its own records
    need = sum(array.nbytes for array in open_store(store).load_chunks())
    for _, mapped, _ in resident:
        assert mapped >= need
    assert 0.9 * need <= sum(held for *_, held in resident) <= 1.1 * need + 8192
    assert all(mapped == 0 for _, mapped, _ in alone)


def test_two_ranks_copy_a_store_once(store: Path, tmp_path: Path) -> None:
    def sound(name: str, before: int) -> tuple[int, Callable[[bytes], bytes]]:
        return 200, whole

    with served(store, sound) as (url, asked):
        found = copies(url, "cpu", tmp_path)
        assert [each[0] for each in found] == [each[0] for each in copies(store, "cpu")]
        assert {name: asked[name] for name in asked if name.startswith("signals")} == {
            name: 1 for name in snapshot(store) if name.startswith("signals")
        }
        (copied,) = tmp_path.glob("*/*")
        assert snapshot(copied) == snapshot(store)
    done = on_two_ranks(store.as_uri(), "cpu")
    assert done.returncode != 0
    assert "--set data.cache_dir=FOLDER" in done.stderr


def test_a_damaged_record_ends_both_and_is_said_once(store: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    subprocess.run(["cp", "-r", store, damaged], check=True)
    shard = damaged / "signals.zarr/signal/c.0.0.0"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 0xFF
    shard.write_bytes(content)
    done = on_two_ranks(damaged, "resident")
    assert done.returncode != 0
    assert done.stderr.count("ecgfast.errors.CorruptStoreError: ") == 1, done.stderr
