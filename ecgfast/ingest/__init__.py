"""Foreign ECG files -> `EcgRecord`: one module per format, leads always by name."""

import numpy as np

from ecgfast.errors import EcgfastError, FormatError
from ecgfast.ingest.arrays import read_arrays
from ecgfast.ingest.discover import InputFile, Inventory, discover, take_inventory
from ecgfast.ingest.files import is_of_one_file
from ecgfast.ingest.wfdb_record import read_wfdb
from ecgfast.records import EcgRecord

__all__ = ["InputFile", "Inventory", "discover", "read_record", "take_inventory", "unreadable"]


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
            if item.path.suffix.lower() == ".hea":
                return read_wfdb(item.path, item.record_id)
            return read_arrays(item.path, item.record_id, item.row)
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
