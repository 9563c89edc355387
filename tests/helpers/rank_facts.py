"""Run by test_distributed.py on any number of ranks: prints what the ranks start from and see.

torchrun --standalone --nproc-per-node 2 tests/helpers/rank_facts.py STORE PRESET STEPS
"""

import hashlib
import json
import sys
from itertools import islice
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from ecgfast.config import load_config
from ecgfast.data.loader import selected_rows
from ecgfast.data.normalise import Normalisation
from ecgfast.store.reader import open_store
from ecgfast.train.dataset import open_loader
from ecgfast.train.distributed import Ranks, full_state, join
from ecgfast.train.microbatch import rank_share
from ecgfast.train.pretrain import build_spread, model_inputs


def digest(tensors: list[Tensor]) -> str:
    """SHA-256 of the tensors' bytes."""
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()


def gathered(own: list[str], ranks: Ranks) -> list[str]:
    """Lines of all ranks, rank 0's first."""
    parts: list[list[str]] = [own] * ranks.world_size
    if ranks.world_size > 1:
        dist.all_gather_object(parts, own)
    return [line for part in parts for line in part]


def main(store: Path, preset: str, num_steps: int) -> None:
    """Print a digest of the initial weights and one of each record's number, patches and masks."""
    config = load_config(preset)
    with join("cpu") as ranks:
        model, _ = build_spread(config, ranks, None)
        weights = list(full_state(model).values())
        opened = open_store(store)
        share = rank_share(config.train.batch_size, ranks)
        loader = open_loader(
            opened,
            config,
            ranks,
            selected_rows(opened, None),
            batch_size=share,
            seed=0,
            normalisation=Normalisation(),
        )
        inputs_of = model_inputs(config)
        endless = (batch for _ in range(num_steps) for batch in loader)  # epoch after epoch
        seen = []
        for batch in islice(endless, num_steps):
            tensors = [batch.record_index, *inputs_of(batch)]
            seen += gathered([digest(list(record)) for record in zip(*tensors, strict=True)], ranks)
        if ranks.is_main:
            print("FACTS", json.dumps({"weights": digest(weights), "seen": seen}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
