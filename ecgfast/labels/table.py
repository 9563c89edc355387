"""A CSV of labels: its columns, each in its type, and its dates."""

import csv
import datetime
import json
import re
from collections.abc import Callable, Container, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from ecgfast.errors import ConfigError
from ecgfast.labels.columns import (
    BAD,
    DATES,
    KEYS,
    NUMBER_CELL,
    PERSONAL,
    THOUSANDS,
    BadCell,
    choose_columns,
    clean,
    is_number,
    maybe_thousands,
    typed,
)
from ecgfast.records import MAX_AGE, OVER_89, is_patient, is_percent, is_site, known_id, parse_sex
from ecgfast.store.patients import Pseudonyms

_NUMBERS = ("age", "ejection_fraction")
_TEXT = (*KEYS, *DATES, *_NUMBERS, "site", "sex", "split")
_ISO = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
# In a CSV 04/05/2020 is April in one country and May in the next: only ISO dates, time allowed.
_ISO_CELL = r"^\s*\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])([T ].*)?$"
_VENDOR_SUFFIX = re.compile(r"\.[A-Za-z]\w{1,7}$")
_RECORD_SUFFIX = r"(?i)\.(hea|dat|mat|npy|npz)\s*$"  # people write the file's name for the id
_QUOTED = r"^'('*[=+\-@\t\r\n])"
SEPARATORS = (",", ";", "\t")
_HEADER_LINES = 100  # the names of columns can hold line breaks
_TORN = re.compile(r"CSV parse error: Row #(\d+): Expected (\d+) columns, got (\d+)")
_MAX_FOLD = 99
_SHOWN = 40  # letters of a cell in an error
_DAY_FIRST = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})")  # WFDB headers


