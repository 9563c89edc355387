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
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from loader_formats import PEERS, Records, prepare
from plot import draw, pivot
from torch.utils.data import DataLoader

from ecgfast.bench.loader import (
    Epoch,
    Use,
    bytes_row,
    drop_page_cache,
    epoch_of,
    fill_page_cache,
    measure,
    measure_cold,
    memory_bytes,
    store_bytes,
    use_rows,
)
from ecgfast.bench.rows import Row, append_rows, device_slug, make_row
from ecgfast.convert import convert
from ecgfast.data.dali import build as dali_build
from ecgfast.data.loader import build_loader
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.store import open_store
from ecgfast.vocabulary import EngineName

RESULTS = Path(__file__).parent / "results"
NUMPY = "numpy-memmap-int16"
OURS = ("ecgfast", "ecgfast-none", "ecgfast-cpu", "ecgfast-dali")
PROVIDERS = (*PEERS, NUMPY, *OURS)
_TOLERANCE = 0.01  # fp16 of z-scores up to 16 resolves 0.008; wfdb's statistics are float64
_CHECKED = 64  # records compared with ours before a variant is timed


@dataclass(frozen=True, kw_only=True)
class Variant:
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
        names = {
            "wfdb.rdsamp": "cohort",
            NUMPY: "memmap-int16",
            "ecgfast-none": "store-none",
        }
        default = "store" if self.provider.startswith("ecgfast") else self.provider
        return self.work / names.get(self.provider, default)


def main() -> None:
    args = _arguments()
    if args.nice:
        os.nice(args.nice)
    with tempfile.TemporaryDirectory(prefix="ecgfast-peers-", dir=args.scratch) as name:
        work = Path(name)
        _write_cohort(args, work / "cohort")
        convert([work / "cohort"], work / "store")
        if "ecgfast-none" in args.providers:
            convert([work / "store"], work / "store-none", codec="none", workers=1)
        read = {"memmap-int16" if name == NUMPY else name for name in args.providers}
        prepare(work / "store", work, [name for name in PEERS if name in read])
        rows = list(_rows(args, work))
    out = RESULTS / device_slug(args.device)
    append_rows(out / "loader.jsonl", rows)
    print(pivot(rows))
    if args.providers == list(PROVIDERS):
        draw(rows, out / "loader.png")


def _write_cohort(args: argparse.Namespace, cohort: Path) -> None:
    if not args.sources:
        write_cohort(cohort, num_records=args.records, num_sites=1, seed=0)
    for copy in range(args.copies):
        for source in args.sources:
            shutil.copytree(source, cohort / f"{copy:02d}" / source.name)


def _rows(args: argparse.Namespace, work: Path) -> Iterator[Row]:
    """Measure all variants in turns and summarise them."""
    variants = [
        Variant(
            provider=provider,
            workers=workers,
            work=work,
            device=args.device,
            batch_size=args.batch_size,
            seconds=args.seconds,
        )
        for workers in args.workers
        for provider in (*PEERS, NUMPY, *_ours(args.device))
        if provider in args.providers
        if provider != NUMPY or workers == args.workers[0]  # has no workers
    ]
    uses: dict[tuple[Variant, str], list[Use]] = {}
    for turn in range(args.turns):
        for variant in variants:
            cold, warm = _in_own_process(variant)
            uses.setdefault((variant, "cold"), []).append(cold)
            uses.setdefault((variant, "warm"), []).append(warm)
            print(
                f"turn {turn + 1}/{args.turns}: {variant.provider}, {variant.workers} workers: "
                f"{cold.records_per_s[0]:,.0f} records/s cold, "
                f"{np.median(warm.records_per_s):,.0f} warm; load {os.getloadavg()[0]:.1f}",
                file=sys.stderr,
            )
    num_records = len(open_store(work / "store"))
    kind = "real" if args.sources else "synthetic"
    for (variant, cache), measured in uses.items():
        rates = tuple(rate for one in measured for rate in one.records_per_s)
        cores = float(np.median([one.cores for one in measured]))
        use = Use(
            records_per_s=rates,
            cores=cores,
            memory_gib=float(max(one.memory_gib for one in measured)),
            read_bytes=float(np.median([one.read_bytes for one in measured])),
        )
        shape = f"{variant.workers} workers, batch {args.batch_size}, {cache}, {num_records} {kind}"
        yield from use_rows(variant.provider, shape, use, args.device)
        yield make_row(
            case="loader",
            provider=variant.provider,
            shape=shape,
            metric="throughput_of_a_core",
            unit="records/s",
            values=[float(np.median(rates)) / cores],
            device=args.device,
        )
    for variant in variants:
        if variant.workers == args.workers[0]:
            yield bytes_row(variant.provider, f"{num_records} {kind}", _stored_bytes(variant))


