"""ecgfast's engines beside the loaders people use: records/s, cores, memory, bytes read.

    python benchmarks/loader_peers.py ../shared/data/ludb ../shared/data/ptbxl/hr_gt --copies 18
    python benchmarks/loader_peers.py --records 4096        # synthetic records

Sources are folders of WFDB records of 12 x 5000 at 500 Hz; copies make them more than a processor's
cache holds. Every variant runs in a process of its own, variants take turns, and each must give the
same patches as ecgfast before it is timed: first one epoch after its files have left the page cache
(POSIX_FADV_DONTNEED; a disk or a host below may still cache them), then rounds with all files in
it. Rows go to benchmarks/results/DEVICE/loader.jsonl, the plot to loader.png.

Every format gives (240, 256) fp16, z-scored per record and lead. The int16 formats get mean and
1/std precomputed, as our store has them; float32 holds z-scores already; wfdb computes them on
every read, as loaders over raw files must.
"""

import argparse
import csv
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ecgfast.bench import loader as meter
from ecgfast.bench import show
from ecgfast.bench.measuring import Row, device_slug, make_rows
from ecgfast.convert import convert
from ecgfast.data.dali import build as dali_build
from ecgfast.data.loader import build_loader
from ecgfast.data.normalise import Normalisation
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.store import StoreReader, open_store

SHAPE = (12, 5000)
NUMPY = "numpy-memmap-int16"
FOLDERS = {"wfdb.rdsamp": "cohort", NUMPY: "memmap-int16"}  # others read what they are called
# folder and engine of ours; None is the one that `auto` takes
OURS = {
    "ecgfast": ("store", None),
    "ecgfast-none": ("store-none", None),
    "ecgfast-cpu": ("store", "cpu"),
    "ecgfast-dali": ("store", "dali"),
}
_TOLERANCE = 0.01  # fp16 of z-scores up to 16 resolves 0.008; wfdb's statistics are float64
_CHECKED = 64  # records compared with ours before a variant is timed


class Format(NamedTuple):
    """A folder of one format."""

    write: Callable[[StoreReader, Path], object]  # fills an empty folder with a store's records
    open: Callable[[Path], Any]  # what all reads share
    read: Callable[[Any, int], NDArray[Any]] = lambda handle, index: np.asarray(handle[index])
    is_scored: bool = False  # `read` gives z-scores


class Records(Dataset[torch.Tensor]):
    """Patches of the records in one format, opened lazily: each worker opens its own handle.

    Args:
        name: of the format in `PEERS`.
        work: folder that `prepare` filled.
    """

    def __init__(self, name: str, work: Path) -> None:
        self.format, self.folder = PEERS[name], work / name
        self.mean, self.rstd = np.load(work / "mean.npy"), np.load(work / "rstd.npy")
        self.handle: Any = None

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.handle is None:
            self.handle = self.format.open(self.folder)
        z_CT = self.format.read(self.handle, index)
        if not self.format.is_scored:
            z_CT = (z_CT.astype(np.float32) - self.mean[index][:, None]) * self.rstd[index][:, None]
        patches = np.zeros((240, 256), np.float16)
        patches[:, :250] = z_CT.reshape(-1, 250)
        return torch.from_numpy(patches)

    def loader(self, batch_size: int, workers: int, device: str) -> "DataLoader[torch.Tensor]":
        """PyTorch's own loader over them, as people set it up."""
        return DataLoader(
            self,
            batch_size=batch_size,
            shuffle=True,
            num_workers=workers,
            drop_last=True,
            persistent_workers=True,
            multiprocessing_context="fork",  # Linux's default; spawned ones import torch first
            pin_memory=device == "cuda",
        )


def prepare(store: StoreReader, work: Path, peers: Iterable[str]) -> None:
    """Write some formats below `work`, with the statistics that the int16 ones use.

    Args:
        store: of a cohort of WFDB files.
        work: empty folder.
        peers: names in `PEERS`; the libraries of all others need not be installed.
    """
    for name, values in zip(("mean", "rstd"), Normalisation().mean_and_rstd(store), strict=True):
        np.save(work / f"{name}.npy", values)
    for name in peers:
        (work / name).mkdir()
        PEERS[name].write(store, work / name)


