"""Which columns of a CSV enter a store: the ejection fraction, yes/no columns, and named ones."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.labels.cells import BadCell
from ecgfast.labels.table import BAD, DATES, KEYS, PERSONAL, THOUSANDS, is_number, read_labels
from ecgfast.records import LONGEST_NAME, is_name
from ecgfast.store.table import SCHEMA

_ABOUT_RECORDING = {*SCHEMA.names} - {*KEYS, *PERSONAL, "split", "ejection_fraction"}
_OWN = {*KEYS, *DATES} | _ABOUT_RECORDING
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # patient_id, PatientID and "phone number"
_ID_WORDS = """
id ids mrn pid ssn nhs name names surname initials birth birthdate birthday born dob phone tel mail
email address street city town zip postcode lat lon date time patient person accession insurance
account
"""
_OF_IDS = frozenset(_ID_WORDS.split())
_SHOWN = 60  # letters of a name in an error
_YES_NO = ("0", "1", "0.0", "1.0", "true", "false", "yes", "no")


def check_labels(path: Path, columns: Sequence[str] | None) -> None:
    """Refuse a table that `ecgfast label` would refuse before it looks at a store.

    Raises:
        ConfigError: from `read_labels` or `label_columns`.
    """
    _chosen(read_labels(path), columns, path)


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
        shown = repr(odd[0] if len(odd[0]) <= _SHOWN else f"{odd[0][:_SHOWN]} ...")
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
    taken, left = _chosen(table, columns, path)
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
    """Say that 1,000 of a table with semicolons or tabs was taken for 1.0."""
    field = table.schema.field(name) if name in table.column_names else None
    row = (field.metadata or {}).get(THOUSANDS) if field is not None else None
    if row:
        log.warning(
            f"labels {path}: column {name!r}, row {row.decode()} below the header: the comma is "
            "read as a decimal one (1,000 is 1.0), as in the whole column; if it stands for "
            "thousands, write these numbers without it"
        )


def _chosen(
    table: pa.Table, columns: Sequence[str] | None, path: Path
) -> tuple[list[str], dict[str, str]]:
    """The columns to take, and those that are not, each with its reason."""
    reserved = {*KEYS, *PERSONAL, *DATES, "split"}
    if columns is not None:
        _check_named(table, columns, path)
        taken = [name for name in columns if name not in reserved]
        _check_values(table, taken, path)
        return taken, {}
    taken, left = [], {}
    for field in table.schema:
        if field.name in reserved:
            continue
        column = table[field.name]
        if field.name in _ABOUT_RECORDING:
            left[field.name] = "a name of the store's own"
        elif field.name == "ejection_fraction":
            taken.append(field.name)
        elif _looks_like_an_id(field.name):
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


def _looks_like_an_id(name: str) -> bool:
    return any(word.lower() in _OF_IDS for word in _WORD.findall(name))


def _is_yes_no(field: pa.Field, column: pa.ChunkedArray) -> bool:
    """Whether a column holds 0 and 1, or yes and no, but for bad cells: that names nobody."""
    if pa.types.is_boolean(field.type):
        return True
    if is_number(field.type):
        return bool(pc.all(pc.is_in(column.drop_null(), pa.array([0.0, 1.0]))).as_py())
    note = (field.metadata or {}).get(BAD)
    if note is None:
        return False
    low = pc.utf8_lower(pc.utf8_trim_whitespace(column.drop_null()))
    num_values = pc.sum(pc.is_in(low, pa.array(_YES_NO))).as_py()
    return bool(num_values + BadCell(**json.loads(note)).count == len(low))


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
    """Refuse a column of values with a cell that is none: it must not vanish as text."""
    for name in columns:
        note = (table.schema.field(name).metadata or {}).get(BAD)
        if note:
            bad = BadCell(**json.loads(note))
            others = f" (and {bad.count - 1} more)" if bad.count > 1 else ""
            raise ConfigError(
                f"labels {path}: column {name!r}, row {bad.row} below the header{others}: got "
                f"{bad.value!r}, allowed a number as in its other cells (or yes/no, true/false), "
                "or an empty cell; correct the cell, or name the columns to take with --columns"
            )
