"""ecgfast's engines beside the loaders people use: records/s, cores, memory, bytes a record.

    python benchmarks/loader_peers.py ../shared/data/ludb ../shared/data/ptbxl/hr_gt --copies 18
    python benchmarks/loader_peers.py --records 4096        # synthetic records

Sources are folders of WFDB records of 12 x 5000 at 500 Hz; copies make them more than a processor's
cache holds. Every variant runs in a process of its own, variants take turns, and each must give the
same patches as ecgfast before it is timed: first one epoch after its files have left the page cache
(POSIX_FADV_DONTNEED; a disk or a host below may still cache them), then rounds with all files in
it. Prints a table; rows go to benchmarks/results/DEVICE/loader.jsonl, the plot to loader.png.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from loader_formats import PEERS, SHAPE, Records, dataloader, prepare
from plot import draw, pivot

from ecgfast.bench.loader import (
    Epoch,
    Round,
    bytes_row,
    epoch_of,
    measure,
    measure_round,
    memory_bytes,
    store_bytes,
    use_rows,
)
from ecgfast.bench.measuring import Row, append_rows, device_slug, make_rows
from ecgfast.convert import convert
from ecgfast.data.dali import build as dali_build
from ecgfast.data.loader import build_loader
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.store import open_store
from ecgfast.vocabulary import EngineName

RESULTS = Path(__file__).parent / "results"
NUMPY = "numpy-memmap-int16"
# folder that they read, and engine; by default the one that `auto` takes
OURS: dict[str, tuple[str, EngineName | None]] = {
    "ecgfast": ("store", None),
    "ecgfast-none": ("store-none", None),
    "ecgfast-cpu": ("store", "cpu"),
    "ecgfast-dali": ("store", "dali"),
}
_TOLERANCE = 0.01  # fp16 of z-scores up to 16 resolves 0.008; wfdb's statistics are float64
_CHECKED = 64  # records compared with ours before a variant is timed


PROVIDERS = (*PEERS, NUMPY, *OURS)


class Variant(NamedTuple):
    """One line of the table."""

    provider: str
    workers: int
    work: Path
    device: str
    batch_size: int
    seconds: float

    @property
    def folder(self) -> Path:
        """What it reads."""
        names = {"wfdb.rdsamp": "cohort", NUMPY: "memmap-int16"}
        names |= {name: folder for name, (folder, _) in OURS.items()}
        return self.work / names.get(self.provider, self.provider)

    def stored_bytes(self) -> float:
        """Bytes of a record on disk."""
        if self.provider in OURS:
            return store_bytes(open_store(self.folder))
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        if self.provider == "wfdb.rdsamp":  # without annotations and tables
            files = [path for path in files if path.suffix in (".hea", ".dat", ".mat")]
        return sum(path.stat().st_size for path in files) / len(open_store(self.work / "store"))


def run(variant: Variant) -> tuple[list[Round], list[Round]]:
    """Check, then measure cold and warm, in a process of the variant's own."""
    torch.set_num_threads(1)
    memory = memory_bytes()
    if variant.provider in OURS:
        epoch = _our_epoch(variant)
    else:
        epoch = _numpy_epoch(variant) if variant.provider == NUMPY else _peer_epoch(variant)
    os.sync()
    files = [path for path in variant.folder.rglob("*") if path.is_file()]
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cold = measure_round(epoch(), variant.device, memory)
    for path in files:
        path.read_bytes()  # into the page cache, where it fits
    options = {"device": variant.device, "seconds": variant.seconds}
    return [cold], measure(epoch, memory_before=memory, rounds=2, **options)


def _our_epoch(variant: Variant) -> Epoch:
    engine = OURS[variant.provider][1] or ("resident" if variant.device == "cuda" else "cpu")
    return epoch_of(
        build_loader(
            open_store(variant.folder),
            batch_size=variant.batch_size,
            engine=engine,
            device=variant.device,
            num_threads=variant.workers,
        )
    )


def _peer_epoch(variant: Variant) -> Epoch:
    records = Records(variant.provider, variant.work)
    ours = build_loader(
        open_store(variant.work / "store"), batch_size=_CHECKED, shuffle=False, engine="cpu"
    )
    expected = next(iter(ours)).patches.numpy()
    got = torch.stack([records[row] for row in range(_CHECKED)]).numpy()
    records.handle = None  # opened again in each worker; what is mapped would stay in the cache
    worst = float(np.abs(got.astype(np.float32) - expected.astype(np.float32)).max())
    if not worst <= _TOLERANCE:
        raise AssertionError(f"{variant.provider} gives other patches, off by {worst}")
    loader = dataloader(records, variant.batch_size, variant.workers, variant.device)

    def epoch() -> Iterator[int]:
        for batch in loader:
            yield len(batch.to(variant.device, non_blocking=True))

    return epoch


