"""The CSV files in and beside a store; a spreadsheet shows their cells as text, never as formulas.

In the store: quarantine.csv. Beside it, with readable names, mode 0600: STORE.sources.csv ties
records to their files, STORE.passed_over.csv lists examples of files that nothing read.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from ecgfast.errors import CorruptStoreError
from ecgfast.store.durable import write_durably
from ecgfast.store.format import (
    QUARANTINE,
    QUARANTINE_COLUMNS,
    SOURCES_COLUMNS,
    changed_beside,
    passed_over_beside,
    sources_beside,
)

# Source: OWASP, "CSV Injection". A quote in front of these makes a cell text.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_FIRST = frozenset("'=+-@\t\r\n")  # of a formula: most cells need no pattern
_SPECIAL = re.compile(r'[",\r\n]')
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
PASSED_OVER_COLUMNS = ("kind", "source")

Source = dict[str, str]  # one line of STORE.sources.csv


def csv_lines(rows: Iterable[Sequence[str]]) -> str:
    """Rows as the lines of a CSV file."""
    # Not csv.writer: before Python 3.13 it puts no quotes around a lone carriage return.
    return "".join(",".join(_quoted(safe_cell(cell)) for cell in row) + "\n" for row in rows)


def safe_cell(text: str) -> str:
    """A cell with a quote before what would be a formula; numbers stay as they are."""
    if text[:1] not in _FIRST or not _FORMULA.match(text) or _NUMBER.fullmatch(text):
        return text
    return f"'{text}"


def plain_text(cell: str) -> str:
    """The text that `safe_cell` was given."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def _quoted(cell: str) -> str:
    """A cell as RFC 4180 has it."""
    if _SPECIAL.search(cell):
        return '"' + cell.replace('"', '""') + '"'
    return cell


