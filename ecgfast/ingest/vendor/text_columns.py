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
from numpy.typing import NDArray

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
_MARK = "\xef\xbb\xbf"  # of UTF-8
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
        table_ST = _plain_table(body, separator, columns, len(names))
        if table_ST is None:
            table_ST = _any_table(body, separator, columns, path.name)
        if (np.abs(table_ST) < _LARGEST_INTEGER).all() and (table_ST == np.rint(table_ST)).all():
            table_ST = table_ST.astype(np.int64)
    meta["leads"] = [names[column] for column in columns]
    return record_of(table_ST, meta, name=path.name, record_id=record_id, code="text")


def _plain_table(
    body: str, separator: str | None, columns: list[int], num_columns: int
) -> NDArray[np.float64] | None:
    """Return columns as rows by Arrow, five times as fast as NumPy; None for what it leaves to it.

    That is a table with blanks between cells, lines that end in CR alone, a byte order mark, a line
    of more cells, and what is no finite number, for which parsers have many words.
    Both round a decimal to the nearest float64.
    """
    if separator is None or body.count("\r") != body.count("\r\n") or body.startswith(_MARK):
        return None
    import pyarrow as pa  # a fifth of a second: only for files that need it
    from pyarrow import csv

    content = body.encode("latin-1")
    names = [str(column) for column in range(num_columns)]
    wanted = [names[column] for column in columns]
    try:
        table = csv.read_csv(
            pa.py_buffer(content),
            csv.ReadOptions(use_threads=False, column_names=names, block_size=max(len(content), 1)),
            csv.ParseOptions(delimiter=separator, quote_char=False),
            csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.float64()),
                include_columns=wanted,
                null_values=[],
                check_utf8=False,
            ),
        )
    except pa.ArrowException:
        return None
    rows: NDArray[np.float64] = np.stack([column.to_numpy() for column in table.columns])
    return rows if np.isfinite(rows).all() else None


def _any_table(
    body: str, separator: str | None, columns: list[int], name: str
) -> NDArray[np.float64]:
    """Return columns as rows, or refuse the table."""
    try:
        table: NDArray[np.float64] = np.loadtxt(
            io.StringIO(body), delimiter=separator, usecols=columns, ndmin=2, comments=None
        )
    except ValueError:  # its words repeat the cell
        raise FormatError(
            f"{name}: a cell is no number, or a line has fewer cells than the first one",
            reason="the file is damaged",
        ) from None
    return table.T


def _names(line: str) -> tuple[list[str], str | None]:
    """Return the names of the first line, and what stands between them."""
    line = line.removeprefix(_MARK).strip("\r")
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
