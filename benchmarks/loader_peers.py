"""ecgfast's engines beside the loaders people use: records/s, cores, memory, bytes a record.

    python benchmarks/loader_peers.py --records 2048 --workers 1 2 --rounds 3 [--cold]

Every variant runs in a process of its own, variants take turns, and each must give the same
patches as ecgfast before it is timed. The table is printed; rows go to
benchmarks/results/DEVICE/loader.jsonl, from which plot.py draws.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from loader_formats import PEERS, prepare
from torch.utils.data import DataLoader

from ecgfast.bench.loader import bytes_row, epoch_of, store_bytes, use_rows
from ecgfast.bench.meter import Epoch, Use, drop_page_cache, measure
from ecgfast.bench.rows import Row, append_rows, device_slug
from ecgfast.convert import convert
from ecgfast.data.loader import build_loader
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.store import open_store

RESULTS = Path(__file__).parent / "results"
NUMPY = "numpy-memmap-int16"
_FOLDERS = {"wfdb.rdsamp": "cohort", NUMPY: "memmap-int16"}
_TOLERANCE = 0.01  # fp16 of z-scores up to 16 resolves 0.008; wfdb's statistics are float64


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One line of the table."""

    provider: str
    workers: int
    work: Path
    device: str
    batch_size: int
    seconds: float
    cold: bool


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory(prefix="ecgfast-peers-") as name:
        work = Path(name)
        cohort, store = work / "cohort", work / "store"
        write_cohort(cohort, num_records=args.records, num_sites=1, seed=0)
        convert([cohort], store)
        convert([store], work / "store-none", codec="none", workers=1)
        prepare(store, cohort, work)
        rows = list(_rows(args, work))
    out = RESULTS / device_slug(args.device)
    append_rows(out / "loader.jsonl", rows)
    _print_table(rows)


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
            cold=args.cold,
        )
        for workers in args.workers
        for provider in (*PEERS, NUMPY, *_ours(args.device))
        if provider != NUMPY or workers == args.workers[0]  # has no workers
    ]
    uses: dict[Variant, list[Use]] = {variant: [] for variant in variants}
    for number in range(args.rounds):
        for variant in variants:
            uses[variant].append(_in_own_process(variant))
            rate = uses[variant][-1].records_per_s[0]
            print(
                f"round {number + 1}/{args.rounds}: {variant.provider}, {variant.workers} "
                f"workers: {rate:,.0f} records/s",
                file=sys.stderr,
            )
    cache = "cold" if args.cold else "warm"
    for variant, measured in uses.items():
        use = Use(
            records_per_s=tuple(rate for one in measured for rate in one.records_per_s),
            cores=float(np.median([one.cores for one in measured])),
            memory_gib=float(np.median([one.memory_gib for one in measured])),
        )
        shape = f"{variant.workers} workers, batch {args.batch_size}, {cache}, {args.records}"
        yield from use_rows(variant.provider, shape, use, args.device)
    for provider in (*PEERS, NUMPY):
        folder = work / _FOLDERS.get(provider, provider)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        yield bytes_row(provider, "", size / args.records)
    for provider in _ours(args.device):
        yield bytes_row(provider, "", store_bytes(open_store(_store_of(provider, work))))


def _ours(device: str) -> list[str]:
    """Our engines: the one that `auto` takes, it on the uncompressed store, and the others."""
    names = ["ecgfast", "ecgfast-none", *(["ecgfast-cpu"] if device == "cuda" else [])]
    try:
        import nvidia.dali  # noqa: F401

        return [*names, "ecgfast-dali"]
    except ImportError:
        print("DALI is not installed: its engine is left out", file=sys.stderr)
        return names


def _store_of(provider: str, work: Path) -> Path:
    return work / ("store-none" if provider.endswith("-none") else "store")


