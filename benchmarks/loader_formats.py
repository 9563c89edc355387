"""The formats that people use for ECGs, each with a writer, as map-style datasets of patches.

Every format gives the same patches as ecgfast: (240, 256) fp16, z-scored per record and lead. The
int16 formats get mean and 1/std precomputed, as our store has them; float32 holds z-scores already;
wfdb computes them on every read, as loaders over raw files must.
"""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ecgfast.data.normalise import Normalisation
from ecgfast.store import StoreReader

SHAPE = (12, 5000)


class Format(NamedTuple):
    """A folder of one format."""

    write: Callable[[StoreReader, Path], None]  # fills an empty folder with a store's records
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


def dataloader(records: Records, batch_size: int, workers: int, device: str) -> Any:  # noqa: ANN401
    """PyTorch's own loader over one of the formats, as people set it up."""
    return DataLoader(
        records,
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="fork",  # Linux's default; spawned ones would import torch first
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
    import wfdb

    signal = wfdb.rdsamp(names[index])[0].T[:, : SHAPE[1]]
    return (signal - signal.mean(1, keepdims=True)) / signal.std(1, keepdims=True)


def _write_npy(store: StoreReader, folder: Path) -> None:
    for index, signal in enumerate(_signals(store)):
        np.save(folder / f"{index}.npy", signal)


def _write_h5(store: StoreReader, folder: Path) -> None:
    import h5py

    with h5py.File(folder / "signal.h5", "w") as file:
        file.create_dataset("signal", data=_signals(store), chunks=(1, *SHAPE))


def _open_h5(folder: Path) -> Any:  # noqa: ANN401 (each library's own handle)
    import h5py

    return h5py.File(folder / "signal.h5", "r")["signal"]


def _write_float32(store: StoreReader, folder: Path) -> None:
    mean, rstd = (each[..., None] for each in Normalisation().mean_and_rstd(store))
    ((_signals(store).astype(np.float32) - mean) * rstd).tofile(folder / "signal")


def _write_zarr(store: StoreReader, folder: Path) -> None:
    import zarr

    options = {"chunks": (1, *SHAPE), "shards": (1024, *SHAPE), "dtype": "int16"}
    array = zarr.create_array(folder / "signal.zarr", shape=(len(store), *SHAPE), **options)
    array[:] = _signals(store)


def _open_zarr(folder: Path) -> Any:  # noqa: ANN401 (each library's own handle)
    import zarr

    return zarr.open_array(folder / "signal.zarr", mode="r")


PEERS = {
    "wfdb.rdsamp": Format(
        _write_names,
        lambda folder: (folder / "names.txt").read_text().splitlines(),
        _read_wfdb,
        True,
    ),
    "npy-per-record": Format(
        _write_npy, lambda folder: folder, lambda folder, index: np.load(folder / f"{index}.npy")
    ),
    "h5py": Format(_write_h5, _open_h5),  # chunked by record, uncompressed
    "memmap-float32": Format(
        _write_float32,
        lambda folder: np.memmap(folder / "signal", np.float32, "r").reshape(-1, *SHAPE),
        is_scored=True,
    ),
    "memmap-int16": Format(  # the plainest format that is fast
        lambda store, folder: _signals(store).tofile(folder / "signal"),
        lambda folder: np.memmap(folder / "signal", np.int16, "r").reshape(-1, *SHAPE),
    ),
    "zarr-python": Format(_write_zarr, _open_zarr),  # its defaults, one chunk a record
}
