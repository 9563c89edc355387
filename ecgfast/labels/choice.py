"""Which of several lines of a table labels a record: the one in a window of days, or any."""

import datetime
import re
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.vocabulary import LabelPick

_WINDOW = re.compile(r"(?:([+-]?\d{1,6})\.\.)?([+-]?\d{1,6})")
_ISO = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_DAY_FIRST = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})")  # WFDB headers


def first_rows(matches: list[list[int]]) -> NDArray[np.int64]:
    """(N,) the first matching line of each record, -1 for none."""
    return np.array([rows[0] if rows else -1 for rows in matches], np.int64)


def agreeing_rows(
    matches: list[list[int]], labels: pa.Table, columns: list[str]
) -> NDArray[np.int64]:
    """(N,) the one line that labels each record, -1 for none.

    Raises:
        ConfigError: two lines of one record disagree.
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


@dataclass(frozen=True, kw_only=True)
class DayWindow:
    """Which labels count, by the days from the ECG to them; a label before it has negative ones.

    Attributes:
        first: fewest days.
        last: most days.
        pick: the "nearest" label of several, or the "first" by date.
    """

    first: int
    last: int
    pick: LabelPick = "nearest"

    @property
    def text(self) -> int | str:
        """As the manifest has it: 14 for -14..14."""
        return self.last if self.first == -self.last else f"{self.first}..{self.last}"


def window_of(days: int | str | None, pick: LabelPick = "nearest") -> DayWindow | None:
    """Read --label-window-days: N for up to N days before or after, or FIRST..LAST.

    Raises:
        ConfigError: it is neither, or `pick` has no window to pick from.
    """
    if pick not in get_args(LabelPick):
        raise ConfigError(f"--label-pick must be {' or '.join(get_args(LabelPick))}, got {pick!r}")
    if days is None:
        if pick != "nearest":
            raise ConfigError(f"--label-pick {pick} needs --label-window-days, such as 0..365")
        return None
    match = _WINDOW.fullmatch(str(days).strip())
    if match is None:
        raise ConfigError(
            "--label-window-days must be days such as 14 (before or after the ECG) or -7..30 "
            f"(from 7 days before to 30 after), got {days!r}"
        )
    last = int(match[2])
    first = -last if match[1] is None else int(match[1])
    if first > last:
        raise ConfigError(f"--label-window-days must ascend, such as -7..30, got {days!r}")
    return DayWindow(first=first, last=last, pick=pick)


def rows_in_window(
    matches: list[list[int]],
    labels: pa.Table,
    columns: list[str],
    recorded: list[datetime.date | None],
    window: DayWindow,
) -> NDArray[np.int64]:
    """(N,) the line whose label_date is nearest to the recording, -1 for none in the window.

    Lines without any label do not count. Of two at one distance (or, for the first label, of one
    day) the first line counts, with a warning where they disagree.

    Args:
        matches: from `match_rows`.
        labels: the table, with label_date and, optionally, ecg_date.
        columns: label columns to take.
        recorded: date of each record as the source files have it.
        window: of the days from the recording to the label.
    Raises:
        ConfigError: there is nothing to compare.
    """
    if "label_date" not in labels.column_names:
        raise ConfigError("--label-window-days needs a column label_date (YYYY-MM-DD) in the table")
    label_dates = [parse_date(text) for text in labels["label_date"].to_pylist()]
    ecg_dates: list[datetime.date | None] = [None] * len(label_dates)
    if "ecg_date" in labels.column_names:
        ecg_dates = [parse_date(text) for text in labels["ecg_date"].to_pylist()]
    if not any(ecg_dates) and not any(recorded):
        raise ConfigError(
            "--label-window-days: no record has a date; add a column ecg_date (YYYY-MM-DD) to "
            "the table"
        )
    cells = list(zip(*(labels[name].to_pylist() for name in columns), strict=True))
    chosen = np.full(len(matches), -1, np.int64)
    ties: list[tuple[int, int]] = []
    for n, rows in enumerate(matches):
        least, tie = None, None
        for row in rows:
            ecg, label = ecg_dates[row] or recorded[n], label_dates[row]
            if ecg is None or label is None:
                continue
            if cells and all(cell is None for cell in cells[row]):
                continue
            days = (label - ecg).days
            if not window.first <= days <= window.last:
                continue
            rank = abs(days) if window.pick == "nearest" else days
            if least is None or rank < least:
                least, chosen[n], tie = rank, row, None
            elif rank == least and cells and cells[row] != cells[chosen[n]]:
                tie = tie or (int(chosen[n]), row)
        ties += [tie] if tie else []
    if ties:
        log.warning(
            f"labels: {len(ties):,} records have labels that disagree at the same distance in "
            f"days, such as lines {ties[0][0] + 2} and {ties[0][1] + 2}; the first of them counts"
        )
    return chosen


def cells(column: pa.ChunkedArray, rows: NDArray[np.int64]) -> pa.ChunkedArray:
    """Cells of some lines, null for line -1."""
    return column.take(pa.array(np.maximum(rows, 0), mask=rows < 0))


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
