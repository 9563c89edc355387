"""The formats and loaders that people use for ECGs, each as a writer and a map-style dataset.

Every dataset gives the same patches as ecgfast: (240, 256) fp16, z-scored per record and lead. The
int16 formats get mean and 1/std precomputed, as our store has them; float32 holds z-scores already;
wfdb computes them on every read, as loaders over raw files must.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ecgfast.data.normalise import Normalisation
from ecgfast.store import StoreReader, open_store

SHAPE = (12, 5000)
_PATCH, _PADDED = 250, 256


_BLOCK = 256  # records read at a time while writing


def to_patches(z_CT: NDArray[Any]) -> Tensor:
    """(12, 5000) z-scores -> (240, 256) fp16, the last 6 columns 0."""
    patches = np.zeros((SHAPE[0] * SHAPE[1] // _PATCH, _PADDED), np.float16)
    patches[:, :_PATCH] = z_CT.reshape(-1, _PATCH)
    return torch.from_numpy(patches)


class Records(Dataset[Tensor]):
    """Base: a folder of one format, opened lazily so that each worker opens its own handle.

    Args:
        folder: that `write` filled.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mean = np.load(folder.parent / "mean.npy")
        self.rstd = np.load(folder.parent / "rstd.npy")
        self.handle: Any = None

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, index: int) -> Tensor:
        if self.handle is None:
            self.handle = self.open()
        return to_patches(self.z_score(index))

    def open(self) -> Any:  # noqa: ANN401 - a file handle of some library
        """Open what all reads share; formats of one file a record have nothing to open."""
        return ()

    def z_score(self, index: int) -> NDArray[Any]:
        """Read one record and normalise it."""
        signal = self.samples(index).astype(np.float32)
        return (signal - self.mean[index][:, None]) * self.rstd[index][:, None]

    def samples(self, index: int) -> NDArray[np.int16]:
        """Read one record's int16 ADC units."""
        raise NotImplementedError


class Wfdb(Records):
    """`wfdb.rdsamp` on the original files."""

    def open(self) -> Any:  # noqa: ANN401 (each library's own handle)
        return (self.folder / "names.txt").read_text().splitlines()

    def z_score(self, index: int) -> NDArray[Any]:
        import wfdb

        signal_TC, _ = wfdb.rdsamp(self.handle[index])
        signal = signal_TC.T[:, : SHAPE[1]]
        return (signal - signal.mean(1, keepdims=True)) / signal.std(1, keepdims=True)

    @staticmethod
    def write(store: StoreReader, folder: Path) -> None:
        """Nothing to write: `names.txt` points to the files that the store was made from."""


class Npy(Records):
    """One .npy file a record."""

    def samples(self, index: int) -> NDArray[np.int16]:
        loaded: NDArray[np.int16] = np.load(self.folder / f"{index}.npy")
        return loaded

    @staticmethod
    def write(store: StoreReader, folder: Path) -> None:
        for index, signal in enumerate(_signals(store)):
            np.save(folder / f"{index}.npy", signal)


class H5(Records):
    """One HDF5 file, chunked by record, uncompressed."""

    def open(self) -> Any:  # noqa: ANN401 (each library's own handle)
        import h5py

        return h5py.File(self.folder / "signal.h5", "r")["signal"]

    def samples(self, index: int) -> NDArray[np.int16]:
        return np.asarray(self.handle[index])

    @staticmethod
    def write(store: StoreReader, folder: Path) -> None:
        import h5py

        with h5py.File(folder / "signal.h5", "w") as file:
            signal = file.create_dataset("signal", (len(store), *SHAPE), "i2", chunks=(1, *SHAPE))
            for index, record in enumerate(_signals(store)):
                signal[index] = record


class Int16Memmap(Records):
    """Raw int16, memory mapped: the plainest format that is fast."""

    def open(self) -> Any:  # noqa: ANN401 (each library's own handle)
        return np.memmap(self.folder / "signal.i2", np.int16, "r").reshape(-1, *SHAPE)

    def samples(self, index: int) -> NDArray[np.int16]:
        return np.asarray(self.handle[index])

    @staticmethod
    def write(store: StoreReader, folder: Path) -> None:
        with open(folder / "signal.i2", "wb") as file:
            for signal in _signals(store):
                file.write(signal.tobytes())


class Float32Memmap(Records):
    """Preprocessed float32 z-scores, memory mapped."""

    def open(self) -> Any:  # noqa: ANN401 (each library's own handle)
        return np.memmap(self.folder / "signal.f4", np.float32, "r").reshape(-1, *SHAPE)

    def z_score(self, index: int) -> NDArray[Any]:
        return np.asarray(self.handle[index])

    @staticmethod
    def write(store: StoreReader, folder: Path) -> None:
        mean, rstd = Normalisation().mean_and_rstd(store)
        with open(folder / "signal.f4", "wb") as file:
            for index, signal in enumerate(_signals(store)):
                z_CT = signal.astype(np.float32) - mean[index][:, None]
                file.write((z_CT * rstd[index][:, None]).tobytes())


class Zarr(Records):
    """zarr-python's own defaults (zstd), one chunk a record, one shard per 1,024."""

    def open(self) -> Any:  # noqa: ANN401 (each library's own handle)
        import zarr

        return zarr.open_array(self.folder / "signal.zarr", mode="r")

    def samples(self, index: int) -> NDArray[np.int16]:
        return np.asarray(self.handle[index])

    @staticmethod
    def write(store: StoreReader, folder: Path) -> None:
        import zarr

        per_shard = 1024
        array = zarr.create_array(
            folder / "signal.zarr",
            shape=(len(store), *SHAPE),
            chunks=(1, *SHAPE),
            shards=(per_shard, *SHAPE),
            dtype="int16",
        )
        for start in range(0, len(store), per_shard):
            rows = np.arange(start, min(start + per_shard, len(store)))
            array[rows[0] : rows[-1] + 1] = store.read(rows)


PEERS: dict[str, type[Records]] = {
    "wfdb.rdsamp": Wfdb,
    "npy-per-record": Npy,
    "h5py": H5,
    "memmap-float32": Float32Memmap,
    "memmap-int16": Int16Memmap,
    "zarr-python": Zarr,
}


def _signals(store: StoreReader) -> Iterator[NDArray[np.int16]]:
    for start in range(0, len(store), _BLOCK):
        yield from store.read(np.arange(start, min(start + _BLOCK, len(store))))


def prepare(store_path: Path, work: Path, peers: Iterable[str]) -> None:
    """Write some formats below `work`, with the statistics that the int16 ones use.

    Args:
        store_path: the ecgfast store of a cohort of WFDB files.
        work: empty folder.
        peers: names in `PEERS`; the libraries of all others need not be installed.
    """
    store = open_store(store_path)
    mean, rstd = Normalisation().mean_and_rstd(store)
    np.save(work / "mean.npy", mean)
    np.save(work / "rstd.npy", rstd)
    for name in peers:
        (work / name).mkdir()
        PEERS[name].write(store, work / name)  # type: ignore[attr-defined]  # those that have files write them
    if not (work / "wfdb.rdsamp").exists():
        return
    with (work / f"{store_path.name}.sources.csv").open(encoding="utf-8") as file:
        source_of = {row["record_id"]: row["source"] for row in csv.DictReader(file)}
    ids = store.records.column("record_id").to_pylist()
    names = [str(Path(source_of[record_id]).with_suffix("")) for record_id in ids]
    (work / "wfdb.rdsamp" / "names.txt").write_text("\n".join(names))
