"""Foreign ECG files -> `EcgRecord`. A file format is one module, with its `FORMAT` in `FORMATS`.

Files are recognised by their first bytes, leads are found by name, never by position (`leads`),
files are opened by `files`, and everything that is wrong with a file is a `FormatError`.
"""

import os
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ecgfast.errors import EcgfastError, FormatError
from ecgfast.ingest import numpy_arrays, wfdb_records
from ecgfast.ingest.files import is_of_one_file, size_and_mtime
from ecgfast.ingest.format import Format, Head, read_head
from ecgfast.ingest.leads import required_leads
from ecgfast.ingest.vendor import (
    aecg_xml,
    cardiosoft_xml,
    dicom,
    edf,
    eli_xml,
    hdf5,
    matlab,
    mfer,
    muse_xml,
    philips_xml,
    schiller_xml,
    scp_ecg,
    text_columns,
)
from ecgfast.records import INVALID, LEADS, EcgRecord

ALL_LEADS = tuple(range(len(LEADS)))

# The first one that recognises a file reads it.
FORMATS: tuple[Format, ...] = (
    wfdb_records.FORMAT,
    numpy_arrays.FORMAT,
    muse_xml.FORMAT,
    aecg_xml.FORMAT,
    philips_xml.FORMAT,
    cardiosoft_xml.FORMAT,
    eli_xml.FORMAT,
    schiller_xml.FORMAT,
    dicom.FORMAT,
    scp_ecg.FORMAT,
    mfer.FORMAT,
    edf.FORMAT,
    hdf5.FORMAT,
    matlab.FORMAT,
    text_columns.FORMAT,
)


class InputFile(NamedTuple):
    """One future record.

    Attributes:
        record_id: path relative to `source` without suffix, `/` between parts; a file given as
            source gives its stem. Unique in one list. Records of a batch file add `/ROW`.
        path: of the file that names the record.
        source: folder or file, as the user gave it.
        row: position in a file of several records, None for files of one record.
        num_bytes: of `size_and_mtime` when a plan listed it, 0 before.
        mtime_ns: likewise.
        url: address of the object that `path` is, or will be, a copy of; "" for a local file.
    """

    record_id: str
    path: Path
    source: Path
    row: int | None = None
    num_bytes: int = 0
    mtime_ns: int = 0
    url: str = ""

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return self.url or str(self.path)

    def size_and_mtime(self) -> tuple[int, int]:
        """Bytes and time of its files (`files.size_and_mtime`), or of its objects when listed."""
        return (self.num_bytes, self.mtime_ns) if self.url else size_and_mtime(self.path)


def own_suffixes() -> tuple[str, ...]:
    """Return the suffixes that some formats have for themselves, in the order of `FORMATS`."""
    return tuple(suffix for each in FORMATS for suffix in each.suffixes)


def owner_of(name: str) -> Format | None:
    """Return the format that has the suffix of a file name for itself, None where none has."""
    name = name.lower()
    return next((each for each in FORMATS if name.endswith(each.suffixes)), None)


def format_of(head: Head) -> Format | None:
    """Return the format of a file that begins so, None where no format recognises it."""
    return next((each for each in FORMATS if each.recognises(head)), None)


def read_record(
    item: InputFile, *, leads: Sequence[int] = ALL_LEADS, allow_missing: bool = False
) -> EcgRecord:
    """Read one record of `discover`'s list.

    Args:
        item: what to read.
        leads: numbers in `LEADS` of those that are wanted. A file may lack others, and others that
            hold invalid values are left out.
        allow_missing: take what there is of these leads; one without a valid value is not there.
    Returns:
        The record with every timestep of the source, 12 leads in the order of `LEADS`.
    Raises:
        FormatError: the file cannot be read as a 12-lead ECG; its `reason` enters quarantine.csv.
            Everything that goes wrong with one file is one, an array that the memory cannot hold
            too. An input/output error of a share that drops is not: it stops the caller.
    """
    try:
        with np.errstate(all="ignore"):  # what overflows is refused, or marked invalid
            found = owner_of(item.path.name) or format_of(read_head(item.path))
            if found is None:
                raise FormatError(f"{item.path.name}: is of no format that is read")
            with required_leads(() if allow_missing else leads):
                record = found.read(item.path, item.record_id, item.row)
            if tuple(leads) == ALL_LEADS and not allow_missing:
                return record
            return _of_leads(record, {*leads}, allow_missing=allow_missing)
    except EcgfastError:
        raise
    except OSError as error:
        if is_of_one_file(error):
            is_lost = os.path.islink(item.path) and not os.path.exists(item.path)  # raise nothing
            why = "is a link to no file" if is_lost else error.strerror or error
            raise FormatError(
                f"{item.path.name}: {why}", reason="the file cannot be opened"
            ) from error
        error.filename = error.filename or str(item.path)  # a failed read names no file
        raise
    except ImportError:  # of the installation, not of the file
        raise
    except Exception as error:  # MemoryError too: one odd file must not end a run over millions
        raise unreadable(item, error) from error


def _of_leads(record: EcgRecord, leads: set[int], *, allow_missing: bool) -> EcgRecord:
    """A record without the leads that are not wanted and invalid in parts, or not there.

    Raises:
        FormatError: no lead is left that is wanted.
    """
    is_integer = record.signal.dtype == np.int16
    valid = record.signal != INVALID if is_integer else np.isfinite(record.signal)
    unwanted = {*np.flatnonzero(~valid.all(axis=1)).tolist()} - leads
    empty = {*np.flatnonzero(~valid.any(axis=1)).tolist()} if allow_missing else set()
    missing = sorted({*record.missing} | unwanted | empty)
    if leads <= {*missing}:
        wanted = ", ".join(LEADS[i] for i in sorted(leads))
        raise FormatError(
            f"{record.record_id}: holds none of the leads {wanted}", reason="a lead is missing"
        )
    signal, offset_adc = record.signal.copy(), record.offset_adc.copy()
    signal[missing], offset_adc[missing] = 0, 0
    return replace(record, signal=signal, offset_adc=offset_adc, missing=tuple(missing))


def unreadable(item: InputFile, error: Exception) -> FormatError:
    """Return the refusal of a file whose reading failed in a way that no check foresees.

    It has the place in the code and not the error's words: these can hold text of the file.
    """
    steps = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(steps[-1].filename).name}:{steps[-1].lineno}" if steps else ""
    return FormatError(f"{item.path.name}: cannot be read: {type(error).__name__}{place}")
