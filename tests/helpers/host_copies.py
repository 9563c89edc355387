"""Run by test_host_copy.py on several ranks: prints each rank's batches and its part of the memory.

torchrun --standalone --nproc-per-node 2 tests/helpers/host_copies.py STORE ENGINE [CACHE]
"""

import hashlib
import json
import re
import sys
from pathlib import Path

import torch.distributed as dist

from ecgfast.config import load_config
from ecgfast.data.loader import selected_rows
from ecgfast.data.normalise import Normalisation
from ecgfast.train.dataset import open_loader, open_matching_store
from ecgfast.train.distributed import join


def shared_bytes() -> tuple[int, int]:
    """Bytes that this process maps of a cohort, and its share of those that are in memory."""
    text = Path("/proc/self/smaps").read_text()
    maps = [part for part in re.split(r"\n(?=[0-9a-f]+-)", text) if "memfd:ecgfast-cohort" in part]
    sizes = [1024 * int(size) for part in maps for size in re.findall(r"\nSize: +(\d+)", part)]
    held = [1024 * int(size) for part in maps for size in re.findall(r"\nPss: +(\d+)", part)]
    return sum(sizes), sum(held)


def main(path: str, engine: str, *cache: str) -> None:
    """Read an epoch; rank 0 prints what all saw."""
    config = load_config(
        "demo", [f"data.engine={engine}", *(f"data.cache_dir={each}" for each in cache)]
    )
    with join("cpu") as ranks:
        store = open_matching_store(path, config, ranks)
        loader = open_loader(
            store,
            config,
            ranks,
            selected_rows(store, None),
            batch_size=8,
            seed=0,
            normalisation=Normalisation(),
        )
        digest = hashlib.sha256()
        for batch in loader:
            digest.update(batch.record_index.numpy().tobytes() + batch.patches.numpy().tobytes())
        dist.barrier()  # a share is half of a page only while both have read it
        own = (digest.hexdigest(), *shared_bytes())
        every = [own] * ranks.world_size
        dist.all_gather_object(every, own)
        if ranks.is_main:
            print("COPIES", json.dumps(every))


if __name__ == "__main__":
    main(*sys.argv[1:])
