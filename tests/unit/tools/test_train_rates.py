"""tools/train_rates.py on a CPU: every loader trains, and copies are the records."""

from pathlib import Path
from typing import Any

import pytest
import torch
from recordings import convert_quietly, ecg_like, write_wfdb
from scripts import script

rates = script("tools/train_rates.py")
RECORDS = 6
TINY = [
    f"model.{part}_{size}" for part in ("encoder", "decoder") for size in ("depth=1", "heads=2")
]
TINY += ["model.encoder_width=32", "model.decoder_width=32"]


@pytest.fixture
def task(tmp_path: Path) -> Any:
    for number, signal in enumerate(ecg_like(RECORDS, seed=0)):
        write_wfdb(tmp_path / f"in/{number}", signal)
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    words = f"engines --out {tmp_path} --presets demo --device cpu --microbatch 2 --seconds 0.01"
    settings = [f"--set={setting}" for setting in TINY]
    return rates.parse([*words.split(), "--rounds", "2", "--copies", "3", *settings])


def test_every_loader_trains_beside_random_patches(task: Any) -> None:
    rows = list(rates.engines(task))
    shares = {r.provider: r for r in rows if r.metric == "share_of_random_patches"}
    loaders = {name.partition("-")[0] for name in shares}
    assert loaders - {"dali"} == {"random", "resident", "cpu", "dataloader"}
    assert shares["random-patches"].p20 == pytest.approx(100)
    rates_per_s = [row for row in rows if row.unit == "records/s"]
    assert len(rates_per_s) == len(shares)
    assert all(row.n == 2 and row.p20 > 0 for row in rates_per_s)


def test_copies_in_memory_are_the_records(task: Any) -> None:
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


def test_many_records_are_decoded_and_trained_on(task: Any) -> None:
    rows = [(row.case, row.shape) for row in rates.many(task)]
    one, three = f"{RECORDS} records x 1", f"{RECORDS} records x 3"
    both = [(case, shape) for case in ("decode_from", "train_from") for shape in (one, three)]
    assert rows == [("whole_epoch", three), *both[:2], ("train_from", "random-patches"), *both[2:]]
