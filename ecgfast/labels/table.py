"""A CSV of labels: which columns it has, which of them are taken, its dates."""

import csv
import datetime
import json
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.labels.cells import NUMBER_CELL, BadCell, clean, typed
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
_RECORD_SUFFIX = r"(?i)\.(hea|dat|mat|npy|npz)\s*$"  # people write the file's name for the id
SEPARATORS = (",", ";", "\t")
_HEADER_LINES = 100  # the names of columns can hold line breaks
_BAD = b"bad_cell"
_DAY_FIRST = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})")  # WFDB headers


def read_labels(path: Path) -> pa.Table:
    """Read a table of labels with commas, semicolons or tabs between its columns.

    Ids, site, sex, split and dates stay text; other columns become numbers, yes/no values or text
    by `cells.typed`. A cell that a column of values cannot hold is kept in the field's metadata
    for `label_columns`, which refuses it where the column is taken.

    Raises:
        ConfigError: no such file, no table, no id column, or a cell that cannot be what it should.
    """
    raw, separator = _read(path)
    table = _named(raw, path)
    if not set(KEYS) & set(table.column_names):
        raise ConfigError(
            f"labels {path}: got columns {', '.join(table.column_names)}, needs record_id or "
            "patient_id to join on, with commas, semicolons or tabs between the columns"
        )
    for position, name in enumerate(table.column_names):
        table = table.set_column(position, *_column(name, table[name], separator, path))
    for name in DATES:
        _check_cells(table, name, _ISO_CELL, "YYYY-MM-DD", path)
    return _with_known_ids(table)


def _with_known_ids(table: pa.Table) -> pa.Table:
    """Ids as the readers of recordings have them: 7.0 is 7, "nan" is an empty cell."""
    for name in ("patient_id", "site"):
        if name in table.column_names:
            ids = pa.array([known_id(value) for value in table[name].to_pylist()], pa.string())
            table = table.set_column(table.column_names.index(name), name, ids)
    return table


def check_labels(path: Path, columns: Sequence[str] | None) -> None:
    """Refuse a table that `ecgfast label` would refuse before it looks at a store.

    Raises:
        ConfigError: from `read_labels` or `label_columns`.
    """
    _chosen(read_labels(path), columns, path)


def _column(
    name: str, column: pa.ChunkedArray, separator: str, path: Path
) -> tuple[pa.Field, pa.ChunkedArray]:
    """A column in its type, with its field."""
    try:
        text = clean(column.cast(pa.string()))
    except pa.ArrowInvalid as error:
        if name in _TEXT:
            raise ConfigError(
                f"labels {path}: {name} is not UTF-8 text; save the table as CSV UTF-8"
            ) from error
        return pa.field(name, pa.binary()), column
    if name == "record_id":
        text = pc.replace_substring_regex(text, _RECORD_SUFFIX, "")
    if name in _TEXT and name not in _NUMBERS:
        return pa.field(name, pa.string()), text
    result = typed(text, decimal_comma=separator != ",")
    if name in _NUMBERS and (isinstance(result, BadCell) or not _is_number(result.type)):
        result = _number_column(name, text, result, path)
    if isinstance(result, BadCell):
        return pa.field(name, pa.string(), metadata={_BAD: json.dumps(vars(result))}), text
    if _is_number(result.type) and not pc.all(pc.is_finite(result), min_count=0).as_py():
        raise ConfigError(f"labels {path}: {name} holds a number beyond 1e308; correct the cell")
    return pa.field(name, result.type), result


def _number_column(
    name: str, text: pa.ChunkedArray, result: pa.ChunkedArray | BadCell, path: Path
) -> pa.ChunkedArray:
    """An empty column of numbers, or the refusal of one that holds something else."""
    if text.null_count == len(text):
        return text.cast(pa.float64())
    trimmed = pc.utf8_trim_whitespace(text)
    row = pc.index(pc.match_substring_regex(trimmed, NUMBER_CELL), False).as_py() + 1
    if isinstance(result, BadCell):
        row = result.row
    # An age may stand where a name was meant to be: the cell of a person is not shown.
    value = "" if name in PERSONAL else f", got {text[row - 1].as_py().strip()[:40]!r}"
    raise ConfigError(
        f"labels {path}: {name} of row {row} below the header must be a number such as 35.5, or "
        f"empty{value}; correct the cell"
    )