def _numpy_epoch(variant: Variant) -> Epoch:
    """Plain NumPy in one process: whole batches from a raw int16 memmap, no DataLoader.

    Its buffers are used again, though a training loop could not keep the batch before.
    """
    records = Records("memmap-int16", variant.work)
    size = variant.batch_size
    z_BCT = np.empty((size, *SHAPE), np.float32)
    patches = torch.zeros((size, 240, 256), dtype=torch.float16)
    rng = np.random.default_rng(0)

    def epoch() -> Iterator[int]:
        signal_NCT = records.format.open(records.folder)
        order = rng.permutation(len(records))
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            np.subtract(signal_NCT[rows], records.mean[rows][:, :, None], out=z_BCT)
            np.multiply(z_BCT, records.rstd[rows][:, :, None], out=z_BCT)
            patches.numpy()[:, :, :250] = z_BCT.reshape(size, 240, 250)
            yield len(patches.to(variant.device, non_blocking=True))

    return epoch


def rows_of(variants: list[Variant], turns: int, what: str) -> Iterator[Row]:
    """Measure all variants in turns and summarise them; `what` is read."""
    rounds: dict[tuple[Variant, str], list[Round]] = {}
    for turn in range(turns):
        for variant in variants:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # nobody's memory inherited
                measured = dict(
                    zip(("cold", "warm"), pool.submit(run, variant).result(), strict=True)
                )
            for cache, found in measured.items():
                rounds.setdefault((variant, cache), []).extend(found)
            rates = {cache: found[-1].records_per_s for cache, found in measured.items()}
            line = f"{rates['cold']:,.0f} records/s cold, {rates['warm']:,.0f} warm"
            load = f"load {os.getloadavg()[0]:.1f}"
            name = f"{variant.provider}, {variant.workers} workers"
            print(f"turn {turn + 1}/{turns}: {name}: {line}; {load}", file=sys.stderr)
    for (variant, cache), found in rounds.items():
        shape = f"{variant.workers} workers, batch {variant.batch_size}, {cache}, {what}"
        rows = list(use_rows(variant.provider, shape, found, variant.device))
        yield from rows
        p50 = {row.metric: row.p50 for row in rows}
        of_core = {("throughput_of_a_core", "records/s"): [p50["throughput"] / p50["cores"]]}
        texts = {"provider": variant.provider, "shape": shape, "device": variant.device}
        yield from make_rows(of_core, case="loader", **texts)
    for variant in {variant.provider: variant for variant in reversed(variants)}.values():
        yield from bytes_row(variant.provider, what, variant.stored_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, nargs="*", help="folders of WFDB records")
    parser.add_argument("--copies", type=int, default=18, help="of the sources")
    parser.add_argument("--records", type=int, default=4096, help="synthetic ones, without sources")
    providers = {"nargs": "+", "choices": PROVIDERS, "default": list(PROVIDERS), "metavar": "NAME"}
    parser.add_argument("--providers", **providers, help=f"all or some of {', '.join(PROVIDERS)}")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=2, help="each has a cold and two warm rounds")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a warm round")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure")
    args = parser.parse_args()
    left_out = {"ecgfast-cpu"} if args.device == "cpu" else set()  # it is `ecgfast`
    if not dali_build.is_installed():
        print("DALI is not installed: its engine is left out", file=sys.stderr)
        left_out.add("ecgfast-dali")
    with tempfile.TemporaryDirectory(prefix="ecgfast-peers-", dir=args.scratch) as name:
        work = Path(name)
        if not args.sources:
            write_cohort(work / "cohort", num_records=args.records, num_sites=1, seed=0)
        for copy in range(args.copies):
            for source in args.sources:
                shutil.copytree(source, work / "cohort" / f"{copy:02d}" / source.name)
        convert([work / "cohort"], work / "store")
        convert([work / "store"], work / "store-none", codec="none", workers=1)
        store = open_store(work / "store")
        read = {"memmap-int16" if name == NUMPY else name for name in args.providers}
        prepare(store, work, [name for name in PEERS if name in read])
        variants = [
            Variant(provider, workers, work, args.device, args.batch_size, args.seconds)
            for workers in args.workers
            for provider in PROVIDERS
            if provider in args.providers and provider not in left_out
            if provider != NUMPY or workers == args.workers[0]  # has no workers
        ]
        kind = "real" if args.sources else "synthetic"
        rows = list(rows_of(variants, args.turns, f"{len(store)} {kind}"))
    out = RESULTS / device_slug(args.device)
    append_rows(out / "loader.jsonl", rows)
    print(pivot(rows))
    if args.providers == list(PROVIDERS):
        draw(rows, out / "loader.png")


if __name__ == "__main__":
    main()
