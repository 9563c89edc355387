"""Files of label tables -> cells as text: CSV, Parquet, and sheets of Excel workbooks."""

import csv
import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ecgfast import log
from ecgfast.errors import BackendUnavailableError, ConfigError

SEPARATORS = (",", ";", "\t")
_HEADER_LINES = 100  # the names of columns can hold line breaks
_TORN = re.compile(r"CSV parse error: Row #(\d+): Expected (\d+) columns, got (\d+)")
_OLD_EXCEL = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ZIP, _PARQUET = b"PK\x03\x04", b"PAR1"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A table before anything is known of its columns.

    Attributes:
        table: columns of text, null for empty cells; of a CSV, of bytes.
        decimal_comma: whether no comma separates cells, so that 33,5 can be a number.
    """

    table: pa.Table
    decimal_comma: bool


def file_of(path: Path) -> tuple[Path, str | None]:
    """The file of a table, and the sheet that FILE.xlsx#Sheet names."""
    file, mark, sheet = str(path).rpartition("#")
    if not mark or path.exists() or not Path(file).exists():
        return path, None
    return Path(file), sheet


def read_cells(path: Path, ids: Sequence[str]) -> Cells:
    """Read a table; its content decides what it is, not its name.

    Args:
        path: of a CSV, a Parquet file or a workbook, perhaps with #SHEET behind it.
        ids: names of columns of which a header line has one: they tell what separates columns.
    Raises:
        ConfigError: no such file, or no table.
        BackendUnavailableError: a workbook, and openpyxl is not installed.
    """
    file, sheet = file_of(path)
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise ConfigError(f"labels {path}: got a pipe or a device, allowed a file; save it as one")
    try:
        with file.open("rb") as opened:
            start = opened.read(len(_OLD_EXCEL))
    except FileNotFoundError as error:
        raise ConfigError(
            f"labels {path}: no such file, allowed a CSV, a Parquet file or FILE.xlsx#SHEET; "
            "check the path"
        ) from error
    except OSError as error:
        raise ConfigError(f"labels {path}: cannot be read: {error.strerror}") from error
    if start == _OLD_EXCEL:
        raise ConfigError(f"labels {path}: got a workbook of before 2007; save it as .xlsx")
    if start.startswith(_ZIP):
        return Cells(table=_workbook(file, sheet), decimal_comma=True)
    if sheet is not None:
        raise ConfigError(f"labels {path}: {file} is no workbook, so it has no sheet {sheet!r}")
    if start.startswith(_PARQUET):
        return Cells(table=_parquet(file), decimal_comma=True)
    if start.startswith(_UTF16):
        raise ConfigError(f"labels {path}: got UTF-16, allowed UTF-8; save it as CSV UTF-8")
    return _csv(file, ids)


def _csv(path: Path, ids: Sequence[str]) -> Cells:
    in_order = pacsv.ReadOptions(use_threads=False)  # a torn row has its number only then
    try:
        separator, names = _header(path, ids)
        options = pacsv.ParseOptions(delimiter=separator, newlines_in_values=True)
        kinds = pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary()))
        with path.open("rb") as file:  # not by name: Arrow opens none that is not UTF-8
            table = pacsv.read_csv(file, in_order, options, kinds)
    except (OSError, UnicodeError, csv.Error, pa.ArrowInvalid) as error:
        if torn := _TORN.match(str(error)):
            number, expected, got = torn.groups()
            raise ConfigError(
                f"labels {path}: line {number} has {got} cells, the header {expected}; put quotes "
                f"around cells that hold {separator!r}"
            ) from None  # Arrow repeats the line, and lines name patients
        raise ConfigError(
            f"labels {path}: not a CSV table with a header line: {error}; save it as CSV UTF-8"
        ) from error
    return Cells(table=table, decimal_comma=separator != ",")


def _header(path: Path, ids: Sequence[str]) -> tuple[str, list[str]]:
    """What separates the columns, the first of , ; tab that gives an id column, and their names."""
    with path.open("rb") as file:
        text = b"".join(islice(file, _HEADER_LINES))
    lines = text.decode("utf-8-sig", errors="surrogateescape").splitlines(keepends=True)
    found = [(sign, next(csv.reader(lines, delimiter=sign), [])) for sign in SEPARATORS]
    for sign, names in found:
        if {name.strip() for name in names} & set(ids):
            return sign, names
    return found[0]


