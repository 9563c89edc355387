"""A table of labels: its columns, each in its type."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.labels.columns import (
    BAD,
    DATES,
    KEYS,
    NUMBER_CELL,
    THOUSANDS,
    BadCell,
    choose_columns,
    clean,
    is_number,
    maybe_thousands,
    set_column,
    typed,
)
from ecgfast.labels.ejection_fraction import read_column
from ecgfast.labels.files import Cells, read_cells
from ecgfast.labels.naming import Naming, named
from ecgfast.records import MAX_AGE, OVER_89, is_patient, is_site, known_id, parse_sex
from ecgfast.store.format import EF_GIVEN

_EF = "ejection_fraction"
_TEXT = (*KEYS, *DATES, _EF, EF_GIVEN, "site", "sex", "split")
# In a CSV 04/05/2020 is April in one country and May in the next: only ISO dates, time allowed.
_ISO_CELL = r"^\s*\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])([T ].*)?$"
_RECORD_SUFFIX = r"(?i)\.(hea|dat|mat|npy|npz)\s*$"  # people write the file's name for the id
_QUOTED = r"^'('*[=+\-@\t\r\n])"
_MAX_FOLD = 99
_SHOWN = 40  # letters of a cell in an error
# ptbxl_database.csv of PTB-XL 1.0.1 to 1.0.3 is known by these columns: its sex is 0 and 1.
_PTB_XL = {"ecg_id", "scp_codes", "strat_fold", "filename_lr", "filename_hr"}
_SEX_OF_PTB_XL = {"0": "male", "1": "female"}


def read_labels(path: Path, naming: Naming | None = None) -> pa.Table:
    """Read a table of labels: a CSV, a Parquet file or a sheet of a workbook.

    Ids, site, sex, split and dates stay text; other columns become numbers, yes/no values or text
    by `columns.typed`. A cell that a column of values cannot hold is kept in the field's metadata
    for `columns.label_columns`, which refuses it where the column is taken.

    Raises:
        ConfigError: no such file, no table, no id column, or a cell that cannot be what it should.
    """
    naming = naming or Naming()
    cells = read_cells(path, naming.ids)
    naming.check(cells.table.column_names, str(path))
    return labels_of_cells(cells, naming, path)


def labels_of_cells(cells: Cells, naming: Naming, path: Path) -> pa.Table:
    """The columns of a table, each in its type; see `read_labels`."""
    table = named(cells.table, naming, path)
    if not set(KEYS) & set(table.column_names):
        raise ConfigError(
            f"labels {path}: got columns {', '.join(table.column_names)}, needs record_id or "
            "patient_id to join on, with commas, semicolons or tabs between the columns; "
            "--id-column NAME names another"
        )
    is_ptb_xl = set(cells.table.column_names) >= _PTB_XL
    for position, name in enumerate(table.column_names):
        found = _column(name, table[name], cells.decimal_comma, path)
        table = table.set_column(position, *found)
    for name in DATES:
        _check_cells(table, name, _ISO_CELL, "YYYY-MM-DD", path)
    if naming.id_prefix and "record_id" in table.column_names:
        below = pc.replace_substring_regex(
            table["record_id"], rf"^{re.escape(naming.id_prefix)}", ""
        )
        table = set_column(table, "record_id", below)
    if is_ptb_xl and "sex" in table.column_names:
        sex = [_SEX_OF_PTB_XL.get(cell or "", cell) for cell in table["sex"].to_pylist()]
        table = set_column(table, "sex", pa.array(sex, pa.string()))
        log.info(f"labels {path}: PTB-XL's own table: sex 0 is male, 1 is female")
    return _with_ejection_fraction(_with_known_people(table, path), path)


def _with_ejection_fraction(table: pa.Table, path: Path) -> pa.Table:
    """The column in percent, and what was given in place of a number."""
    given = None
    if EF_GIVEN in table.column_names:  # a table that was made from a store
        given = table[EF_GIVEN]
        table = table.drop_columns([EF_GIVEN])
    if _EF not in table.column_names:
        return table
    text = table[_EF] if given is None else pc.coalesce(given, table[_EF])
    percent, given, words = read_column(text, path)
    if words:
        shown = ", ".join(f"{count:,} {word!r}" for word, count in words.most_common())
        log.warning(
            f"labels {path}: {log.counted(sum(words.values()), 'cell')} of ejection_fraction with "
            f"words in place of a number, which count as unknown: {shown}"
        )
    row = maybe_thousands(text)
    note = {THOUSANDS: str(row)} if row else None
    position = table.column_names.index(_EF)
    table = table.set_column(position, pa.field(_EF, pa.float64(), metadata=note), percent)
    return table if given is None else table.append_column(EF_GIVEN, given)


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
        position = table.column_names.index(name)
        kind = pa.float64() if name == "age" else pa.string()
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


_PEOPLE: tuple[tuple[str, Callable[[Any], Any], str], ...] = (
    ("patient_id", _known_patient, "one line without control characters"),
    ("site", _known_site, "one line of at most 100 printable characters"),
    ("sex", parse_sex, "female, male, F or M"),
    ("age", _known_age, "from 0 to 120 years (300: over 89)"),
)


def _column(
    name: str, column: pa.ChunkedArray, decimal_comma: bool, path: Path
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
    if name in _TEXT:
        return pa.field(name, pa.string()), text
    result = typed(text, decimal_comma=decimal_comma)
    if name == "age" and (isinstance(result, BadCell) or not is_number(result.type)):
        result = _ages(text, result, path)
    if isinstance(result, BadCell):
        return pa.field(name, pa.string(), metadata={BAD: json.dumps(vars(result))}), text
    if is_number(result.type) and not pc.all(pc.is_finite(result), min_count=0).as_py():
        raise ConfigError(f"labels {path}: {name} holds a number beyond 1e308; correct the cell")
    row = maybe_thousands(text) if decimal_comma and is_number(result.type) else None
    return pa.field(name, result.type, metadata=row and {THOUSANDS: str(row)}), result


def _ages(text: pa.ChunkedArray, result: pa.ChunkedArray | BadCell, path: Path) -> pa.ChunkedArray:
    """An empty column of ages, or the refusal of one that holds something else.

    The cell is not shown: a name may stand where an age was meant to be.
    """
    if text.null_count == len(text):
        return text.cast(pa.float64())
    trimmed = pc.utf8_trim_whitespace(text)
    row = pc.index(pc.match_substring_regex(trimmed, NUMBER_CELL), False).as_py() + 1
    if isinstance(result, BadCell):
        row = result.row
    raise ConfigError(
        f"labels {path}: age of row {row} below the header must be a number such as 35.5, or "
        "empty; correct the cell"
    )


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