def _signals(store: StoreReader) -> NDArray[np.int16]:
    return store.read(np.arange(len(store)))


def _write_names(store: StoreReader, folder: Path) -> None:
    """Nothing but the paths of the files that the store was made from."""
    with store.path.with_name(f"{store.path.name}.sources.csv").open(encoding="utf-8") as file:
        source_of = {row["record_id"]: row["source"] for row in csv.DictReader(file)}
    ids = store.records.column("record_id").to_pylist()
    names = [str(Path(source_of[record_id]).with_suffix("")) for record_id in ids]
    (folder / "names.txt").write_text("\n".join(names))


def _read_wfdb(names: list[str], index: int) -> NDArray[Any]:
    signal = import_module("wfdb").rdsamp(names[index])[0].T[:, : SHAPE[1]]
    return (signal - signal.mean(1, keepdims=True)) / signal.std(1, keepdims=True)


def _write_npy(store: StoreReader, folder: Path) -> None:
    for index, signal in enumerate(_signals(store)):
        np.save(folder / f"{index}.npy", signal)


def _write_h5(store: StoreReader, folder: Path) -> None:
    with import_module("h5py").File(folder / "signal.h5", "w") as file:
        file.create_dataset("signal", data=_signals(store), chunks=(1, *SHAPE))


def _write_zarr(store: StoreReader, folder: Path) -> None:
    options = {"chunks": (1, *SHAPE), "shards": (1024, *SHAPE), "dtype": "int16"}
    create = import_module("zarr").create_array
    create(folder / "signal.zarr", shape=(len(store), *SHAPE), **options)[:] = _signals(store)


def _write_float32(store: StoreReader, folder: Path) -> None:
    mean, rstd = (each[..., None] for each in Normalisation().mean_and_rstd(store))
    ((_signals(store).astype(np.float32) - mean) * rstd).tofile(folder / "signal")


def _memmap(dtype: Any, folder: Path) -> NDArray[Any]:  # noqa: ANN401 (as NumPy takes it)
    return np.memmap(folder / "signal", dtype, "r").reshape(-1, *SHAPE)


PEERS = {
    "wfdb.rdsamp": Format(
        _write_names, lambda path: (path / "names.txt").read_text().split("\n"), _read_wfdb, True
    ),
    "npy-per-record": Format(
        _write_npy, lambda folder: folder, lambda folder, index: np.load(folder / f"{index}.npy")
    ),
    "h5py": Format(  # chunked by record, uncompressed
        _write_h5, lambda folder: import_module("h5py").File(folder / "signal.h5", "r")["signal"]
    ),
    "memmap-float32": Format(_write_float32, partial(_memmap, np.float32), is_scored=True),
    "memmap-int16": Format(  # the plainest format that is fast
        lambda store, folder: _signals(store).tofile(folder / "signal"), partial(_memmap, np.int16)
    ),
    "zarr-python": Format(  # its defaults, one chunk a record
        _write_zarr,
        lambda path: import_module("zarr").open_array(path / "signal.zarr", mode="r"),
    ),
}
PROVIDERS = (*PEERS, NUMPY, *OURS)


def run(
    args: argparse.Namespace, provider: str, workers: int
) -> tuple[meter.Round, list[meter.Round]]:
    """Check, then measure cold and warm, in a process of its own; `args.work` has the formats."""
    torch.set_num_threads(1)
    memory, folder = meter.memory_bytes(), args.work / FOLDERS.get(provider, provider)
    if provider in OURS:
        folder, engine = args.work / OURS[provider][0], OURS[provider][1]
        options = {"engine": engine or ("resident" if args.device == "cuda" else "cpu")}
        options |= {"batch_size": args.batch_size, "num_threads": workers, "device": args.device}
        epoch = meter.epoch_of(build_loader(open_store(folder), **options))
    elif provider == NUMPY:
        epoch = _numpy_epochs(args)
    else:
        epoch = _checked_loader(args, provider, workers)
    os.sync()
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cold = meter.measure_round(epoch(), args.device, memory)
    for path in files:
        path.read_bytes()  # into the page cache, where it fits
    limits = {"seconds": args.seconds, "rounds": 2, "memory_before": memory}
    return cold, meter.measure(epoch, device=args.device, **limits)


