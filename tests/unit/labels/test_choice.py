"""Which of several lines labels a record."""

import datetime

import pyarrow as pa
import pytest

from ecgfast.errors import ConfigError
from ecgfast.labels.choice import agreeing_rows, first_rows, rows_in_window, window_of
from ecgfast.vocabulary import LabelPick

DAY = datetime.date(2020, 5, 10)


def nearest(
    label_dates: list[str | None],
    window_days: int | str,
    ecg_dates: list[str | None] | None = None,
    recorded: datetime.date | None = DAY,
    pick: LabelPick = "nearest",
) -> int:
    """The line of a record that all lines name; another record has no line."""
    table = pa.table({"label_date": pa.array(label_dates, pa.string())})
    if ecg_dates is not None:
        table = table.append_column("ecg_date", pa.array(ecg_dates, pa.string()))
    matches: list[list[int]] = [[], list(range(len(label_dates)))]
    window = window_of(window_days, pick)
    assert window is not None
    none, row = rows_in_window(matches, table, [], [recorded, recorded], window).tolist()
    assert none == -1
    return int(row)


@pytest.mark.parametrize(
    ("label_dates", "window_days", "row"),
    [
        (["2020-05-20"], 10, 0),
        (["2020-05-20"], 9, -1),
        (["2020-04-30"], 10, 0),
        (["2020-04-30"], 9, -1),
        (["2020-05-10"], 0, 0),
        (["2020-05-20", "2020-05-08", "2020-05-13"], 30, 1),
        (["2020-05-08", "2020-05-12"], 30, 0),  # as near: the first line
        ([None, "2020-05-12"], 30, 1),
        ([None], 30, -1),
    ],
)
def test_the_nearest_label(label_dates: list[str | None], window_days: int, row: int) -> None:
    assert nearest(label_dates, window_days) == row


def test_the_date_of_a_line_goes_before_that_of_the_recording() -> None:
    dates: list[str | None] = ["2021-01-01", "2021-01-01"]
    assert nearest(dates, 5, ["2020-12-31", None]) == 0
    assert nearest(dates, 5, [None, "2020-12-31"], recorded=None) == 1
    assert nearest(dates, 5, [None, None]) == -1
    with pytest.raises(ConfigError, match="no record has a date"):
        nearest(dates, 5, [None, None], recorded=None)


def test_lines_that_say_the_same() -> None:
    table = pa.table({"x": [1, 2, 1, 1], "y": [5, 5, 5, 6]})
    assert first_rows([[], [2, 0], [1]]).tolist() == [-1, 2, 1]
    assert agreeing_rows([[2, 0], [], [1]], table, ["x", "y"]).tolist() == [2, -1, 1]
    assert agreeing_rows([[0, 1]], table, ["y"]).tolist() == [0]
    assert agreeing_rows([[0, 1]], table, []).tolist() == [0]
    for rows, lines in (([0, 1], "2 and 3"), ([2, 3], "4 and 5")):
        with pytest.raises(ConfigError, match=f"lines {lines} name the same record and disagree"):
            agreeing_rows([[2, 0], rows], table, ["x", "y"])


@pytest.mark.parametrize(
    ("days", "pick", "row"),
    [
        ("-7..30", "nearest", 2),
        ("0..30", "nearest", 2),
        ("-30..-1", "nearest", 1),
        ("-30..-5", "nearest", 0),
        ("+2..30", "nearest", 3),
        ("31..60", "nearest", -1),
        ("-30..30", "first", 0),
        ("-7..30", "first", 1),
        (30, "first", 0),
        ("1..30", "first", 2),
    ],
)
def test_windows_with_two_ends(days: int | str, pick: LabelPick, row: int) -> None:
    dates: list[str | None] = ["2020-05-01", "2020-05-08", "2020-05-11", "2020-05-20"]
    assert nearest(dates, days, pick=pick) == row


@pytest.mark.parametrize("days", ["-5", "5..3", "x", "7.5", "1..", "..5", "1...5", ""])
def test_a_window_that_is_none(days: str) -> None:
    with pytest.raises(ConfigError, match=r"--label-window-days must (be days|ascend)"):
        window_of(days)


def test_the_first_label_needs_a_window() -> None:
    with pytest.raises(ConfigError, match="--label-pick first needs --label-window-days"):
        window_of(None, "first")
    window = window_of("-7..30")
    assert window is not None
    assert window.text == "-7..30"
