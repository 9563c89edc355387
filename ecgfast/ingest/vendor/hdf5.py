"""Format HDF5, and MATLAB 7.3, which is HDF5: one record or many in one dataset, with a sidecar.

    exams.h5     a dataset (12, T), (T, 12), or a batch (N, T, 12) or (N, 12, T)
    exams.json   the sidecar (`sidecar`), for the unit can be guessed wrongly by a factor of ten

A batch is read row by row, never as a whole. Datasets that other files hold (external storage,
links, virtual datasets) are not followed.
"""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import BackendUnavailableError, FormatError
from ecgfast.ingest.files import check_regular, check_values, is_of_one_file, too_large
from ecgfast.ingest.format import Format
from ecgfast.ingest.sidecar import not_allowed, read_sidecar, record_of
from ecgfast.ingest.vendor.binary import limits_of_damage
from ecgfast.records import EcgRecord

if TYPE_CHECKING:
    import h5py

_MAGIC = b"\x89HDF\r\n\x1a\n"
_MATLAB, _USER_BLOCK = b"MATLAB 7.3 MAT-file", 512  # bytes of MATLAB before the HDF5 file
_MAX_CHUNK_BYTES = 1 << 28  # what has to be unpacked for one timestep
_MAX_NAMES = 1000  # of the top level
_ERRNO = re.compile(r"errno = (\d+)")
_FEWEST_VALUES = 50  # in a row that counts as a record


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read one record of an HDF5 file.

    Args:
        path: of the file.
        record_id: of the record.
        row: position in a batch, None for a file of one record.
    Returns:
        int16 ADC units where the dataset holds integers that fit, else float32 microvolt.
    Raises:
        FormatError: the file is damaged, names no array, or array and sidecar are no ECG.
        BackendUnavailableError: h5py is not installed.
        OSError: it cannot be read.
    """
    meta = read_sidecar(path)
    flags: tuple[str, ...] = ()
    with _opened(path) as file:
        dataset = _dataset(file, meta.get("array"), path.name)
        shape = dataset.shape if row is None else dataset.shape[1:]
        check_values(math.prod(shape), 1, path.name)
        if row is None:
            array = np.asarray(dataset[()])
        else:
            rows = _rows_at_once(dataset)
            status = path.stat()
            stamp = status.st_mtime_ns, status.st_size
            array = _block(path, stamp, dataset.name, rows, row // rows)[row % rows]
    if row is not None and array.ndim == 2:
        array, cut = _without_padding(array)
        flags = ("padding_cut",) if cut else ()
    return record_of(array, meta, name=path.name, record_id=record_id, code="hdf5", flags=flags)


def _rows_at_once(dataset: "h5py.Dataset") -> int:
    """How many rows of a batch lie in the same chunks: packed chunks are unpacked once for all."""
    rows = int(dataset.chunks[0]) if dataset.chunks else 1
    row_bytes = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    return rows if rows * row_bytes <= _MAX_CHUNK_BYTES else 1


@lru_cache(maxsize=1)  # rows come in their order: of CODE-15 this saves a quarter second a record
def _block(
    path: Path, stamp: tuple[int, int], name: str, rows: int, number: int
) -> NDArray[np.generic]:
    """Return rows of a batch that lie in the same chunks; `stamp` is of the file as it is now."""
    with _opened(path) as file:
        return np.asarray(file[name][number * rows : (number + 1) * rows])


def _num_rows(path: Path) -> int | None:
    """Return the number of records, None for a file that counts as one or cannot be read.

    Reading such a file says why it cannot be.
    """
    try:
        wanted = read_sidecar(path).get("array")
    except (FormatError, FileNotFoundError):
        wanted = None  # then the array is the only one, or reading says that there is no sidecar
    try:
        with _opened(path) as file:
            shape = _dataset(file, wanted, path.name).shape
    except FormatError:
        return None
    return shape[0] if len(shape) == 3 and math.prod(shape[1:]) >= _FEWEST_VALUES else None


@contextmanager
def _opened(path: Path) -> "Iterator[h5py.File]":
    """Open a file without a lock, which network shares do not give.

    Raises:
        FormatError: it is no regular file, or HDF5 cannot read it.
        OSError: the share fails.
    """
    h5py = _h5py(path.name)
    check_regular(path)
    failed: OSError | None = None
    with limits_of_damage(path.name):
        try:
            with h5py.File(path, "r", locking=False) as file:
                yield file
        except OSError as error:
            failed = _of_share(error)
            if failed is None:
                raise
    if failed is not None:
        raise failed


def _of_share(error: OSError) -> OSError | None:
    """Return the error of the share behind one of h5py, which has its number in its words only."""
    number = _ERRNO.search(str(error))
    found = OSError(int(number[1]), os.strerror(int(number[1]))) if number else error
    return None if is_of_one_file(found) else found


def _h5py(name: str) -> ModuleType:
    try:
        import h5py
    except ImportError:
        raise BackendUnavailableError(
            f"{name}: HDF5 files are read with h5py, which is not installed; "
            "pip install 'ecgfast[hdf5]', or leave these files out of the source"
        ) from None
    module: ModuleType = h5py
    return module


def _dataset(file: "h5py.File", wanted: object, name: str) -> "h5py.Dataset":
    """Return the dataset that the sidecar names, else the only one of 2 or 3 dimensions."""
    import h5py

    if len(file) > _MAX_NAMES:
        raise too_large(f"{name}: got {len(file):,} datasets and groups, allowed {_MAX_NAMES:,}")
    if wanted is not None and not isinstance(wanted, str):
        raise not_allowed(name, "array is no text, allowed the name of a dataset")
    found = [
        file[each]
        for each in file  # of the top level: paths could lead through links to other files
        if wanted in (None, each) and isinstance(file.get(each, getlink=True), h5py.HardLink)
    ]
    arrays = [
        each
        for each in found
        if isinstance(each, h5py.Dataset) and len(each.shape) in (2, 3) and each.dtype.kind in "iuf"
    ]
    if len(arrays) != 1:
        raise FormatError(
            f"{name}: got {len(arrays)} datasets of numbers with 2 or 3 dimensions, allowed 1; "
            'name it in the sidecar: {"array": "tracings", ...}',
            reason="the array has another shape or type",
        )
    return _checked(arrays[0], name)


def _checked(dataset: "h5py.Dataset", name: str) -> "h5py.Dataset":
    """Refuse a dataset that lies in other files, or whose parts are too large to unpack."""
    if dataset.external or dataset.is_virtual:
        raise FormatError(f"{name}: its dataset lies in other files, allowed one in this file")
    chunk_bytes = math.prod(dataset.chunks or (1,)) * dataset.dtype.itemsize
    if chunk_bytes > _MAX_CHUNK_BYTES:
        raise too_large(
            f"{name}: got chunks of {chunk_bytes:,} bytes, allowed {_MAX_CHUNK_BYTES:,}; write the "
            "dataset again in smaller chunks"
        )
    return dataset


def _without_padding(array: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """Cut timesteps at both ends where all leads are 0: rows of a batch have one length."""
    time = int(array.shape[1] > array.shape[0])
    recorded = np.flatnonzero(array.any(axis=1 - time))
    first, last = (recorded[0], recorded[-1] + 1) if len(recorded) else (0, 0)
    return np.take(array, range(first, last), axis=time), last - first < array.shape[time]


def _is_hdf5(head: bytes) -> bool:
    return head.startswith(_MAGIC) or (
        head.startswith(_MATLAB) and head.startswith(_MAGIC, _USER_BLOCK)
    )


FORMAT = Format(
    name="HDF5 (.h5) and MATLAB 7.3 with .json, needs pip install 'ecgfast[hdf5]'",
    tried=False,
    keeps="numbers; of the sidecar what NumPy arrays keep",
    recognises=lambda head: _is_hdf5(head.content),
    read=read,
    has_sidecar=True,
    num_rows=_num_rows,
)