def read_labels(path: Path) -> pa.Table:
    """Read a table of labels with commas, semicolons or tabs between its columns.

    Ids, site, sex, split and dates stay text; other columns become numbers, yes/no values or text
    by `columns.typed`. A cell that a column of values cannot hold is kept in the field's metadata
    for `columns.label_columns`, which refuses it where the column is taken.

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
    return _with_known_people(table, path)


def check_labels(path: Path, columns: Sequence[str] | None) -> None:
    """Refuse a table that `ecgfast label` would refuse before it looks at a store.

    Raises:
        ConfigError: from `read_labels` or `label_columns`.
    """
    choose_columns(read_labels(path), columns, path)


def _with_known_people(table: pa.Table, path: Path) -> pa.Table:
    """Ids, site, sex and age as the readers of recordings have them: 7.0 is 7, F is female.

    Raises:
        ConfigError: a cell is none of these; it is not shown, it may name a patient.
    """
    for name, known, allowed in _PEOPLE:
        if name not in table.column_names:
            continue
        before = table[name].to_pylist()
        after = [None if value is None else known(value) for value in before]
        for row, (cell, value) in enumerate(zip(before, after, strict=True), 1):
            if cell is not None and value is None:
                raise ConfigError(
                    f"labels {path}: {name} of row {row} below the header must be {allowed}, or "
                    "empty; correct the cell"
                )
        position, kind = table.column_names.index(name), pa.string()
        if name in _NUMBERS:
            kind = pa.float64()
        field = pa.field(name, kind, metadata=table.schema.field(name).metadata)
        table = table.set_column(position, field, pa.array(after, kind))
    return table


def _known_patient(value: str) -> str | None:
    patient = known_id(value)
    return patient if is_patient(patient) else None


def _known_site(value: str) -> str | None:
    site = known_id(value)
    return site if is_site(site) else None


def _known_age(value: float) -> float | None:
    return value if 0 <= value <= MAX_AGE or value == OVER_89 else None


def _known_fraction(value: float) -> float | None:
    return value if is_percent(value) else None


_PEOPLE: tuple[tuple[str, Callable[[Any], Any], str], ...] = (
    ("patient_id", _known_patient, "one line without control characters"),
    ("site", _known_site, "one line of at most 100 printable characters"),
    ("sex", parse_sex, "female, male, F or M"),
    ("age", _known_age, "from 0 to 120 years (300: over 89)"),
    ("ejection_fraction", _known_fraction, "from 0 to 100 percent"),
)


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
    if name in (*KEYS, "site"):
        # What our own tables put before a name that a spreadsheet would take for a formula.
        text = pc.replace_substring_regex(text, _QUOTED, r"\1")
    if name == "record_id":
        text = pc.replace_substring_regex(text, _RECORD_SUFFIX, "")
    if name in _TEXT and name not in _NUMBERS:
        return pa.field(name, pa.string()), text
    result = typed(text, decimal_comma=separator != ",")
    if name in _NUMBERS and (isinstance(result, BadCell) or not is_number(result.type)):
        result = _number_column(name, text, result, path)
    if isinstance(result, BadCell):
        return pa.field(name, pa.string(), metadata={BAD: json.dumps(vars(result))}), text
    if is_number(result.type) and not pc.all(pc.is_finite(result), min_count=0).as_py():
        raise ConfigError(f"labels {path}: {name} holds a number beyond 1e308; correct the cell")
    row = maybe_thousands(text) if separator != "," and is_number(result.type) else None
    return pa.field(name, result.type, metadata=row and {THOUSANDS: str(row)}), result


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
    value = "" if name in PERSONAL else f", got {text[row - 1].as_py().strip()[:_SHOWN]!r}"
    raise ConfigError(
        f"labels {path}: {name} of row {row} below the header must be a number such as 35.5, or "
        f"empty{value}; correct the cell"
    )


def _read(path: Path) -> tuple[pa.Table, str]:
    """The cells as bytes, and what separates them."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError(f"labels {path}: got a pipe or a device, allowed a file; save it as one")
    in_order = pacsv.ReadOptions(use_threads=False)  # a torn row has its number only then
    try:
        separator, names = _header(path)
        options = pacsv.ParseOptions(delimiter=separator, newlines_in_values=True)
        kinds = pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary()))
        with path.open("rb") as file:  # not by name: Arrow opens none that is not UTF-8
            table = pacsv.read_csv(file, in_order, options, kinds)
    except FileNotFoundError as error:
        raise ConfigError(f"labels {path}: no such file") from error
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


def folds(table: pa.Table, path: Path) -> pa.ChunkedArray:
    """The column `fold` as whole numbers.

    Raises:
        ConfigError: a cell is no fold; every other number could be that of a patient.
    """
    values = table["fold"].to_pylist()
    for row, cell in enumerate(values, 1):
        number = cell
        if isinstance(cell, str) and re.match(NUMBER_CELL, cell.strip()):
            number = float(cell)  # among others that are none
        is_fold = isinstance(number, float) and number in range(_MAX_FOLD + 1)
        if cell is not None and not is_fold:
            got = f"{cell:.15g}" if isinstance(cell, float) else repr(cell)[:_SHOWN]
            raise ConfigError(
                f"labels {path}: fold of row {row} below the header must be a whole number from 0 "
                f"to {_MAX_FOLD}, or empty, got {got}; correct the cell"
            )
    numbers = [None if value is None else int(value) for value in values]
    return pa.chunked_array([pa.array(numbers, pa.int64())])


def stored_id(name: str, known: Container[str], pseudonyms: Pseudonyms) -> str:
    """Return the id under which a store has a recording.

    Args:
        name: the stored id itself, or the readable one; of a vendor's file with its suffix, which
            the readable id has only where another file has its stem.
        known: ids of the store.
        pseudonyms: of the store.
    """
    if name in known:
        return name
    whole = pseudonyms.of("record", name)
    return whole if whole in known else pseudonyms.of("record", _VENDOR_SUFFIX.sub("", name))


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
