"""Training on records of a store: what each loader costs it, and millions of records.

    python tools/train_rates.py engines --out rates --json rows.jsonl
    python tools/train_rates.py many --out rates --presets vit_small --copies 54

`engines`: the trainer's own step, fed by each engine, by a DataLoader over a memory map,
and by random patches that lie on the device, which no loader can beat. `many`: an epoch over the
same records many times in memory, alone and in training, beside the records once. The store is
OUT/store, made of synthetic records where it is missing.
"""

import argparse
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecgfast import log
from ecgfast.bench import Row, make_rows, peers_module, show
from ecgfast.bench.loader import Epoch, epoch_of, measure, measure_round
from ecgfast.bench.step import build_train, random_batch
from ecgfast.config import load_config
from ecgfast.convert import convert
from ecgfast.data.batch import Batch
from ecgfast.data.loader import Loader, RankOrder, build_loader
from ecgfast.errors import BackendUnavailableError
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.store import open_store
from ecgfast.train.distributed import join


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `store` is opened, and made where it is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--out", type=Path, required=True, help="folder of the store")
    parser.add_argument("--json", type=Path, help="rows are appended here")
    every = "vit_tiny,vit_small,vit_base,vit_large"
    parser.add_argument("--presets", default=every, help="models, comma-separated")
    parser.add_argument("--records", type=int, default=37456, help="of the store, if it is made")
    parser.add_argument("--microbatch", type=int, help="of a step; ViT-Large 256, else 1024")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--seconds", type=float, default=3, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="of each loader")
    parser.add_argument("--copies", type=int, default=54, help="of the records in memory")
    parser.add_argument("--set", action="append", default=[], help="a setting of the run")
    args = parser.parse_args(words)
    path, cohort = args.out / "store", args.out / "cohort"
    if not path.exists():
        write_cohort(cohort, num_records=args.records, num_sites=8, seed=0)
        convert([cohort], path)
    args.store = open_store(path)
    return args


def in_turns(args: argparse.Namespace, epochs: dict[str, Epoch]) -> dict[str, list[float]]:
    """Records a second of each, round by round; the first round compiled before."""
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(args.rounds):
        for name, epoch in epochs.items():
            (one,) = measure(epoch, device=args.device, seconds=args.seconds, rounds=1)
            rates[name].append(one.records_per_s)
    return rates


def in_training(
    args: argparse.Namespace, preset: str, feeds: dict[str, Iterable[Batch | Tensor]]
) -> dict[str, list[float]]:
    """The same of training steps on the batches of each, and on random patches on the device."""
    graph = ["train.cuda_graph=true"] if args.device == "cuda" else []
    config = load_config(preset, [*graph, *args.set])
    with join(args.device) as ranks:
        train = build_train(config, ranks)
        random = random_batch(config, ranks.device, records_of(args, preset))
        for _ in range(2):
            train(random)

        def fed(batches: Iterable[Batch | Tensor]) -> Iterator[int]:
            for batch in batches:
                if isinstance(batch, Tensor):  # patches of a DataLoader
                    patches = batch.to(ranks.device, non_blocking=True)
                    batch = replace(random, patches=patches)
                train(batch)
                yield len(batch.record_index)

        every = {"random-patches": [random] * 64, **feeds}
        return in_turns(args, {name: partial(fed, feed) for name, feed in every.items()})


def records_of(args: argparse.Namespace, preset: str) -> int:
    """Records of a step: the trainer's, but for what ViT-Large needs beside its peers."""
    return args.microbatch or (256 if preset == "vit_large" else 1024)


def engines(args: argparse.Namespace) -> Iterator[Row]:
    """For each preset the rate of random patches, and of every loader beside it."""
    for preset in args.presets.split(","):
        records = records_of(args, preset)
        feeds: dict[str, Iterable[Batch | Tensor]] = {}
        for name in ("resident", "cpu", "dali"):
            options = {"batch_size": records, "engine": name, "device": args.device}
            try:
                feeds[name] = build_loader(args.store, **options)
            except BackendUnavailableError as error:
                log.warning(f"{name} left out: {error}")
        feeds["dataloader-memmap-int16"] = dataloader(args, records, "memmap-int16")
        rates = in_training(args, preset, feeds)
        for name, values in rates.items():
            shares = zip(values, rates["random-patches"], strict=True)
            numbers = {
                ("throughput", "records/s"): values,
                ("share_of_random_patches", "%"): [100 * rate / most for rate, most in shares],
            }
            texts = {"preset": preset, "shape": f"{records} records", "device": args.device}
            yield from make_rows(numbers, case="train_from", provider=name, **texts)
        del feeds
        gc.collect()


def dataloader(args: argparse.Namespace, records: int, peer: str) -> Iterable[Tensor]:
    """Patches from a DataLoader over a map-style dataset, as people read their records."""
    peers, work = peers_module("loader_peers"), args.out / f"dataloader-{peer}"
    if not work.exists():
        work.mkdir()
        peers.prepare(args.store, work, [peer])
    workers = 8 if args.device == "cuda" else 1
    patches: Iterable[Tensor] = peers.Records(peer, work).loader(records, workers, args.device)
    return patches


def repeated(args: argparse.Namespace, records: int, copies: int) -> Loader:
    """Batches of the resident records as often as asked for, each copy in memory of its own."""
    loader = build_loader(args.store, batch_size=records, engine="resident", device=args.device)
    engine: Any = loader._engine
    held, number = engine._held, len(args.store) * copies
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


def many(args: argparse.Namespace) -> Iterator[Row]:
    """Epochs over copies of the records, decoded alone and trained on, beside the records once."""
    for preset in args.presets.split(","):
        records = records_of(args, preset)
        loaders = {
            f"{len(args.store):,} records x {copies}": repeated(args, records, copies)
            for copies in (1, args.copies)
        }
        epochs = {shape: epoch_of(each) for shape, each in loaders.items()}
        shape = [*epochs][-1]
        whole = {shape: [measure_round(epochs[shape](), args.device).records_per_s]}
        decoded, trained = in_turns(args, epochs), in_training(args, preset, {**loaders})
        cases = {"whole_epoch": whole, "decode_from": decoded, "train_from": trained}
        for case, rates in cases.items():
            for shape, values in rates.items():
                numbers = {("throughput", "records/s"): values}
                texts = {"preset": preset, "shape": shape, "device": args.device}
                yield from make_rows(numbers, case=case, provider="resident", **texts)


CASES: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {"engines": engines, "many": many}

if __name__ == "__main__":
    arguments = parse()
    # every model compiles the same block code anew; the limit of 8 is for runaway guards
    with torch._dynamo.config.patch(recompile_limit=64):
        show(CASES[arguments.case](arguments), arguments.json)