def _stored_bytes(variant: Variant) -> float:
    """Bytes of a record on disk."""
    if variant.provider.startswith("ecgfast"):
        return store_bytes(open_store(variant.folder))
    files = [path for path in variant.folder.rglob("*") if path.is_file()]
    if variant.provider == "wfdb.rdsamp":  # without annotations and tables
        files = [path for path in files if path.suffix in (".hea", ".dat", ".mat")]
    return sum(path.stat().st_size for path in files) / len(open_store(variant.work / "store"))


def _ours(device: str) -> list[str]:
    """Our engines: the one that `auto` takes, it on the uncompressed store, and the others."""
    names = ["ecgfast", "ecgfast-none", *(["ecgfast-cpu"] if device == "cuda" else [])]
    if dali_build.is_installed():
        return [*names, "ecgfast-dali"]
    print("DALI is not installed: its engine is left out", file=sys.stderr)
    return names


def _in_own_process(variant: Variant) -> tuple[Use, Use]:
    """Run one variant in a fresh interpreter, so that no variant inherits another's memory."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(variant, send))
    process.start()
    send.close()
    try:
        cold, warm = json.loads(receive.recv())
    except EOFError:
        sys.exit(f"{variant.provider} with {variant.workers} workers failed; see above")
    process.join()
    return _use(cold), _use(warm)


def _use(content: dict[str, object]) -> Use:
    rates = content.pop("records_per_s")
    return Use(records_per_s=tuple(rates), **content)  # type: ignore[arg-type]  # JSON of this class


def _run(variant: Variant, send: Connection) -> None:
    """Check, then measure, in the process of the variant."""
    torch.set_num_threads(1)
    memory = memory_bytes()
    if variant.provider == NUMPY:
        epoch = _numpy_epoch(variant)
    elif variant.provider.startswith("ecgfast"):
        epoch = _our_epoch(variant)
    else:
        epoch = _peer_epoch(variant)
    options = {"device": variant.device, "memory_before": memory}
    cold = measure_cold(epoch, lambda: drop_page_cache(variant.folder), **options)
    fill_page_cache(variant.folder)
    warm = measure(epoch, seconds=variant.seconds, rounds=2, **options)
    send.send(json.dumps([asdict(cold), asdict(warm)]))


def _our_epoch(variant: Variant) -> Epoch:
    chosen: EngineName = "resident" if variant.device == "cuda" else "cpu"
    engines: dict[str, EngineName] = {"ecgfast-dali": "dali", "ecgfast-cpu": "cpu"}
    return epoch_of(
        build_loader(
            open_store(variant.folder),
            batch_size=variant.batch_size,
            engine=engines.get(variant.provider, chosen),
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
    loader: DataLoader[torch.Tensor] = DataLoader(
        records,
        batch_size=variant.batch_size,
        shuffle=True,
        num_workers=variant.workers,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="fork",  # Linux's default; spawned ones would import torch first
        pin_memory=variant.device == "cuda",
    )

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
    z_BCT = np.empty((size, 12, 5000), np.float32)
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, nargs="*", help="folders of WFDB records")
    parser.add_argument("--copies", type=int, default=18, help="of the sources")
    parser.add_argument("--records", type=int, default=4096, help="synthetic ones, without sources")
    parser.add_argument(
        "--providers",
        nargs="+",
        choices=PROVIDERS,
        default=list(PROVIDERS),
        metavar="NAME",
        help=f"of the table: {', '.join(PROVIDERS)}; by default all, and a plot",
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=2, help="each has a cold and two warm rounds")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a warm round")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--scratch", type=Path, help="folder on the disk to measure")
    parser.add_argument("--nice", type=int, default=0, help="of this process and all variants")
    return parser.parse_args()


if __name__ == "__main__":
    main()
