"""Loaders that people use, on the records that ecgfast's engines read.

    python benchmarks/loader_peers.py ../shared/data/ludb ../shared/data/ptbxl/hr_gt --copies 18

Sources are folders of WFDB records of 12 x 5000 at 500 Hz; copies make them more than a processor's
cache holds. `ecgfast.bench.loader` says how each is measured; before, each must give the same
patches as ecgfast. Rows go to benchmarks/results/DEVICE/loader.jsonl.

Every format gives (240, 256) fp16, z-scored per record and lead. The int16 formats get mean and
1/std precomputed, as our store has them; float32 holds z-scores already; wfdb computes them on
every read, as loaders over raw files must.
"""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ecgfast.bench import device_slug, show
from ecgfast.bench.loader import OURS, Epoch, Trial, measure_trials, write_stores
from ecgfast.data.loader import build_loader
from ecgfast.data.normalise import Normalisation
from ecgfast.store import StoreReader, open_store

SHAPE = (12, 5000)
_TOLERANCE = 0.01  # fp16 of z-scores up to 16 resolves 0.008; wfdb's statistics are float64
_CHECKED = 64  # records compared with ours before a format is timed


class Format(NamedTuple):
    """A folder of one format."""

    write: Callable[[StoreReader, Path], object]  # fills an empty folder with a store's records
    open: Callable[[Path], Any]  # what all reads share
    read: Callable[[Any, int], NDArray[Any]] = lambda handle, index: np.asarray(handle[index])
    is_scored: bool = False  # `read` gives z-scores


class Records(Dataset[torch.Tensor]):
    """Patches of the records of one format below `work`, which each worker opens for itself."""

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
    """Write some formats of `PEERS` below `work`, with the statistics that int16 ones use."""
    for name, values in zip(("mean", "rstd"), Normalisation().mean_and_rstd(store), strict=True):
        np.save(work / f"{name}.npy", values)
    for name in peers:
        (work / name).mkdir()
        PEERS[name].write(store, work / name)


def _signals(store: StoreReader) -> NDArray[np.int16]:
    return store.read(np.arange(len(store)))


def _write_wfdb(store: StoreReader, folder: Path) -> None:
    leads = {"sig_name": [str(lead) for lead in range(12)], "units": ["mV"] * 12}
    leads |= {"fmt": ["16"] * 12, "adc_gain": [200.0] * 12, "baseline": [0] * 12}
    for index, signal in enumerate(_signals(store)):
        import_module("wfdb").wrsamp(
            str(index), fs=500, d_signal=signal.T.astype(np.int64), write_dir=str(folder), **leads
        )


def _read_wfdb(folder: Path, index: int) -> NDArray[Any]:
    signal = import_module("wfdb").rdsamp(str(folder / str(index)))[0].T
    return (signal - signal.mean(1, keepdims=True)) / signal.std(1, keepdims=True)


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
    "wfdb.rdsamp": Format(_write_wfdb, lambda folder: folder, _read_wfdb, is_scored=True),
    "h5py": Format(  # uncompressed
        _write_h5, lambda folder: import_module("h5py").File(folder / "signal.h5", "r")["signal"]
    ),
    "zarr-python": Format(  # shards, zstd
        _write_zarr,
        lambda path: import_module("zarr").open_array(path / "signal.zarr", mode="r"),
    ),
    "memmap-float32": Format(_write_float32, partial(_memmap, np.float32), is_scored=True),
    "memmap-int16": Format(  # the plainest format that is fast
        lambda store, folder: _signals(store).tofile(folder / "signal"), partial(_memmap, np.int16)
    ),
}


def checked_epoch(trial: Trial) -> Epoch:
    """Epochs of a DataLoader, whose patches have been compared with ours."""
    records = Records(trial.provider, trial.work)
    store = open_store(trial.work / "store")
    ours = build_loader(store, batch_size=_CHECKED, shuffle=False, engine="cpu")
    expected = next(iter(ours)).patches.float()
    got = torch.stack([records[row] for row in range(_CHECKED)]).float()
    records.handle = None  # opened again in each worker; what is mapped would stay in the cache
    if not (worst := (got - expected).abs().max().item()) <= _TOLERANCE:
        raise AssertionError(f"{trial.provider} gives other patches, off by {worst}")
    loader = records.loader(trial.batch_size, trial.workers, trial.device)
    return lambda: (len(batch.to(trial.device, non_blocking=True)) for batch in loader)


def main(
    sources: list[Path], copies: int = 18, turns: int = 2, device: str = "cpu",
    workers: str = "1,2", providers: str = ",".join([*PEERS, *OURS]),
) -> None:  # fmt: skip
    """Measure copies of folders of WFDB records; in a turn each has a cold and two warm rounds."""
    from plot import RESULTS

    names = providers.split(",")
    if unknown := set(names) - {*PEERS, *OURS}:
        raise SystemExit(f"error: no such provider: {', '.join(unknown)}; see --help")
    with tempfile.TemporaryDirectory(prefix="ecgfast-peers-") as folder:
        work = Path(folder)
        for copy, source in itertools.product(range(copies), sources):
            shutil.copytree(source, work / "cohort" / f"{copy:02d}" / source.name)
        write_stores(work)
        store = open_store(work / "store")
        if len(store) < 256:  # a batch
            raise SystemExit(f"error: {len(store)} records are no batch of 256; use more --copies")
        prepare(store, work, [name for name in PEERS if name in names])
        numbers = map(int, workers.split(","))
        trials = [Trial(*each, device) for each in itertools.product(names, [work], numbers)]
        rows = measure_trials(trials, f"{len(store)} real", turns=turns)
        show(rows, RESULTS / device_slug(device) / "loader.jsonl")


if __name__ == "__main__":
    typer.run(main)