def _parquet(path: Path) -> pa.Table:
    """Numbers, yes/no values and dates as text: they follow the rules of a CSV."""
    try:
        with path.open("rb") as file:
            table = pq.ParquetFile(file, pre_buffer=False).read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(
            f"labels {path}: no Parquet table that can be read: {error!s:.80}"
        ) from error
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            columns[name] = column.cast(pa.string())
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # lists, structs, other bytes
            columns[name] = pa.chunked_array([pa.nulls(table.num_rows, pa.binary())])
            log.info(f"labels {path}: column {name!r} holds {column.type}, no cells; not read")
    if len(columns) < table.num_columns:
        twice = next(name for name in columns if table.column_names.count(name) > 1)
        raise ConfigError(f"labels {path}: column {twice!r} occurs twice; rename one")
    return pa.table(columns)


def _workbook(path: Path, sheet: str | None) -> pa.Table:
    """A sheet of a workbook, the first by default; values as the spreadsheet last computed them.

    The workbook is read twice: a formula that no spreadsheet has computed has no value.
    """
    openpyxl = _openpyxl(path)
    try:
        data = path.read_bytes()
        books = [
            openpyxl.load_workbook(BytesIO(data), read_only=True, data_only=values)
            for values in (True, False)
        ]
        names = books[0].sheetnames
        if sheet is None and len(names) > 1:
            log.info(f"labels {path}: sheet {names[0]!r} of {len(names)}; {path}#SHEET takes one")
        name = names[0] if sheet is None else sheet
        if name not in names:
            raise ConfigError(f"labels {path}: no sheet {name!r}, it has {', '.join(names)}")
        return _table_of(path, _rows_of_sheet(path, [book[name] for book in books]))
    except ConfigError:
        raise
    except Exception as error:  # openpyxl raises what zip, XML and its own checks raise
        raise ConfigError(
            f"labels {path}: no workbook that can be read: {error!s:.80}; save it as .xlsx or CSV"
        ) from error


def _table_of(path: Path, rows: Iterator[list[str | None]]) -> pa.Table:
    """The rows of a sheet below its first, which names the columns."""
    header = next(rows, [])
    columns: list[list[str | None]] = [[] for _ in header]
    for number, row in enumerate(rows, 2):
        if any(cell is not None for cell in row[len(header) :]):
            raise ConfigError(
                f"labels {path}: line {number} has more cells than the first line, which "
                "must name the columns; correct the sheet"
            )
        for column, cell in zip(columns, [*row, *[None] * len(header)], strict=False):
            column.append(cell)
    # Behind the last cell that holds something, sheets have rows that were once formatted.
    used = max((n for c in columns for n, cell in enumerate(c, 1) if cell is not None), default=0)
    arrays = [pa.array(column[:used], pa.string()) for column in columns]
    return pa.Table.from_arrays(arrays, [name or "" for name in header])


def _rows_of_sheet(path: Path, sheets: Sequence[Any]) -> Iterator[list[str | None]]:
    for sheet in sheets:
        sheet.reset_dimensions()  # some programs write wrong ones
    both = (sheet.iter_rows() for sheet in sheets)
    for number, (values, formulas) in enumerate(zip(*both, strict=True), 1):
        for value, formula in zip(values, formulas, strict=True):
            if value.value is None and formula.data_type == "f":
                raise ConfigError(
                    f"labels {path}: line {number} has a formula without a computed value; open "
                    "the workbook in a spreadsheet program and save it"
                )
        yield [_text_of(cell) for cell in values]


def _text_of(cell: Any) -> str | None:  # noqa: ANN401 (openpyxl has no types)
    """A cell as a CSV has it: numbers in full, 2020-05-31 for a date, 55 % for 0.55 shown so."""
    value = cell.value
    match value:
        case None:
            return None
        case bool():
            return str(value).lower()
        case float() if "%" in (cell.number_format or ""):
            return f"{round(100 * value, 9):.15g}%"
        case int() if "%" in (cell.number_format or ""):
            return f"{100 * value}%"
        case float():
            short = f"{value:.15g}"  # 15709, where Python writes 15709.0
            return short if float(short) == value else repr(value)
        case datetime.datetime() if value.time() == datetime.time():
            return str(value.date())
    return str(value)


def _openpyxl(path: Path) -> Any:  # noqa: ANN401 (a module without types)
    try:
        import openpyxl
    except ImportError as error:
        raise BackendUnavailableError(
            f"labels {path}: workbooks are read with openpyxl, which is not installed; "
            "pip install 'ecgfast[excel]', or save the sheet as CSV UTF-8"
        ) from error
    return openpyxl
