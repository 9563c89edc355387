"""Do fused blocks learn as well as plain ones? Losses of two seeds, with and without.

    python tests/checks/loss_gate.py --store rates/store --set optim.one_pass=true

Trains from the first weights on records of a store, and takes the mean loss of the last tenth of
the steps. Exit status 1 when fused blocks differ from plain ones by more than two seeds do.
"""

import argparse
import gc
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ecgfast import log
from ecgfast.bench.step import LEARNING_RATE, build_train
from ecgfast.config import load_config
from ecgfast.data.loader import build_loader
from ecgfast.store import open_store
from ecgfast.train.distributed import join

SEEDS = (0, 1)
Losses = dict[tuple[str, int], float]  # by kind of blocks and seed


def losses(args: argparse.Namespace) -> Iterator[tuple[str, int, float]]:
    """Train with each seed and each kind of blocks; yields kind, seed and loss."""
    on_gpu = args.device == "cuda"
    kinds = ["off", "separate"]
    if on_gpu and torch.cuda.get_device_capability()[0] >= 9:
        kinds.append("triton")
    graph = ["train.cuda_graph=true"] if on_gpu else []
    for seed, fused in itertools.product(SEEDS, kinds):
        config = load_config(
            args.preset, [*graph, f"train.seed={seed}", f"fused={fused}", *args.set]
        )
        options = {"batch_size": args.microbatch, "device": args.device}
        loader = build_loader(open_store(args.store), seed=seed, **options)
        found = []
        with join(args.device) as ranks:
            train = build_train(config, ranks)
            endless = itertools.chain.from_iterable(loader for _ in itertools.count())
            for step, batch in enumerate(itertools.islice(endless, args.steps)):
                warm = min(1.0, (step + 1) / (0.1 * args.steps))
                found.append(train(batch, learning_rate=LEARNING_RATE * warm))
        yield fused, seed, torch.stack(found[-max(1, args.steps // 10) :]).mean().item()
        del train, loader
        gc.collect()


def beyond_the_seeds(found: Losses) -> list[str]:
    """Say which losses of fused blocks differ from the plain ones' by more than two seeds do."""
    plain = {seed: loss for (kind, seed), loss in found.items() if kind == "off"}
    spread = max(plain.values()) - min(plain.values())
    return [
        f"fused={kind}, seed {seed}: loss {loss:.5f}, {plain[seed]:.5f} without; the seeds differ "
        f"by {spread:.5f}"
        for (kind, seed), loss in found.items()
        if not abs(loss - plain[seed]) <= spread
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--preset", default="vit_large")
    parser.add_argument("--microbatch", type=int, default=256, help="records of a step")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--steps", type=int, default=300, help="of each run")
    parser.add_argument("--set", action="append", default=[], help="a setting of the run")
    return parser.parse_args(words)


def main() -> int:
    """Print each loss, then what is wrong; return the exit status."""
    log.setup()
    found: Losses = {}
    # every model compiles the same block code anew; the limit of 8 is for runaway guards
    with torch._dynamo.config.patch(recompile_limit=64):
        for fused, seed, loss in losses(parse()):
            print(f"fused={fused}, seed {seed}: loss {loss:.5f}", flush=True)
            found[fused, seed] = loss
    print(*(wrong := beyond_the_seeds(found)), sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
