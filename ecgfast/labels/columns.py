"""Columns of a table of labels: what their cells hold, and which columns enter a store."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.records import LONGEST_NAME, NOT_KNOWN, is_name
from ecgfast.store.format import EF_GIVEN, PSEUDONYM, SHIFTED_DATE
from ecgfast.store.table import SCHEMA

KEYS = ("record_id", "patient_id")
PERSONAL = ("site", "age", "sex")  # an empty cell leaves the recording's value
DATES = ("ecg_date", "label_date")
BAD = b"bad_cell"  # metadata of a column of values with a cell that is none
THOUSANDS = b"maybe_thousands"  # metadata of a column whose commas may not be decimal ones

NUMBER_CELL = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_COMMA_CELL = r"^[+-]?(\d+,\d*|,\d+)$"
_THOUSANDS = r"^[+-]?[1-9]\d{0,2},\d{3}$"
# 426783006;164889003 is no bad number; 33,5 is one, 426783006,164889003 is not.
_LIST_CELL = r"^[+-]?[\d.]+(\s*[;|/]\s*|\s+)[+-]?[\d.]+|^\d{4,}\s*,\s*\d{4,}"
_TRUE, _FALSE = ("true", "yes"), ("false", "no")
_MOST_WRONG = 10  # one cell in so many, or a single one: more are text
_SHOWN_CELL = 40  # characters of a cell in an error
_ABOUT_RECORDING = {*SCHEMA.names, EF_GIVEN, SHIFTED_DATE, PSEUDONYM} - {
    *(*KEYS, *PERSONAL, "split", "ejection_fraction")
}
_OWN = {*KEYS, *DATES} | _ABOUT_RECORDING
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # patient_id, PatientID and "phone number"
_ID_WORDS = """
id ids mrn pid ssn nhs name names surname initials birth birthdate birthday born dob phone tel mail
email address street city town zip postcode lat lon date time patient person accession insurance
account
"""
_OF_IDS = frozenset(_ID_WORDS.split())
_SHOWN_NAME = 60  # characters of a column name in an error
_YES_NO = ("0", "1", "0.0", "1.0", "true", "false", "yes", "no")


@dataclass(frozen=True, kw_only=True)
class BadCell:
    """The first cell that does not fit a column of numbers or yes/no values.

    Attributes:
        row: below the header, from 1.
        value: cut to 40 characters.
        count: how many cells do not fit.
    """

    row: int
    value: str
    count: int


def clean(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a text column with null for every empty cell; the others as they are."""
    bare = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    empty = pc.is_in(bare, pa.array(sorted(NOT_KNOWN)))
    return pc.if_else(empty, pa.scalar(None, pa.string()), column)


def typed(column: pa.ChunkedArray, *, decimal_comma: bool) -> pa.ChunkedArray | BadCell:
    """Return a cleaned text column as float64 or bool where its cells allow that, else unchanged.

    Numbers are decimal; yes/no values are true, false, yes, no (and then 1 and 0). A column is
    text when cells are lists of numbers (426783006;164889003), or when more than one cell, and
    more than one in ten, are no values.

    Args:
        column: text, null for empty cells.
        decimal_comma: take 33,5 as 33.5 where no cell of the column has a point.
    Returns:
        float64, bool or text; for a column of values with some cells that are none, the first.
    """
    bare = pc.utf8_trim_whitespace(column)
    if decimal_comma and not _any(pc.match_substring(bare, ".")):
        is_comma = pc.match_substring_regex(bare, _COMMA_CELL)
        bare = pc.if_else(is_comma, pc.replace_substring(bare, ",", "."), bare)
    low = pc.utf8_lower(bare)
    is_word = pc.is_in(low, pa.array(_TRUE + _FALSE))
    fits = is_value = pc.match_substring_regex(bare, NUMBER_CELL)
    if _any(is_word):  # null cells are no words either
        fits = pc.or_(is_word, pc.is_in(low, pa.array(["0", "1"])))
        is_value = pc.or_(is_word, is_value)
    num_cells = len(column) - column.null_count
    num_values = pc.sum(pc.and_(is_value, pc.is_valid(column))).as_py()  # None: no cells
    wrong = pc.and_(pc.invert(fits), pc.is_valid(column))
    if not num_values:
        return column
    if not _any(wrong):
        if not _any(is_word):
            return pc.replace_substring_regex(bare, r"^\+", "").cast(pa.float64())
        truth = pc.is_in(low, pa.array([*_TRUE, "1"]))
        return pc.if_else(pc.is_valid(low), truth, pa.scalar(None, pa.bool_()))
    if _any(is_word) and num_values == num_cells:  # numbers beside words: name the rarer ones
        num_words = pc.sum(is_word).as_py()
        wrong = wrong if 2 * num_words >= num_cells else pc.and_(is_word, pc.is_valid(column))
        return _first(column, wrong)
    strange = pc.and_(pc.invert(is_value), pc.is_valid(column))
    num_strange = pc.sum(strange).as_py()
    is_list = _any(pc.and_(strange, pc.match_substring_regex(bare, _LIST_CELL)))
    if is_list or (num_strange > 1 and num_strange * _MOST_WRONG > num_cells):
        return column
    return _first(column, strange)