def _in_own_process(variant: Variant) -> Use:
    """Run one variant in a fresh interpreter, so that no variant inherits another's memory."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(variant, send))
    process.start()
    send.close()
    try:
        text = receive.recv()
    except EOFError:
        sys.exit(f"{variant.provider} with {variant.workers} workers failed; see above")
    process.join()
    content = json.loads(text)
    return Use(**{**content, "records_per_s": tuple(content["records_per_s"])})


def _run(variant: Variant, send: "multiprocessing.connection.Connection") -> None:
    """Check, then measure, in the process of the variant."""
    torch.set_num_threads(1)
    if variant.provider == NUMPY:
        epoch = _numpy_epoch(variant)
    elif variant.provider.startswith("ecgfast"):
        epoch = _our_epoch(variant)
    else:
        epoch = _peer_epoch(variant)
    use = measure(
        epoch,
        device=variant.device,
        seconds=variant.seconds,
        rounds=1,
        before_round=(lambda: drop_page_cache(variant.work)) if variant.cold else None,
    )
    send.send(json.dumps(asdict(use)))


def _our_epoch(variant: Variant) -> Epoch:
    chosen = "resident" if variant.device == "cuda" else "cpu"
    engine = {"ecgfast-dali": "dali", "ecgfast-cpu": "cpu"}.get(variant.provider, chosen)
    return epoch_of(
        build_loader(
            open_store(_store_of(variant.provider, variant.work)),
            batch_size=variant.batch_size,
            engine=engine,  # type: ignore[arg-type]
            device=variant.device,
            num_threads=variant.workers,
        )
    )


def _peer_epoch(variant: Variant) -> Epoch:
    records = PEERS[variant.provider](variant.work / variant.provider)
    ours = build_loader(
        open_store(variant.work / "store"), batch_size=8, shuffle=False, engine="cpu"
    )
    expected = next(iter(ours)).patches.numpy()
    got = torch.stack([records[row] for row in range(8)]).numpy()
    records.handle = None  # opened again in each worker
    worst = float(np.abs(got.astype(np.float32) - expected.astype(np.float32)).max())
    if worst > _TOLERANCE:
        raise AssertionError(f"{variant.provider} gives other patches, off by {worst}")
    loader: DataLoader[torch.Tensor] = DataLoader(
        records,
        batch_size=variant.batch_size,
        shuffle=True,
        num_workers=variant.workers,
        drop_last=True,
        persistent_workers=True,
        pin_memory=variant.device == "cuda",
    )

    def epoch() -> Iterator[int]:
        for batch in loader:
            yield len(batch.to(variant.device, non_blocking=True))

    return epoch


def _numpy_epoch(variant: Variant) -> Epoch:
    """Plain NumPy in one process: whole batches from a raw int16 memmap, no DataLoader."""
    records = PEERS["memmap-int16"](variant.work / "memmap-int16")
    signal_NCT = records.open()
    rng = np.random.default_rng(0)

    def epoch() -> Iterator[int]:
        order = rng.permutation(len(records))
        for start in range(0, len(order) - variant.batch_size + 1, variant.batch_size):
            rows = order[start : start + variant.batch_size]
            z_BCT = signal_NCT[rows].astype(np.float32)
            z_BCT -= records.mean[rows][:, :, None]
            z_BCT *= records.rstd[rows][:, :, None]
            patches = torch.zeros((len(rows), 240, 256), dtype=torch.float16)
            patches.numpy()[:, :, :250] = z_BCT.reshape(len(rows), 240, 250)
            yield len(patches.to(variant.device, non_blocking=True))

    return epoch


def _print_table(rows: list[Row]) -> None:
    """Print a Markdown table: one line a provider and number of workers."""
    stored = {row.provider: row.p50 for row in rows if row.metric == "storage"}
    print("| loader | workers | records/s | cores | records/s a core | memory GiB | bytes/record |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        if row.metric == "throughput":
            extra = {
                r.metric: r.p50 for r in rows if (r.provider, r.shape) == (row.provider, row.shape)
            }
            cores = extra.get("cores", float("nan"))
            print(
                f"| {row.provider} | {row.shape.split()[0]} | {row.p50:,.0f} | {cores:.2f} | "
                f"{row.p50 / cores:,.0f} | {extra.get('memory', float('nan')):.2f} | "
                f"{stored[row.provider]:,.0f} |"
            )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=2048)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each timed round")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cold", action="store_true", help="empty the page cache before a round")
    return parser.parse_args()


if __name__ == "__main__":
    main()
