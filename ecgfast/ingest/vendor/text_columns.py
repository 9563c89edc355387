"""Format text: a column of numbers for each lead below a line of their names, with a sidecar.

    ecg.csv    I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5,V6   (commas, semicolons, tabs or blanks)
               -15,20,35,-2,-25,28,...                  (one line for each timestep)
    ecg.json   the sidecar (`sidecar`); names of leads are those of the first line

A file without that line is no ECG for us: of a table of numbers alone nothing says what it holds.
"""

import io
import warnings
from pathlib import Path

import numpy as np

from ecgfast.errors import FormatError
from ecgfast.ingest.files import check_values
from ecgfast.ingest.format import Format
from ecgfast.ingest.leads import lead_position
from ecgfast.ingest.sidecar import read_sidecar, record_of
from ecgfast.ingest.vendor.binary import limits_of_damage, read_whole
from ecgfast.records import EcgRecord

_MAX_BYTES = 1 << 27
_LONGEST_LINE = 4096  # bytes of the names
_FEWEST_LEADS = 8  # I, II, V1 to V6
_SEPARATORS = ("\t", ";", ",", None)  # None: any number of blanks
_LARGEST_INTEGER = float(1 << 31)


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read one record of text.

    Args:
        path: of the file.
        record_id: of the record.
        row: None.
    Returns:
        int16 ADC units where all numbers are integers that fit, else float32 microvolt.
    Raises:
        FormatError: a cell is no number, or columns and sidecar do not describe an ECG.
        OSError: it cannot be read.
    """
    meta = read_sidecar(path)
    text = read_whole(path, _MAX_BYTES).decode("latin-1")
    line, _, body = text.partition("\n")
    names, separator = _names(line)
    columns = [at for at, name in enumerate(names) if lead_position(name) is not None]
    check_values(body.count("\n") + 1, len(columns), path.name)
    if separator != ",":
        body = body.replace(",", ".")  # decimal commas
    with limits_of_damage(path.name), warnings.catch_warnings(action="ignore"):  # of no lines
        try:
            table = np.loadtxt(
                io.StringIO(body), delimiter=separator, usecols=columns, ndmin=2, comments=None
            )
        except ValueError:  # its words repeat the cell
            raise FormatError(
                f"{path.name}: a cell is no number, or a line has fewer cells than the first one",
                reason="the file is damaged",
            ) from None
        if (np.abs(table) < _LARGEST_INTEGER).all() and (table == np.rint(table)).all():
            table = table.astype(np.int64)
    meta["leads"] = [names[column] for column in columns]
    return record_of(table.T, meta, name=path.name, record_id=record_id, code="text")


def _names(line: str) -> tuple[list[str], str | None]:
    """Return the names of the first line, and what stands between them."""
    line = line.removeprefix("\xef\xbb\xbf").strip("\r")
    separator = next((each for each in _SEPARATORS if each is None or each in line), None)
    return [name.strip(' "') for name in line.split(separator)], separator


def _is_text(head: bytes) -> bool:
    """Whether the first line has the names of enough leads."""
    line = head[:_LONGEST_LINE].partition(b"\n")[0]
    if len(line) == _LONGEST_LINE or b"\0" in line:
        return False
    names, _ = _names(line.decode("latin-1"))
    return len({lead_position(name) for name in names} - {None}) >= _FEWEST_LEADS


FORMAT = Format(
    name="text with a line of lead names (.csv, .txt with .json)",
    tried=False,
    keeps="numbers; of the sidecar what NumPy arrays keep",
    recognises=lambda head: _is_text(head.content),
    read=read,
    has_sidecar=True,
)