def _checked_loader(args: argparse.Namespace, provider: str, workers: int) -> meter.Epoch:
    """Epochs of a DataLoader, whose patches have been compared with ours."""
    records = Records(provider, args.work)
    store = open_store(args.work / "store")
    ours = build_loader(store, batch_size=_CHECKED, shuffle=False, engine="cpu")
    expected = next(iter(ours)).patches.float()
    got = torch.stack([records[row] for row in range(_CHECKED)]).float()
    records.handle = None  # opened again in each worker; what is mapped would stay in the cache
    if not (worst := (got - expected).abs().max().item()) <= _TOLERANCE:
        raise AssertionError(f"{provider} gives other patches, off by {worst}")
    loader = records.loader(args.batch_size, workers, args.device)
    return lambda: (len(batch.to(args.device, non_blocking=True)) for batch in loader)


def _numpy_epochs(args: argparse.Namespace) -> meter.Epoch:
    """Plain NumPy in one process: whole batches from a raw int16 memmap, no DataLoader.

    Its buffers are used again, though a training loop could not keep the batch before.
    """
    records, size = Records("memmap-int16", args.work), args.batch_size
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
            yield len(patches.to(args.device, non_blocking=True))

    return epoch


def rows_of(args: argparse.Namespace, what: str) -> Iterator[Row]:
    """Measure all providers in turns and summarise them; `what` is read."""
    rounds: dict[tuple[str, str], list[meter.Round]] = {}
    chosen = itertools.product(range(args.turns), args.workers, args.providers)
    for turn, workers, provider in chosen:
        if provider == NUMPY and workers != args.workers[0]:  # has no workers
            continue
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # nobody's memory inherited
            cold, warm = pool.submit(run, args, provider, workers).result()
        for cache, found in (("cold", [cold]), ("warm", warm)):
            shape = f"{workers} workers, batch {args.batch_size}, {cache}, {what}"
            rounds.setdefault((provider, shape), []).extend(found)
        line = f"turn {turn + 1}/{args.turns}: {provider}, {workers} workers: "
        line += f"{cold.records_per_s:,.0f} records/s cold, {warm[-1].records_per_s:,.0f} warm"
        print(f"{line}; load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    for (provider, shape), found in rounds.items():
        yield from (rows := list(meter.use_rows(provider, shape, found, args.device)))
        p50 = {row.metric: row.p50 for row in rows}
        of_core = {("throughput_of_a_core", "records/s"): [p50["throughput"] / p50["cores"]]}
        texts = {"case": "loader", "provider": provider, "shape": shape}
        yield from make_rows(of_core, device=args.device, **texts)


def main() -> None:
    from plot import RESULTS, draw

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, nargs="*", help="folders of WFDB records")
    parser.add_argument("--copies", type=int, default=18, help="of the sources")
    parser.add_argument("--records", type=int, default=4096, help="synthetic ones, without sources")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
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
    is_all = args.providers == list(PROVIDERS)
    args.providers = [name for name in PROVIDERS if name in args.providers and name not in left_out]
    with tempfile.TemporaryDirectory(prefix="ecgfast-peers-", dir=args.scratch) as name:
        args.work = work = Path(name)
        if not args.sources:
            write_cohort(work / "cohort", num_records=args.records, num_sites=1, seed=0)
        for copy, source in itertools.product(range(args.copies), args.sources):
            shutil.copytree(source, work / "cohort" / f"{copy:02d}" / source.name)
        convert([work / "cohort"], work / "store")
        convert([work / "store"], work / "store-none", codec="none", workers=1)
        store = open_store(work / "store")
        read = {FOLDERS[NUMPY] if name == NUMPY else name for name in args.providers}
        prepare(store, work, [name for name in PEERS if name in read])
        what = f"{len(store)} {'real' if args.sources else 'synthetic'}"
        out = RESULTS / device_slug(args.device)
        rows = show(rows_of(args, what), out / "loader.jsonl")
    if is_all:
        draw(rows, out / "loader.png")


if __name__ == "__main__":
    main()
