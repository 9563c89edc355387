"""Run under torchrun by test_leak.py: many steps of a very small model; prints what it holds.

torchrun --standalone --nproc-per-node 2 tests/helpers/leak_steps.py 5000
"""

import gc
import json
import sys
from pathlib import Path

import numpy as np
import torch

from ecgfast.config import load_config
from ecgfast.data.batch import Batch
from ecgfast.train.distributed import join
from ecgfast.train.loop import train_step
from ecgfast.train.optim import MasterAdamW
from ecgfast.train.pretrain import build_spread, masked_loss

SETTINGS = [
    *("model.encoder_width=8", "model.encoder_depth=1", "model.encoder_heads=1"),
    *("model.decoder_width=8", "model.decoder_depth=1", "model.decoder_heads=1"),
    *("model.num_timesteps=250", "train.batch_size=2"),
]


def resident_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main(num_steps: int) -> None:
    """Train; print objects and memory after a fifth of the steps, and after all."""
    config = load_config("vit_tiny", SETTINGS)
    with join("cpu") as ranks:
        model, _ = build_spread(config, ranks, None)
        optimizer = MasterAdamW(model, ranks, config.optim)
        patches = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 12, 256))).half()
        batch = Batch(patches=patches, record_index=torch.tensor([ranks.rank]), epoch=0)
        loss_of = masked_loss(model, config)
        held = []
        for step in range(1, num_steps + 1):
            train_step(model, optimizer, loss_of, batch, microbatch=1, learning_rate=1e-3)
            if step in (num_steps // 5, num_steps):
                gc.collect()
                held.append((len(gc.get_objects()), resident_mib()))
        if ranks.is_main:
            print("HELD", json.dumps(held))


if __name__ == "__main__":
    main(int(sys.argv[1]))
