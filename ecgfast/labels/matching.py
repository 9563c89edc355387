"""Which line of a CSV belongs to which record."""

import datetime
from collections import defaultdict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.labels.table import parse_date
from ecgfast.store.patients import Pseudonyms

_NO_ROW = -1


def match_rows(records: pa.Table, labels: pa.Table, pseudonyms: Pseudonyms) -> list[list[int]]:
    """For each record the lines of the CSV that name it, in the order of the CSV.

    Joined on record_id where the CSV has one, else on patient_id and the patient's site. Readable
    ids are turned into pseudonyms with the store's key; pseudonyms are taken as they are.

    Raises:
        ConfigError: several sites number their own patients, and the CSV does not say which.
    """
    if "record_id" not in labels.column_names:
        lines = _lines_by_patient(records, labels, pseudonyms)
        return [lines.get(name, []) for name in records["patient_id"].to_pylist()]
    starts = records["start_timestep"].to_pylist()
    ours = [  # windows of one recording are ID, ID@5000, ID@10000 ...
        str(name).rsplit("@", 1)[0] if start else str(name)
        for name, start in zip(records["record_id"].to_pylist(), starts, strict=True)
    ]
    known = set(ours)
    lines = defaultdict(list)
    for number, name in enumerate(labels["record_id"].to_pylist()):
        if name is not None:
            lines[name if name in known else pseudonyms.of("record", name)].append(number)
    return [lines.get(name, []) for name in ours]


def _lines_by_patient(
    records: pa.Table, labels: pa.Table, pseudonyms: Pseudonyms
) -> dict[str, list[int]]:
    """Stored patient id -> lines of the CSV."""
    known = set(records["patient_id"].to_pylist())
    names = labels["patient_id"].to_pylist()
    sites = _sites_of_lines(records, labels, pseudonyms)
    sites_of: dict[str, set[str | None]] = defaultdict(set)
    for name, site in zip(names, sites, strict=True):
        sites_of[name].add(site)
    lines: dict[str, list[int]] = defaultdict(list)
    for number, (name, site) in enumerate(zip(names, sites, strict=True)):
        if name is None:
            continue
        if name in known:
            lines[name].append(number)
            continue
        lines[pseudonyms.patient(name, site)].append(number)
        siteless = pseudonyms.patient(name, None)  # of a recording that names no site
        if site is not None and siteless in known and pseudonyms.patient_ids == "site":
            if len(sites_of[name]) > 1:
                raise ConfigError(
                    f"labels: line {number + 2} and others give one patient_id at "
                    f"{len(sites_of[name])} sites, and recordings of it name no site; join by "
                    "record_id"
                )
            lines[siteless].append(number)
    return lines


def _sites_of_lines(
    records: pa.Table, labels: pa.Table, pseudonyms: Pseudonyms
) -> list[str | None]:
    """The site whose patient each line means."""
    if "site" in labels.column_names:
        sites: list[str | None] = labels["site"].to_pylist()
        return sites
    ours = set(records["site"].to_pylist())
    if pseudonyms.patient_ids == "global" or len(ours) == 1:
        return [next(iter(ours)) if len(ours) == 1 else None] * labels.num_rows
    known = set(records["patient_id"].to_pylist())
    if all(name is None or name in known for name in labels["patient_id"].to_pylist()):
        return [None] * labels.num_rows  # pseudonyms, which know their site
    raise ConfigError(
        f"labels: joined by patient_id without a column site, and the store has {len(ours)} sites "
        "that each number their own patients; add the column site, or convert with --patient-ids "
        "global where one number is one person everywhere"
    )


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
    columns: list[str],
    recorded: list[datetime.date | None],
    window_days: int,
) -> NDArray[np.int64]:
    """(N,) the line whose label_date is nearest to the recording, -1 for none in the window.

    Lines without any label do not count. Of two at one distance the first counts, and it is said
    where they disagree.

    Args:
        matches: from `match_rows`.
        labels: the CSV, with label_date and, optionally, ecg_date.
        columns: label columns to take.
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
    cells = list(zip(*(labels[name].to_pylist() for name in columns), strict=True))
    chosen = np.full(len(matches), _NO_ROW, np.int64)
    ties: list[tuple[int, int]] = []
    for n, rows in enumerate(matches):
        nearest, tie = window_days + 1, None
        for row in rows:
            ecg, label = ecg_dates[row] or recorded[n], label_dates[row]
            if ecg is None or label is None:
                continue
            if cells and all(cell is None for cell in cells[row]):
                continue
            days = abs((label - ecg).days)
            if days < nearest:
                nearest, chosen[n], tie = days, row, None
            elif days == nearest <= window_days and cells and cells[row] != cells[chosen[n]]:
                tie = tie or (int(chosen[n]), row)
        ties += [tie] if tie else []
    if ties:
        log.warning(
            f"labels: {len(ties):,} records have labels that disagree at the same distance in "
            f"days, such as lines {ties[0][0] + 2} and {ties[0][1] + 2}; the first of them counts"
        )
    return chosen
