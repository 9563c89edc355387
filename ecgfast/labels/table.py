"""A CSV of labels: which columns it has, which of them are taken, its dates."""

import datetime
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from ecgfast import log
from ecgfast.errors import ConfigError

KEYS = ("record_id", "patient_id")
PERSONAL = ("site", "age", "sex")  # an empty cell leaves what the recording says
DATES = ("ecg_date", "label_date")
_TEXT = (*KEYS, *DATES, "site", "sex", "split")
_LOOKS_LIKE_AN_ID = re.compile(
    r"(^|_)(id|mrn|name|birth|dob|phone|zip|date|time)($|_)", re.IGNORECASE
)
_ISO = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_DAY_FIRST = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})")  # WFDB headers


def read_labels(path: Path) -> pa.Table:
    """Read a CSV of labels; ids, site, sex, split and dates stay text.

    Raises:
        ConfigError: no such file, no table, or no id column.
    """
    try:
        table = pacsv.read_csv(
            path,
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in _TEXT}, strings_can_be_null=True
            ),
        )
    except FileNotFoundError as error:
        raise ConfigError(f"labels {path}: no such file") from error
    except pa.ArrowInvalid as error:
        raise ConfigError(f"labels {path}: not a CSV table with a header line: {error}") from error
    if not set(KEYS) & set(table.column_names):
        raise ConfigError(
            f"labels {path}: got columns {', '.join(table.column_names)}, needs record_id or "
            "patient_id to join on"
        )
    return table


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
        return [name for name in columns if name not in reserved]
    taken: list[str] = []
    left: list[str] = []
    for field in table.schema:
        if field.name in reserved:
            continue
        is_value = pa.types.is_boolean(field.type) or _is_number(field.type)
        fits = is_value and not _LOOKS_LIKE_AN_ID.search(field.name)
        (taken if fits else left).append(field.name)
    if left:
        log.info(f"labels: left out {', '.join(left)} (text or ids); --columns takes them by name")
    return taken


def stored(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A label column in the type that the store uses: float64, bool or text."""
    if pa.types.is_boolean(column.type):
        return column
    return column.cast(pa.float64() if _is_number(column.type) else pa.string())


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
