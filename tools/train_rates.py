"""Training on records of a store: what each loader costs it, millions of records, and fused blocks.

    python tools/train_rates.py engines --out rates --json rows.jsonl --presets vit_tiny,vit_large
    python tools/train_rates.py many --out rates --copies 54
    python tools/train_rates.py gate --out rates --set optim.one_pass=true

`engines`: the trainer's own step, fed by each engine, by a DataLoader (over HDF5 where h5py is),
and by random patches that lie on the device, which no loader can beat. `many`: an epoch over the
same records many times in memory, alone and in training, beside the records once. `gate`: mean loss
of the last steps from two seeds, with and without fused blocks; exit status 1 when they differ by
more than the seeds do. The store is OUT/store, made of synthetic records where it is missing.
"""

import argparse
import gc
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecgfast import log
from ecgfast.bench import peers_module
from ecgfast.bench.loader import Epoch, epoch_of, measure, measure_cold
from ecgfast.bench.rows import Row, append_rows, make_row, render
from ecgfast.bench.step import LEARNING_RATE, build_train, random_batch
from ecgfast.config import Config, load_config
from ecgfast.convert import convert
from ecgfast.data.batch import Batch
from ecgfast.data.loader import Loader, RankOrder, build_loader
from ecgfast.errors import BackendUnavailableError
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.store import open_store
from ecgfast.store.reader import StoreReader
from ecgfast.train.distributed import join

SEEDS = (0, 1)
Train = Callable[..., Tensor]  # takes a batch, and learning_rate=; returns the loss


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the command line says."""

    store: StoreReader
    out: Path
    presets: list[str]
    settings: list[str]
    device: str
    microbatch: int | None
    seconds: float
    rounds: int
    steps: int
    copies: int

    def config(self, preset: str, *settings: str) -> Config:
        """Settings of a run; on a GPU its steps are replayed."""
        graph = ["train.cuda_graph=true"] if self.device == "cuda" else []
        return load_config(preset, [*graph, *settings, *self.settings])

    def records(self, preset: str) -> int:
        """Records of a step: the trainer's, but for what ViT-Large needs beside its peers."""
        return self.microbatch or (256 if preset == "vit_large" else 1024)

    def loader(
        self,
        records: int,
        *,
        engine: str = "auto",
        seed: int = 0,
        store: StoreReader | None = None,
    ) -> Loader:
        """Shuffled batches of a store, by default this one's."""
        return build_loader(
            store or self.store, batch_size=records, seed=seed, engine=engine, device=self.device
        )


def fed(train: Train, batches: Iterable[Batch]) -> Epoch:
    """An epoch of training on some batches, for the meter."""

    def epoch() -> Iterator[int]:
        for batch in batches:
            train(batch)
            yield len(batch.record_index)

    return epoch


def in_turns(task: Task, epochs: dict[str, Epoch]) -> dict[str, list[float]]:
    """Records a second of each, round by round; the first round compiled before."""
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(task.rounds):
        for name, epoch in epochs.items():
            use = measure(epoch, device=task.device, seconds=task.seconds, rounds=1)
            rates[name] += use.records_per_s
    return rates


def engines(task: Task) -> Iterator[Row]:
    """For each preset the rate of random patches, and of every loader beside it."""
    if not (path := task.out / "raw").exists():
        convert([task.store.path], path, codec="none")
    raw = open_store(path)
    for preset in task.presets:
        records, config = task.records(preset), task.config(preset)
        choices = {
            "resident": ("resident", task.store),
            "resident-raw": ("resident", raw),
            "cpu": ("cpu", task.store),
            "dali": ("dali", task.store),
        }
        with join(task.device) as ranks:
            train = build_train(config, ranks)
            random = random_batch(config, ranks.device, records)
            epochs = {"random-patches": fed(train, [random] * 64)}
            for name, (engine, store) in choices.items():
                try:
                    loader = task.loader(records, engine=engine, store=store)
                    epochs[name] = fed(train, loader)
                except BackendUnavailableError as error:
                    log.warning(f"{name} left out: {error}")
            peer = "h5py" if find_spec("h5py") else "memmap-int16"
            epochs[f"dataloader-{peer}"] = fed(train, PeerBatches(task, records, peer))
            for _ in range(2):
                train(random)
            rates = in_turns(task, epochs)
        for name, values in rates.items():
            row = partial(make_row, case="train_from", provider=name, preset=preset)
            row = partial(row, shape=f"{records} records", device=task.device)
            yield row(metric="throughput", unit="records/s", values=values)
            shares = zip(values, rates["random-patches"], strict=True)
            percent = [100 * rate / most for rate, most in shares]
            yield row(metric="share_of_random_patches", unit="%", values=percent)
        del train, epochs, random
        gc.collect()


class PeerBatches:
    """Batches of a DataLoader over a map-style dataset, as people read their records."""

    def __init__(self, task: Task, records: int, peer: str) -> None:
        formats = peers_module("loader_formats")
        work = task.out / f"dataloader-{peer}"
        if not work.exists():
            work.mkdir()
            formats.prepare(task.store.path, work, [peer])
        self._device = task.device
        self._loader = torch.utils.data.DataLoader(
            formats.Records(peer, work),
            batch_size=records,
            shuffle=True,
            num_workers=8 if task.device == "cuda" else 1,
            drop_last=True,
            multiprocessing_context="fork",  # spawned ones would import torch first
            pin_memory=task.device == "cuda",
        )

    def __iter__(self) -> Iterator[Batch]:
        for patches in self._loader:
            index = torch.arange(len(patches), device=self._device)
            moved = patches.to(self._device, non_blocking=True)
            yield Batch(patches=moved, record_index=index, epoch=0)


