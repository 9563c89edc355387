"""Foreign ECG files -> `EcgRecord`: one module per format, leads always by name."""

import errno

from ecgfast.errors import FormatError
from ecgfast.ingest.arrays import read_arrays
from ecgfast.ingest.discover import InputFile, Inventory, discover, take_inventory
from ecgfast.ingest.wfdb_record import read_wfdb
from ecgfast.records import EcgRecord

# Errors of one file. All others are the share's.
_OF_ONE_FILE = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR),
    *(errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
}

__all__ = ["InputFile", "Inventory", "discover", "read_record", "take_inventory"]


def read_record(item: InputFile) -> EcgRecord:
    """Read one record of `discover`'s list.

    Args:
        item: what to read.
    Returns:
        The record with every timestep of the source, 12 leads in the order of `LEADS`.
    Raises:
        FormatError: the file cannot be read as a 12-lead ECG; its `reason` enters quarantine.csv.
            An input/output error of a share that drops is not one: it stops the caller.
    """
    try:
        if item.path.suffix.lower() == ".hea":
            return read_wfdb(item.path, item.record_id)
        return read_arrays(item.path, item.record_id, item.row)
    except OSError as error:
        if error.errno not in _OF_ONE_FILE:
            raise
        raise FormatError(
            f"{item.path.name}: {error.strerror}", reason="the file cannot be opened"
        ) from error