def maybe_thousands(column: pa.ChunkedArray) -> int | None:
    """The first cell whose comma may stand for thousands, if that holds for all cells with one.

    Args:
        column: text that `typed` took for numbers with decimal commas.
    Returns:
        its row below the header, from 1.
    """
    bare = pc.utf8_trim_whitespace(column)
    has_comma = pc.match_substring(bare, ",")
    is_decimal = pc.and_(has_comma, pc.invert(pc.match_substring_regex(bare, _THOUSANDS)))
    return (
        None if not _any(has_comma) or _any(is_decimal) else pc.index(has_comma, True).as_py() + 1
    )


def _first(column: pa.ChunkedArray, wrong: pa.ChunkedArray) -> BadCell:
    row = pc.index(wrong, True).as_py()
    value = " ".join(column[row].as_py().split())
    return BadCell(row=row + 1, value=value[:_SHOWN_CELL], count=pc.sum(wrong).as_py())


def _any(mask: pa.ChunkedArray) -> bool:
    return bool(pc.any(mask).as_py())


def is_number(kind: pa.DataType) -> bool:
    """Whether a column holds numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def stored(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A label column in the type that the store uses: float64, bool or text."""
    if pa.types.is_boolean(column.type):
        return column
    # Unsafe: whole numbers beyond 2^53 are rounded.
    return column.cast(pa.float64() if is_number(column.type) else pa.string(), safe=False)


def check_names(columns: Sequence[str]) -> None:
    """Refuse names of columns that the store fills itself, and what is no name.

    Raises:
        ConfigError: the first of them.
    """
    own = [name for name in columns if name in _OWN]
    if own:
        raise ConfigError(
            f"--columns: {own[0]!r} is a name of the store's own, allowed other columns; "
            "rename it in the CSV"
        )
    _check_printable(columns, "--columns")


def _check_printable(columns: Sequence[str], where: str) -> None:
    """Refuse names that a store, a report or a terminal could not keep as they are."""
    odd = [name for name in columns if not is_name(name)]
    if odd:
        shown = repr(odd[0] if len(odd[0]) <= _SHOWN_NAME else f"{odd[0][:_SHOWN_NAME]} ...")
        raise ConfigError(
            f"{where}: column name {shown} must be at most {LONGEST_NAME} printable characters; "
            "rename it"
        )


def label_columns(table: pa.Table, columns: Sequence[str] | None, path: Path) -> list[str]:
    """The label columns to take: the named ones, or the ejection fraction and yes/no columns.

    Any other number can be that of a patient, and text can name one: they are taken only when asked
    for, and listed.

    Args:
        table: of `read_labels`.
        columns: the names, or None.
        path: of the CSV, for messages.
    Raises:
        ConfigError: a named column is missing or is one of the reserved ones, or a cell of a
            column of values is none.
    """
    taken, left = choose_columns(table, columns, path)
    for name in dict.fromkeys((*taken, "age")):
        _warn_of_commas(table, name, path)
    if left:
        wanted = [*taken, *(name for name, why in left.items() if why in ("numbers", "text"))]
        cure = ""
        if len(wanted) > len(taken) and not any("," in name for name in wanted):
            cure = f"; --columns {shlex.quote(','.join(wanted))} takes those of numbers and text"
        words = ", ".join(f"{name} ({why})" for name, why in left.items())
        log.info(f"labels: left out {words}{cure}")
    return taken


