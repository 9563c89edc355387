"""The formats and loaders that people use for ECGs, each with a writer, as one map-style dataset.

Every format gives the same patches as ecgfast: (240, 256) fp16, z-scored per record and lead. The
int16 formats get mean and 1/std precomputed, as our store has them; float32 holds z-scores already;
wfdb computes them on every read, as loaders over raw files must.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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
_BLOCK = 256  # records read at a time while writing


@dataclass(frozen=True, kw_only=True)
class Format:
    """A folder of one format.

    Attributes:
        write: fills an empty folder with the records of a store.
        open: what all reads share.
        read: one record of that: int16, or z-scores.
        is_scored: whether `read` gives z-scores.
    """

    write: Callable[[StoreReader, Path], None]
    open: Callable[[Path], Any]
    read: Callable[[Any, int], NDArray[Any]] = lambda handle, index: np.asarray(handle[index])
    is_scored: bool = False


class Records(Dataset[Tensor]):
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

    def __getitem__(self, index: int) -> Tensor:
        if self.handle is None:
            self.handle = self.format.open(self.folder)
        z_CT = self.format.read(self.handle, index)
        if not self.format.is_scored:
            z_CT = (z_CT.astype(np.float32) - self.mean[index][:, None]) * self.rstd[index][:, None]
        patches = np.zeros((240, 256), np.float16)
        patches[:, :250] = z_CT.reshape(-1, 250)
        return torch.from_numpy(patches)


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
        PEERS[name].write(store, work / name)


def _signals(store: StoreReader) -> Iterator[NDArray[np.int16]]:
    for start in range(0, len(store), _BLOCK):
        yield from store.read(np.arange(start, min(start + _BLOCK, len(store))))


def _write_names(store: StoreReader, folder: Path) -> None:
    """Nothing but the paths of the files that the store was made from."""
    with store.path.with_name(f"{store.path.name}.sources.csv").open(encoding="utf-8") as file:
        source_of = {row["record_id"]: row["source"] for row in csv.DictReader(file)}
    ids = store.records.column("record_id").to_pylist()
    names = [str(Path(source_of[record_id]).with_suffix("")) for record_id in ids]
    (folder / "names.txt").write_text("\n".join(names))


def _read_wfdb(names: list[str], index: int) -> NDArray[Any]:
    import wfdb

    signal = wfdb.rdsamp(names[index])[0].T[:, : SHAPE[1]]
    return (signal - signal.mean(1, keepdims=True)) / signal.std(1, keepdims=True)


def _write_npy(store: StoreReader, folder: Path) -> None:
    for index, signal in enumerate(_signals(store)):
        np.save(folder / f"{index}.npy", signal)


def _write_h5(store: StoreReader, folder: Path) -> None:
    import h5py

    with h5py.File(folder / "signal.h5", "w") as file:
        signal = file.create_dataset("signal", (len(store), *SHAPE), "i2", chunks=(1, *SHAPE))
        for index, record in enumerate(_signals(store)):
            signal[index] = record


def _open_h5(folder: Path) -> Any:  # noqa: ANN401 (each library's own handle)
    import h5py

    return h5py.File(folder / "signal.h5", "r")["signal"]


def _write_int16(store: StoreReader, folder: Path) -> None:
    with (folder / "signal.i2").open("wb") as file:
        for signal in _signals(store):
            file.write(signal.tobytes())


def _write_float32(store: StoreReader, folder: Path) -> None:
    mean, rstd = Normalisation().mean_and_rstd(store)
    with (folder / "signal.f4").open("wb") as file:
        for index, signal in enumerate(_signals(store)):
            z_CT = signal.astype(np.float32) - mean[index][:, None]
            file.write((z_CT * rstd[index][:, None]).tobytes())


def _write_zarr(store: StoreReader, folder: Path) -> None:
    import zarr

    per_shard = 1024
    options = {"chunks": (1, *SHAPE), "shards": (per_shard, *SHAPE), "dtype": "int16"}
    array = zarr.create_array(folder / "signal.zarr", shape=(len(store), *SHAPE), **options)
    for start in range(0, len(store), per_shard):
        rows = np.arange(start, min(start + per_shard, len(store)))
        array[rows[0] : rows[-1] + 1] = store.read(rows)


def _open_zarr(folder: Path) -> Any:  # noqa: ANN401 (each library's own handle)
    import zarr

    return zarr.open_array(folder / "signal.zarr", mode="r")


PEERS = {
    "wfdb.rdsamp": Format(
        write=_write_names,
        open=lambda folder: (folder / "names.txt").read_text().splitlines(),
        read=_read_wfdb,
        is_scored=True,
    ),
    "npy-per-record": Format(
        write=_write_npy,
        open=lambda folder: folder,
        read=lambda folder, index: np.load(folder / f"{index}.npy"),
    ),
    "h5py": Format(write=_write_h5, open=_open_h5),  # chunked by record, uncompressed
    "memmap-float32": Format(  # z-scores
        write=_write_float32,
        open=lambda folder: np.memmap(folder / "signal.f4", np.float32, "r").reshape(-1, *SHAPE),
        is_scored=True,
    ),
    "memmap-int16": Format(  # the plainest format that is fast
        write=_write_int16,
        open=lambda folder: np.memmap(folder / "signal.i2", np.int16, "r").reshape(-1, *SHAPE),
    ),
    "zarr-python": Format(write=_write_zarr, open=_open_zarr),  # its defaults, one chunk a record
}
