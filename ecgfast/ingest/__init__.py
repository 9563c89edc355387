"""Foreign ECG files -> `EcgRecord`. A new file format is one module of this folder, in `FORMATS`.

The module has the four names of `Format`, as `wfdb_records` and `numpy_arrays` do; nothing else
needs to know of it. Leads are found by name, never by position (`leads`), files are opened by
`files`, and everything that is wrong with a file is a `FormatError`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ecgfast.errors import EcgfastError, FormatError
from ecgfast.ingest import numpy_arrays, wfdb_records
from ecgfast.ingest.files import is_of_one_file
from ecgfast.records import EcgRecord


class Format(Protocol):
    """What the module of a file format defines."""

    @property
    def SUFFIXES(self) -> tuple[str, ...]:  # noqa: N802 - a constant of a module
        """Ends of the names of files that name records, in lower case: (".hea",)."""

    def recognises(self, path: Path) -> bool:
        """Whether a file with one of the suffixes is of this format, judged by its content.

        A format that has its suffixes for itself returns True without a look, so that a damaged
        file is refused when it is read, with a reason.

        Raises:
            OSError: the share fails.
        """

    def num_rows(self, path: Path) -> int | None:
        """Return the number of records in a file, None for a file of one record without a row.

        Raises:
            OSError: the share fails.
        """

    def read(self, path: Path, record_id: str, row: int | None) -> EcgRecord:
        """Read a record with every timestep of the source.

        Args:
            path: of the file that names it.
            record_id: of the record.
            row: its position in a file of several, None otherwise.
        Raises:
            FormatError: the file is no 12-lead ECG; `reason` enters quarantine.csv.
            OSError: a file cannot be opened, or the share fails.
        """


FORMATS: tuple[Format, ...] = (wfdb_records, numpy_arrays)


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One future record.

    Attributes:
        record_id: path relative to `source` without suffix, `/` between parts; a file given as
            source gives its stem. Unique in one list. Records of a batch file add `/ROW`.
        path: of the file that names the record (a WFDB header, a NumPy array).
        source: folder or file, as the user gave it.
        row: position in a NumPy batch file, None for files of one record.
    """

    record_id: str
    path: Path
    source: Path
    row: int | None = None


def suffixes() -> tuple[str, ...]:
    """Return the suffixes of all formats, each once, in the order of `FORMATS`."""
    return tuple(dict.fromkeys(suffix for each in FORMATS for suffix in each.SUFFIXES))


def format_of(path: Path) -> Format | None:
    """Return the format of a file, None where no format recognises it."""
    name = path.name.lower()
    for each in FORMATS:
        if name.endswith(each.SUFFIXES) and each.recognises(path):
            return each
    return None


def read_record(item: InputFile) -> EcgRecord:
    """Read one record of `discover`'s list.

    Args:
        item: what to read.
    Returns:
        The record with every timestep of the source, 12 leads in the order of `LEADS`.
    Raises:
        FormatError: the file cannot be read as a 12-lead ECG; its `reason` enters quarantine.csv.
            Everything that goes wrong with one file is one, an array that the memory cannot hold
            too. An input/output error of a share that drops is not: it stops the caller.
    """
    try:
        with np.errstate(all="ignore"):  # what overflows is refused, or marked invalid
            found = format_of(item.path)
            if found is None:
                raise FormatError(f"{item.path.name}: is of no format that is read")
            return found.read(item.path, item.record_id, item.row)
    except EcgfastError:
        raise
    except OSError as error:
        if is_of_one_file(error):
            raise FormatError(
                f"{item.path.name}: {error.strerror or error}", reason="the file cannot be opened"
            ) from error
        error.filename = error.filename or str(item.path)  # a failed read names no file
        raise
    except ImportError:  # of the installation, not of the file
        raise
    except Exception as error:  # MemoryError too: one odd file must not end a run over millions
        raise unreadable(item, error) from error


def unreadable(item: InputFile, error: Exception) -> FormatError:
    """Return the refusal of a file whose reading failed in a way that no check foresees."""
    words = " ".join(str(error).split())
    return FormatError(f"{item.path.name}: cannot be read: {type(error).__name__}: {words}")