def read_lines(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Lines of a CSV file of ours, header first; cells that a line lacks are empty.

    Raises:
        csv.Error: it is none.
    """
    for line in csv.DictReader(lines, restval=""):
        yield {name: plain_text(cell) for name, cell in line.items() if name is not None}


def write_quarantine(
    store: Path, lines: Iterable[str], name: str = QUARANTINE
) -> dict[str, int | str]:
    """Write quarantine.csv from its lines; returns its manifest entry."""
    return _write(store / name, QUARANTINE_COLUMNS, lines, mode=0o644)


def refused_ids(quarantine: bytes) -> set[str]:
    """The record_ids of a quarantine.csv."""
    here, lines = pacsv.ReadOptions(use_threads=False), pacsv.ParseOptions(newlines_in_values=True)
    text = pacsv.ConvertOptions(column_types={"record_id": pa.string()})
    table = pacsv.read_csv(pa.BufferReader(quarantine), here, lines, text)
    return {plain_text(each) for each in table["record_id"].to_pylist()}


def write_sources(path: Path, lines: Iterable[str]) -> None:
    """Write the table of readable paths and dates, mode 0600; it never enters the store."""
    _write(path, SOURCES_COLUMNS, lines, mode=0o600)


def read_sources(store: Path) -> dict[str, Source] | None:
    """Read STORE.sources.csv: record_id -> its line, the first one where several have one id.

    Lines of a table that an earlier version wrote lack "record", "patient" and "detail".

    Returns:
        None where there is no table.
    Raises:
        CorruptStoreError: the file is no such table.
    """
    path = sources_beside(store)
    if not path.exists():
        return None
    sources: dict[str, Source] = {}
    with _lines_of(path, "restore it from a copy, or convert again") as lines:
        for line in lines:
            sources.setdefault(line["record_id"], line)
    return sources


def replace_patients(store: Path, patients: dict[str, str]) -> None:
    """Write STORE.sources.csv again with other patients.

    Args:
        store: its folder; the caller holds its lock.
        patients: record_id -> readable key of the patient, for the records that change.
    """
    path = sources_beside(store)
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(read_lines(file))
    for line in lines:
        line["patient"] = patients.get(line["record_id"], line.get("patient") or "")
    rows = ([line.get(name) or "" for name in SOURCES_COLUMNS] for line in lines)
    write_sources(path, [csv_lines(rows)])


def add_sources(store: Path, text: str) -> None:
    """Add lines to STORE.sources.csv, unless it ends with them because a crash came behind that.

    Lines of an earlier version get empty cells in the columns that it did not have.
    """
    path = sources_beside(store)
    added, header = text.encode(), csv_lines([SOURCES_COLUMNS]).encode()
    before = path.read_bytes() if path.exists() else header
    if not before.startswith(header):
        with _lines_of(path, "restore it from a copy, or convert again") as lines:
            rows = [[line.get(name) or "" for name in SOURCES_COLUMNS] for line in lines]
        before = header + csv_lines(rows).encode()
    if not before.endswith(added):
        write_durably(path, [before, added], mode=0o600)


def remove_sources(store: Path, recordings: Set[str]) -> None:
    """Remove the lines of some recordings, and of all their windows, from STORE.sources.csv."""
    path = sources_beside(store)
    if not path.exists():
        return
    with _lines_of(path, "restore it from a copy, or convert again") as read:
        lines = list(read)
    names = {line.get("record") for line in lines if line["record_id"] in recordings} - {"", None}
    rows = (
        [line.get(name) or "" for name in SOURCES_COLUMNS]
        for line in lines
        if line["record_id"] not in recordings and line.get("record") not in names
    )
    write_sources(path, [csv_lines(rows)])


def listed_sizes(store: Path) -> dict[str, tuple[int, int]]:
    """Bytes and modification time of each input's files when it was listed, by record_id.

    Inputs of a table that an earlier version wrote are not in it.
    """
    path = sources_beside(store)
    wanted = ["record_id", "bytes", "mtime_ns"]
    types = dict(zip(wanted, (pa.string(), pa.int64(), pa.int64()), strict=True))
    try:
        table = pacsv.read_csv(
            path,
            pacsv.ReadOptions(use_threads=False),
            pacsv.ParseOptions(newlines_in_values=True),
            pacsv.ConvertOptions(include_columns=wanted, column_types=types),
        )
    except (FileNotFoundError, KeyError):
        return {}
    except pa.ArrowException as error:
        raise CorruptStoreError(
            f"{path} is damaged: {error}; restore it from a copy, or convert again"
        ) from error
    table = table.drop_null()  # lines of an earlier version have empty cells
    names, sizes, times = (table[name].to_pylist() for name in wanted)
    first = list(zip(sizes, times, strict=True))
    # Backwards, so that the first line of an id counts.
    return dict(zip(map(plain_text, reversed(names)), reversed(first), strict=True))


def write_changed(store: Path, changed: Mapping[str, str]) -> None:
    """Write STORE.changed.csv, mode 0600: record_id and readable path of changed inputs."""
    rows = csv_lines(changed.items())
    _write(changed_beside(store), ("record_id", "source"), [rows], mode=0o600)


def write_passed_over(store: Path, examples: Mapping[str, Sequence[str]]) -> None:
    """Write examples of files that were passed over, mode 0600; they never enter the store.

    Args:
        store: its folder.
        examples: kind -> readable paths.
    """
    rows = [(kind, source) for kind in sorted(examples) for source in examples[kind]]
    _write(passed_over_beside(store), PASSED_OVER_COLUMNS, [csv_lines(rows)], mode=0o600)


def passed_over_examples(store: Path) -> dict[str, list[str]]:
    """Read the examples of files that were passed over, by kind; none where their table is not.

    Raises:
        CorruptStoreError: the file is no such table.
    """
    path = passed_over_beside(store)
    examples: dict[str, list[str]] = {}
    if not path.exists():
        return examples
    with _lines_of(path, "remove it, the store does not need it") as lines:
        for line in lines:
            examples.setdefault(line["kind"], []).append(line["source"])
    return examples


@contextmanager
def _lines_of(path: Path, cure: str) -> Iterator[Iterator[dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            yield read_lines(file)
    except (KeyError, ValueError, csv.Error) as error:
        raise CorruptStoreError(f"{path} is damaged: {error}; {cure}") from error


def _write(
    path: Path, columns: Sequence[str], lines: Iterable[str], *, mode: int
) -> dict[str, int | str]:
    parts = (part.encode() for part in chain([csv_lines([columns])], lines))
    return write_durably(path, parts, mode=mode)