def repeated(task: Task, records: int, copies: int) -> Loader:
    """Batches of the resident records as often as asked for, each copy in memory of its own."""
    loader = task.loader(records, engine="resident")
    engine: Any = loader._engine
    held, number = engine._held, len(task.store) * copies
    starts = torch.arange(copies, device=held.mean.device) * held.chunks.bytes.numel()
    chunks = replace(
        held.chunks,
        bytes=held.chunks.bytes.repeat(copies),
        offsets=(starts[:, None] + held.chunks.offsets).flatten(),
        lengths=held.chunks.lengths.repeat(copies),
    )
    mean, rstd = held.mean.repeat(copies, 1), held.rstd.repeat(copies, 1)
    engine._held = replace(held, chunks=chunks, mean=mean, rstd=rstd)
    engine._slot_of = np.arange(number)
    return Loader(engine, RankOrder(index=np.arange(number), batch_size=records))


def many(task: Task) -> Iterator[Row]:
    """Epochs over copies of the records, decoded alone and trained on, beside the records once."""
    for preset in task.presets:
        records, config = task.records(preset), task.config(preset)
        loaders = {n: repeated(task, records, n) for n in (1, task.copies)}
        shapes = {n: f"{len(task.store):,} records x {n}" for n in loaders}
        row = partial(make_row, provider="resident", unit="records/s", metric="throughput")
        row = partial(row, preset=preset, device=task.device)
        use = measure_cold(epoch_of(loaders[task.copies]), lambda: None, device=task.device)
        yield row(case="whole_epoch", shape=shapes[task.copies], values=use.records_per_s)
        rates = in_turns(task, {shapes[n]: epoch_of(each) for n, each in loaders.items()})
        for shape, values in rates.items():
            yield row(case="decode_from", shape=shape, values=values)
        with join(task.device) as ranks:
            train = build_train(config, ranks)
            for batch in itertools.islice(loaders[1], 2):
                train(batch)
            rates = in_turns(task, {shapes[n]: fed(train, each) for n, each in loaders.items()})
        for shape, values in rates.items():
            yield row(case="train_from", shape=shape, values=values)


def gate(task: Task) -> Iterator[Row]:
    """Mean loss of the last tenth of the steps, for each seed and each kind of blocks."""
    (preset,) = task.presets
    kinds = ["off", "separate"]
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 9:
        kinds.append("triton")
    for seed, fused in itertools.product(SEEDS, kinds):
        config = task.config(preset, f"train.seed={seed}", f"fused={fused}")
        loader = task.loader(task.records(preset), seed=seed)
        losses: list[Tensor] = []
        with join(task.device) as ranks:
            train = build_train(config, ranks)
            endless = itertools.chain.from_iterable(loader for _ in itertools.count())
            for step, batch in enumerate(itertools.islice(endless, task.steps)):
                warm = min(1.0, (step + 1) / (0.1 * task.steps))
                losses.append(train(batch, learning_rate=LEARNING_RATE * warm))
        last = torch.stack(losses[-max(1, task.steps // 10) :]).mean().item()
        shape = f"seed {seed}, {task.steps} steps"
        row = partial(make_row, case="loss_gate", provider=f"fused={fused}", preset=preset)
        yield row(shape=shape, metric="loss", unit="", values=[last], device=task.device)
        del train, loader
        gc.collect()


def beyond_the_seeds(rows: list[Row]) -> list[str]:
    """Say which losses of fused blocks differ from the plain ones' by more than two seeds do."""
    losses = {(row.provider, row.shape): row.p50 for row in rows if row.case == "loss_gate"}
    plain = {shape: loss for (kind, shape), loss in losses.items() if kind == "fused=off"}
    spread = max(plain.values(), default=0.0) - min(plain.values(), default=0.0)
    return [
        f"{kind}, {shape}: loss {loss:.5f}, {plain[shape]:.5f} without; the seeds differ by "
        f"{spread:.5f}"
        for (kind, shape), loss in losses.items()
        if not abs(loss - plain[shape]) <= spread
    ]


CASES: dict[str, Callable[[Task], Iterator[Row]]] = {
    "engines": engines,
    "many": many,
    "gate": gate,
}


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--out", type=Path, required=True, help="folder of the store")
    parser.add_argument("--json", type=Path, help="rows are appended here")
    parser.add_argument("--presets", default="vit_large", help="models, comma-separated")
    parser.add_argument("--records", type=int, default=37456, help="of the store, if it is made")
    parser.add_argument("--microbatch", type=int, help="records of a step")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--seconds", type=float, default=3, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="of each loader")
    parser.add_argument("--steps", type=int, default=300, help="of each run of the gate")
    parser.add_argument("--copies", type=int, default=54, help="of the records in memory")
    parser.add_argument("--set", action="append", default=[], help="a setting of the run")
    return parser.parse_args()


def main() -> int:
    """Run a case; return the exit status."""
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path, cohort = arguments.out / "store", arguments.out / "cohort"
    if not path.exists():
        write_cohort(cohort, num_records=arguments.records, num_sites=8, seed=0)
        convert([cohort], path)
    store = open_store(path)
    shared = {"out", "device", "microbatch", "seconds", "rounds", "steps", "copies"}
    values = {name: value for name, value in vars(arguments).items() if name in shared}
    presets = arguments.presets.split(",")
    task = Task(store=store, presets=presets, settings=arguments.set, **values)
    rows: list[Row] = []
    # every model compiles the same block code anew; the limit of 8 is for runaway guards
    with torch._dynamo.config.patch(recompile_limit=64):
        for row in CASES[arguments.case](task):
            rows.append(row)
            print(render(row), flush=True)
            if arguments.json is not None:
                append_rows(arguments.json, [row])
    print(*(wrong := beyond_the_seeds(rows)), sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
