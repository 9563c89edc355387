"""Which line of a CSV belongs to which record."""

import csv
import datetime
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.labels.table import parse_date
from ecgfast.store.pseudonyms import Pseudonyms

_NO_ROW = -1


def match_rows(records: pa.Table, labels: pa.Table, pseudonyms: Pseudonyms) -> list[list[int]]:
    """For each record the lines of the CSV that name it, in the order of the CSV.

    Joined on record_id where the CSV has one, else on patient_id. Readable ids are turned into
    pseudonyms with the store's key; pseudonyms are taken as they are.
    """
    kind = "record" if "record_id" in labels.column_names else "patient"
    ours = [str(name) for name in records[f"{kind}_id"].to_pylist()]
    if kind == "record":  # windows of one recording are ID, ID@5000, ID@10000 ...
        starts = records["start_timestep"].to_pylist()
        ours = [
            name.rsplit("@", 1)[0] if start else name
            for name, start in zip(ours, starts, strict=True)
        ]
    known = set(ours)
    lines: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(labels[f"{kind}_id"].to_pylist()):
        if name is not None:
            lines[name if name in known else pseudonyms.of(kind, name)].append(number)
    return [lines.get(name, []) for name in ours]


def first_rows(matches: list[list[int]]) -> NDArray[np.int64]:
    """(N,) the first matching line of each record, -1 for none."""
    return np.array([rows[0] if rows else _NO_ROW for rows in matches], np.int64)


def agreeing_rows(
    matches: list[list[int]], labels: pa.Table, columns: list[str]
) -> NDArray[np.int64]:
    """(N,) the one line that labels each record, -1 for none.

    Raises:
        ConfigError: two lines of one record say different things.
    """
    several = [rows for rows in matches if len(rows) > 1]
    if several:
        cells = list(zip(*(labels[name].to_pylist() for name in columns), strict=True))
        for rows in several:
            if cells and len({cells[row] for row in rows}) > 1:
                raise ConfigError(
                    f"labels: lines {rows[0] + 2} and {rows[1] + 2} name the same record and "
                    "disagree; keep one, or give label_date and --label-window-days"
                )
    return first_rows(matches)


def nearest_rows(
    matches: list[list[int]],
    labels: pa.Table,
    recorded: list[datetime.date | None],
    window_days: int,
) -> NDArray[np.int64]:
    """(N,) the line whose label_date is nearest to the recording, -1 for none in the window.

    Args:
        matches: from `match_rows`.
        labels: the CSV, with label_date and, optionally, ecg_date.
        recorded: date of each record as the source files have it.
        window_days: largest distance.
    Raises:
        ConfigError: there is nothing to compare.
    """
    if "label_date" not in labels.column_names:
        raise ConfigError("--label-window-days needs a column label_date (YYYY-MM-DD) in the CSV")
    label_dates = [parse_date(text) for text in labels["label_date"].to_pylist()]
    ecg_dates: list[datetime.date | None] = [None] * len(label_dates)
    if "ecg_date" in labels.column_names:
        ecg_dates = [parse_date(text) for text in labels["ecg_date"].to_pylist()]
    if not any(ecg_dates) and not any(recorded):
        raise ConfigError(
            "--label-window-days: no record has a date; add a column ecg_date (YYYY-MM-DD) to "
            "the CSV"
        )
    chosen = np.full(len(matches), _NO_ROW, np.int64)
    for n, rows in enumerate(matches):
        nearest = window_days + 1
        for row in rows:
            ecg, label = ecg_dates[row] or recorded[n], label_dates[row]
            if ecg is not None and label is not None and abs((label - ecg).days) < nearest:
                nearest, chosen[n] = abs((label - ecg).days), row
    return chosen


def recorded_dates(sources: Path, records: pa.Table) -> list[datetime.date | None]:
    """Dates of the recordings from the table beside the store; None where it does not say."""
    if not sources.exists():
        return [None] * records.num_rows
    with sources.open(newline="", encoding="utf-8") as file:
        dates = {line["record_id"]: parse_date(line["recorded"]) for line in csv.DictReader(file)}
    return [dates.get(name) for name in records["record_id"].to_pylist()]
