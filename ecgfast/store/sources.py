"""STORE.sources.csv, beside the store: what ties its records to readable names."""

import csv
from collections.abc import Iterable
from pathlib import Path

from ecgfast.errors import CorruptStoreError
from ecgfast.store.format import SOURCES_COLUMNS, sources_beside
from ecgfast.store.spreadsheets import csv_lines, read_lines
from ecgfast.store.table import write_sources

Source = dict[str, str]


def read_sources(store: Path) -> dict[str, Source] | None:
    """Read the table: record_id -> its line, the first one where several have one id.

    Lines of a table that an earlier version wrote lack "record", "patient" and "detail".

    Returns:
        None where there is no table.
    Raises:
        CorruptStoreError: the file is no such table.
    """
    path = sources_beside(store)
    if not path.exists():
        return None
    lines: dict[str, Source] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line in read_lines(file):
                lines.setdefault(line["record_id"], line)
    except (KeyError, ValueError, csv.Error) as error:
        raise CorruptStoreError(
            f"{path} is damaged: {error}; restore it from a copy, or convert again"
        ) from error
    return lines


def replace_patients(store: Path, patients: dict[str, str]) -> None:
    """Write the table again with other patients.

    Args:
        store: its folder; the caller holds its lock.
        patients: record_id -> readable key of the patient, for the records that change.
    """
    path = sources_beside(store)
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(read_lines(file))
    write_sources(path, [csv_lines(_changed(lines, patients))])


def _changed(lines: Iterable[Source], patients: dict[str, str]) -> Iterable[list[str]]:
    for line in lines:
        line["patient"] = patients.get(line["record_id"], line.get("patient") or "")
        yield [line.get(name) or "" for name in SOURCES_COLUMNS]
