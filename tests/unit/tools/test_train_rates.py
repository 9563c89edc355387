"""tools/train_rates.py on a CPU: every loader trains, copies are the records, the gate can fail."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from recordings import convert_quietly, ecg_like, write_wfdb

from ecgfast.bench.rows import Row, make_row
from ecgfast.store import open_store

TOOLS = Path(__file__).resolve().parents[3] / "tools"
RECORDS = 6
TINY = [
    f"model.{part}_{size}" for part in ("encoder", "decoder") for size in ("depth=1", "heads=2")
]
TINY += ["model.encoder_width=32", "model.decoder_width=32"]


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("train_rates")


@pytest.fixture
def task(rates: ModuleType, tmp_path: Path) -> Any:
    for number, signal in enumerate(ecg_like(RECORDS, seed=0)):
        write_wfdb(tmp_path / f"in/{number}", signal)
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    return rates.Task(
        store=open_store(tmp_path / "store"),
        out=tmp_path,
        presets=["demo"],
        settings=TINY,
        device="cpu",
        microbatch=2,
        seconds=0.01,
        rounds=2,
        steps=10,
        copies=3,
    )


def test_every_loader_trains_beside_random_patches(rates: ModuleType, task: Any) -> None:
    rows = list(rates.engines(task))
    shares = {r.provider: r for r in rows if r.metric == "share_of_random_patches"}
    loaders = {name.partition("-")[0] for name in shares}
    assert loaders - {"dali"} == {"random", "resident", "cpu", "dataloader"}
    assert "resident-raw" in shares
    assert shares["random-patches"].p20 == pytest.approx(100)
    rates_per_s = [row for row in rows if row.unit == "records/s"]
    assert len(rates_per_s) == len(shares)
    assert all(row.n == 2 and row.p20 > 0 for row in rates_per_s)


def test_copies_in_memory_are_the_records(rates: ModuleType, task: Any) -> None:
    loaded = (list(rates.repeated(task, 2, copies)) for copies in (1, 3))
    patches, visited = (
        {int(i): p for b in batches for i, p in zip(b.record_index, b.patches, strict=True)}
        for batches in loaded
    )
    assert sorted(visited) == list(range(3 * RECORDS))
    assert all(torch.equal(patch, patches[i % RECORDS]) for i, patch in visited.items())
    assert not torch.equal(patches[0], patches[1])
    held = rates.repeated(task, 2, 3)._engine._held.chunks
    assert len(held.offsets.unique()) == 3 * RECORDS  # in memory of their own
    assert int(held.offsets[-1] + held.lengths[-1]) == len(held.bytes)


def test_many_records_are_decoded_and_trained_on(rates: ModuleType, task: Any) -> None:
    rows = [(row.case, row.shape) for row in rates.many(task)]
    one, three = f"{RECORDS} records x 1", f"{RECORDS} records x 3"
    both = [(case, shape) for case in ("decode_from", "train_from") for shape in (one, three)]
    assert rows == [("whole_epoch", three), *both]


def test_fused_blocks_pass_the_gate(rates: ModuleType, task: Any) -> None:
    rows = list(rates.gate(task))
    losses = {(row.provider, row.shape): row.p50 for row in rows}
    assert len(losses) == len(rows) == 4
    first, second = (losses["fused=off", f"seed {seed}, 10 steps"] for seed in (0, 1))
    assert abs(first - second) > 1e-3
    assert abs(losses["fused=separate", "seed 0, 10 steps"] - first) < 1e-4
    assert rates.beyond_the_seeds(rows) == []


def loss(fused: str, seed: int, value: float) -> Row:
    return make_row(
        case="loss_gate",
        provider=f"fused={fused}",
        shape=f"seed {seed}",
        metric="loss",
        unit="",
        values=[value],
    )


@pytest.mark.parametrize("value", [0.86, 0.74, float("nan")])
def test_losses_beyond_the_spread_of_the_seeds_are_said(rates: ModuleType, value: float) -> None:
    rows = [loss("off", 0, 0.80), loss("off", 1, 0.75), loss("triton", 1, 0.79)]
    assert rates.beyond_the_seeds([*rows, loss("triton", 0, 0.84)]) == []
    (wrong,) = rates.beyond_the_seeds([*rows, loss("triton", 0, value)])
    assert wrong.startswith("fused=triton, seed 0: loss")
    assert "0.80000 without; the seeds differ by 0.05000" in wrong