def _read(path: Path) -> tuple[pa.Table, str]:
    """The cells as bytes, and what separates them."""
    torn: list[pacsv.InvalidRow] = []

    def refuse(row: pacsv.InvalidRow) -> str:
        torn.append(row)
        return "skip"

    in_order = pacsv.ReadOptions(use_threads=False)  # a torn row has its number only then
    try:
        separator, names = _header(path)
        options = pacsv.ParseOptions(
            delimiter=separator, newlines_in_values=True, invalid_row_handler=refuse
        )
        kinds = pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary()))
        table = pacsv.read_csv(path, in_order, options, kinds)
    except FileNotFoundError as error:
        raise ConfigError(f"labels {path}: no such file") from error
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise ConfigError(
            f"labels {path}: not a CSV table with a header line: {error}; save it as CSV UTF-8"
        ) from error
    if torn:  # Arrow's own message repeats the row, and rows name patients
        raise ConfigError(
            f"labels {path}: line {torn[0].number} has {torn[0].actual_columns} cells, the header "
            f"{torn[0].expected_columns}; put quotes around cells that hold {separator!r}"
        )
    return table, separator


def _header(path: Path) -> tuple[str, list[str]]:
    """What separates the columns, the first of , ; tab that gives an id column, and their names."""
    with path.open("rb") as file:
        text = b"".join(islice(file, _HEADER_LINES))
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"labels {path}: got UTF-16, allowed UTF-8; save it as CSV UTF-8")
    lines = text.decode("utf-8-sig", errors="surrogateescape").splitlines(keepends=True)
    found = [(sign, next(csv.reader(lines, delimiter=sign), [])) for sign in SEPARATORS]
    for sign, names in found:
        if {name.strip() for name in names} & set(KEYS):
            return sign, names
    return found[0]


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
        ConfigError: a named column is missing or is one of the reserved ones, or a cell of a
            column of values is none.
    """
    taken, left = _chosen(table, columns, path)
    if left:
        log.info(f"labels: left out {', '.join(left)}; --columns takes what is named")
    return taken


def _chosen(
    table: pa.Table, columns: Sequence[str] | None, path: Path
) -> tuple[list[str], list[str]]:
    """The columns to take, and those that are not, each with its reason."""
    reserved = {*KEYS, *PERSONAL, *DATES, "split"}
    if columns is not None:
        _check_named(table, columns, path)
        taken = [name for name in columns if name not in reserved]
        _check_values(table, taken, path)
        return taken, []
    taken, left = [], []
    for field in table.schema:
        if field.name in reserved:
            continue
        if field.name in _ABOUT_RECORDING:
            left.append(f"{field.name} (a name of the store's own)")
        elif _LOOKS_LIKE_AN_ID.search(field.name):
            left.append(f"{field.name} (looks like an id)")
        elif _holds_values(field):
            taken.append(field.name)
        else:
            is_empty = table[field.name].null_count == table.num_rows
            left.append(f"{field.name} ({'every cell is empty' if is_empty else 'text'})")
    _check_values(table, taken, path)
    return taken, left


def _check_named(table: pa.Table, columns: Sequence[str], path: Path) -> None:
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise ConfigError(
            f"--columns: {missing[0]!r} is not in {path}; it has {', '.join(table.column_names)}"
        )
    own = [name for name in columns if name in {*KEYS, *DATES} | _ABOUT_RECORDING]
    if own:
        raise ConfigError(
            f"--columns: {own[0]!r} is a name of the store's own, allowed other columns; "
            "rename it in the CSV"
        )
    binary = [name for name in columns if pa.types.is_binary(table.schema.field(name).type)]
    if binary:
        raise ConfigError(
            f"--columns: {binary[0]!r} of {path} is not UTF-8 text; save the table as CSV UTF-8"
        )


def _check_values(table: pa.Table, columns: Sequence[str], path: Path) -> None:
    """Refuse a column of values with a cell that is none: it must not vanish as text."""
    for name in columns:
        note = (table.schema.field(name).metadata or {}).get(_BAD)
        if note:
            bad = BadCell(**json.loads(note))
            others = f" (and {bad.count - 1} more)" if bad.count > 1 else ""
            raise ConfigError(
                f"labels {path}: column {name!r}, row {bad.row} below the header{others}: got "
                f"{bad.value!r}, allowed a number as in its other cells (or yes/no, true/false), "
                "or an empty cell; correct the cell, or name the columns to take with --columns"
            )


def _holds_values(field: pa.Field) -> bool:
    """Whether a column holds numbers or yes/no values, but for bad cells."""
    is_value = pa.types.is_boolean(field.type) or _is_number(field.type)
    return is_value or _BAD in (field.metadata or {})


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
