"""A CSV of labels: which columns it has, which of them are taken, its dates."""

import datetime
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.records import known_id
from ecgfast.store.table import SCHEMA

KEYS = ("record_id", "patient_id")
PERSONAL = ("site", "age", "sex")  # an empty cell leaves what the recording says
DATES = ("ecg_date", "label_date")
_NUMBERS = ("age", "ejection_fraction")
_ABOUT_RECORDING = {*SCHEMA.names} - {*KEYS, *PERSONAL, "split", "ejection_fraction"}
_TEXT = (*KEYS, *DATES, *_NUMBERS, "site", "sex", "split")
_LOOKS_LIKE_AN_ID = re.compile(
    r"(^|_)(id|mrn|name|birth|dob|phone|zip|date|time)($|_)", re.IGNORECASE
)
_ISO = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
# In a CSV 04/05/2020 is April in one country and May in the next: only ISO dates, time allowed.
_ISO_CELL = r"^\s*\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])([T ].*)?$"
_DECIMAL_CELL = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_DAY_FIRST = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})")  # WFDB headers


def read_labels(path: Path) -> pa.Table:
    """Read a CSV of labels; ids, site, sex, split and dates stay text.

    Raises:
        ConfigError: no such file, no table, no id column, or a cell that cannot be what it should.
    """
    table = _named(_read(path), path)
    if not set(KEYS) & set(table.column_names):
        raise ConfigError(
            f"labels {path}: got columns {', '.join(table.column_names)}, needs record_id or "
            "patient_id to join on, with commas between the columns"
        )
    for name in DATES:
        _check_cells(table, name, _ISO_CELL, "YYYY-MM-DD", path)
    for name in _NUMBERS:
        _check_cells(table, name, _DECIMAL_CELL, "a number such as 35.5", path)
        if name in table.column_names:
            text = pc.utf8_trim_whitespace(table[name].cast(pa.string()))
            position = table.column_names.index(name)
            table = table.set_column(position, name, text.cast(pa.float64()))
    return _with_known_ids(table)


def _with_known_ids(table: pa.Table) -> pa.Table:
    """Ids as the readers of recordings have them: 7.0 is 7, "nan" is an empty cell."""
    for name in ("patient_id", "site"):
        if name in table.column_names:
            ids = pa.array([known_id(value) for value in table[name].to_pylist()], pa.string())
            table = table.set_column(table.column_names.index(name), name, ids)
    return table


def _read(path: Path) -> pa.Table:
    torn: list[pacsv.InvalidRow] = []

    def refuse(row: pacsv.InvalidRow) -> str:
        torn.append(row)
        return "skip"

    options = pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse)
    in_order = pacsv.ReadOptions(use_threads=False)  # a torn row has its number only then
    try:
        with pacsv.open_csv(path, in_order, options) as reader:
            names = reader.schema.names
        text = dict.fromkeys((name for name in names if name.strip() in _TEXT), pa.string())
        kinds = pacsv.ConvertOptions(column_types=text, strings_can_be_null=True)
        torn.clear()
        table = pacsv.read_csv(path, in_order, options, kinds)
    except FileNotFoundError as error:
        raise ConfigError(f"labels {path}: no such file") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(
            f"labels {path}: not a CSV table with a header line: {error}; save it with commas, "
            "in UTF-8"
        ) from error
    if torn:  # Arrow's own message repeats the row, and rows name patients
        raise ConfigError(
            f"labels {path}: line {torn[0].number} has {torn[0].actual_columns} cells, the header "
            f"{torn[0].expected_columns}; put quotes around cells that hold commas"
        )
    return table


def _named(table: pa.Table, path: Path) -> pa.Table:
    """The columns that have names, without the blanks around them."""
    names = [name.strip() for name in table.column_names]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ConfigError(f"labels {path}: column {twice[0]!r} occurs twice; rename one")
    # A row number without a name is what pandas writes first.
    return table.rename_columns(names).select([name for name in names if name])


def _check_cells(table: pa.Table, name: str, pattern: str, allowed: str, path: Path) -> None:
    """Refuse what would be left out in silence; the cell is not shown, it may name a patient."""
    if name not in table.column_names:
        return
    fits = pc.match_substring_regex(table[name].cast(pa.string()), pattern)
    wrong = pc.index(fits, False).as_py()
    if wrong >= 0:
        raise ConfigError(
            f"labels {path}: {name} of row {wrong + 1} below the header must be {allowed}, or empty"
        )


def label_columns(table: pa.Table, columns: Sequence[str] | None, path: Path) -> list[str]:
    """The label columns to take: the named ones, or every number and yes/no column.

    Text can name people, so it is taken only when asked for.

    Raises:
        ConfigError: a named column is missing or is one of the reserved ones.
    """
    reserved = {*KEYS, *PERSONAL, *DATES, "split"}
    if columns is not None:
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise ConfigError(
                f"--columns: {missing[0]!r} is not in {path}; "
                f"it has {', '.join(table.column_names)}"
            )
        own = [name for name in columns if name in {*KEYS, *DATES} | _ABOUT_RECORDING]
        if own:
            raise ConfigError(
                f"--columns: {own[0]!r} is a name of the store's own, allowed other columns; "
                "rename it in the CSV"
            )
        return [name for name in columns if name not in reserved]
    taken: list[str] = []
    left: list[str] = []
    for field in table.schema:
        if field.name in reserved:
            continue
        is_value = pa.types.is_boolean(field.type) or _is_number(field.type)
        is_ours = field.name in _ABOUT_RECORDING
        fits = is_value and not is_ours and not _LOOKS_LIKE_AN_ID.search(field.name)
        (taken if fits else left).append(field.name)
    if left:
        log.info(f"labels: left out {', '.join(left)} (text, ids or the store's own names)")
    return taken


def stored(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A label column in the type that the store uses: float64, bool or text."""
    if pa.types.is_boolean(column.type):
        return column
    # Unsafe: whole numbers beyond 2^53 are rounded.
    return column.cast(pa.float64() if _is_number(column.type) else pa.string(), safe=False)


def parse_date(text: str | None) -> datetime.date | None:
    """The first date in a text: 2020-05-31, or 31/05/2020 as WFDB headers have it."""
    try:
        if match := _ISO.search(text or ""):
            return datetime.date(int(match[1]), int(match[2]), int(match[3]))
        if match := _DAY_FIRST.search(text or ""):
            return datetime.date(int(match[3]), int(match[2]), int(match[1]))
    except ValueError:  # such as 31 February
        return None
    return None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