def _warn_of_commas(table: pa.Table, name: str, path: Path) -> None:
    """Warn that 1,000 in a table with semicolons or tabs was read as 1.0."""
    field = table.schema.field(name) if name in table.column_names else None
    row = (field.metadata or {}).get(THOUSANDS) if field is not None else None
    if row:
        log.warning(
            f"labels {path}: column {name!r}, row {row.decode()} below the header: the comma is "
            "read as a decimal one (1,000 is 1.0), as in the whole column; if it stands for "
            "thousands, write these numbers without it"
        )


def choose_columns(
    table: pa.Table, columns: Sequence[str] | None, path: Path
) -> tuple[list[str], dict[str, str]]:
    """The columns to take, and those that are left out, each with its reason.

    Args:
        table: of `read_labels`.
        columns: the names to take, or None.
        path: of the CSV, for messages.
    Raises:
        ConfigError: as in `label_columns`.
    """
    reserved = {*KEYS, *PERSONAL, *DATES, "split"}
    if columns is not None:
        _check_named(table, columns, path)
        taken = [name for name in columns if name not in reserved]
        _check_values(table, taken, path)
        return taken, {}
    taken, left = [], {}
    for field in table.schema:
        if field.name in reserved or field.name == EF_GIVEN:
            continue
        column = table[field.name]
        if field.name in _ABOUT_RECORDING:
            left[field.name] = "a name of the store's own"
        elif field.name == "ejection_fraction":
            taken.append(field.name)
        elif any(word.lower() in _OF_IDS for word in _WORD.findall(field.name)):
            left[field.name] = "looks like an id"
        elif column.null_count == len(column):
            left[field.name] = "every cell is empty"
        elif pa.types.is_binary(field.type):
            left[field.name] = "not UTF-8"
        elif _is_yes_no(field, column):
            taken.append(field.name)
        else:
            left[field.name] = "numbers" if is_number(field.type) else "text"
    _check_printable(taken, f"labels {path}")
    _check_values(table, taken, path)
    return taken, left


def _is_yes_no(field: pa.Field, column: pa.ChunkedArray) -> bool:
    """Whether a column holds 0 and 1, or yes and no, but for bad cells: that names nobody."""
    if pa.types.is_boolean(field.type) or is_number(field.type):
        return holds_yes_no(column)
    bad = _bad_cell(field)
    if bad is None:
        return False
    low = pc.utf8_lower(pc.utf8_trim_whitespace(column.drop_null()))
    num_values = pc.sum(pc.is_in(low, pa.array(_YES_NO))).as_py()
    return bool(num_values + bad.count == len(low))


def holds_yes_no(column: pa.ChunkedArray) -> bool:
    """Whether a column is of yes/no values, or of no numbers but 0 and 1."""
    if pa.types.is_boolean(column.type):
        return True
    only = is_number(column.type) and pc.all(pc.is_in(column.drop_null(), pa.array([0.0, 1.0])))
    return bool(only and only.as_py())


def _bad_cell(field: pa.Field) -> BadCell | None:
    note = (field.metadata or {}).get(BAD)
    return BadCell(**json.loads(note)) if note else None


def _check_named(table: pa.Table, columns: Sequence[str], path: Path) -> None:
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise ConfigError(
            f"--columns: {missing[0]!r} is not in {path}; it has {', '.join(table.column_names)}"
        )
    check_names(columns)
    binary = [name for name in columns if pa.types.is_binary(table.schema.field(name).type)]
    if binary:
        raise ConfigError(
            f"--columns: {binary[0]!r} of {path} is not UTF-8 text; save the table as CSV UTF-8"
        )


def _check_values(table: pa.Table, columns: Sequence[str], path: Path) -> None:
    """Refuse a column of values with a cell that is no value: as text it would be left out."""
    for name in columns:
        bad = _bad_cell(table.schema.field(name))
        if bad:
            others = f" (and {bad.count - 1} more)" if bad.count > 1 else ""
            raise ConfigError(
                f"labels {path}: column {name!r}, row {bad.row} below the header{others}: got "
                f"{bad.value!r}, allowed a number as in its other cells (or yes/no, true/false), "
                "or an empty cell; correct the cell, or name the columns to take with --columns"
            )


def set_column(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The table with a column replaced, or appended."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)
