"""Ejection fractions as echo reports write them, and what each decides."""

from pathlib import Path

import pyarrow as pa
import pytest

from ecgfast.errors import ConfigError
from ecgfast.labels.ejection_fraction import bounds, parse, read_column
from ecgfast.labels.selection import labels_of

DASHES = ["-", "‐", "‑", "‒", "–", "—", "―", "−", "－", "﹣"]  # noqa: RUF001 (they are the cases)


@pytest.mark.parametrize(
    ("cell", "percent"),
    [
        ("55", 55), (" 55 ", 55), ("55.0", 55), ("33,5", 33.5), ("33.5", 33.5), ("5.5e1", 55),
        ("+55", 55), ("0", 0), ("-0", 0), ("100", 100), ("1", 1), ("55%", 55), ("55 %", 55),
        ("33,5 %", 33.5), ("55\u00a0%", 55), ("55\u202f%", 55), ("\uff15\uff15\uff05", 55),
        ("55 percent", 55),
        ("55 per cent", 55), ("0.35%", 0.35), ("055", 55),
    ],
)  # fmt: skip
def test_numbers(cell: str, percent: float) -> None:
    reading = parse(cell)
    assert (reading.percent, reading.given, reading.words) == (percent, None, None)


@pytest.mark.parametrize("dash", DASHES)
@pytest.mark.parametrize("pattern", ["35{}40", "35 {} 40", "35 {} 40 %", "35%{}40%", "35,0{}40.0"])
def test_a_range_is_its_middle(pattern: str, dash: str) -> None:
    reading = parse(pattern.format(dash))
    assert (reading.percent, reading.given) == (37.5, "35-40")


@pytest.mark.parametrize(
    ("cell", "percent", "given"),
    [
        ("55-60", 57.5, "55-60"), ("35 to 40", 37.5, "35-40"), ("32.5-35", 33.75, "32.5-35"),
        ("<40", 39, "<40"), ("< 40 %", 39, "<40"), ("\uff1c40", 39, "<40"), ("<37,5", 37, "<37.5"),
        ("<=40", 40, "<=40"), ("≤ 40%", 40, "<=40"), ("⩽40", 40, "<=40"), ("=<40", 40, "<=40"),
        (">60", 61, ">60"), ("> 37.5", 38, ">37.5"), (">=60", 60, ">=60"), ("≥60 %", 60, ">=60"),
        ("⩾60", 60, ">=60"), ("=>60", 60, ">=60"), ("~55", 55, "~55"), ("≈ 55 %", 55, "~55"),
        ("ca. 55", 55, "~55"), ("ca 55", 55, "~55"), ("approx. 55", 55, "~55"),
        ("About 55", 55, "~55"), ("<1", 0, "<1"), (">99.5", 100, ">99.5"),
    ],
)  # fmt: skip
def test_ranges_limits_and_estimates(cell: str, percent: float, given: str) -> None:
    reading = parse(cell)
    assert (reading.percent, reading.given, reading.words) == (percent, given, None)


@pytest.mark.parametrize(
    "cell", ["normal", "Reduced", "mildly reduced", "moderate-severe", "not measured", "LOW"]
)
def test_words_are_no_numbers(cell: str) -> None:
    reading = parse(cell)
    assert (reading.percent, reading.given, reading.words) == (None, None, cell.lower())


@pytest.mark.parametrize(
    ("cell", "allowed"),
    [
        ("0.35", "in percent, such as 35 for 0.35"),
        ("0,35", "in percent"),
        ("0.35-0.40", "in percent"),
        ("<0.4", "in percent"),
        ("-1", "from 0 to 100 percent"),
        ("100.5", "from 0 to 100 percent"),
        ("19510429", "from 0 to 100 percent"),
        ("1e300", "from 0 to 100 percent"),
        ("90-110", "from 0 to 100 percent"),
        ("40-35", "a range that ascends"),
        ("40-40", "a range that ascends"),
        ("<0", "a limit that leaves something"),
        (">100", "a limit that leaves something"),
        ("35-", "a percentage such as"),
        ("-", "a percentage such as"),
        ("35-40-45", "a percentage such as"),
        ("<35-40", "a percentage such as"),
        ("55±5", "a percentage such as"),
        ("EF 55", "a percentage such as"),
        ("5-Oct", "a percentage such as"),
        ("inf", "a percentage such as"),
        ("Jane Doe", "a percentage such as"),
        ("normal Jane", "a percentage such as"),
        ("%", "a percentage such as"),
    ],
)
def test_what_is_refused(cell: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed):
        parse(cell)


DECIDED = [  # what was given, target, whether it is a case; None: not decided
    ("<40", "<40", True), ("<40", "<35", None), ("<40", "<45", True), ("<40", ">=40", False),
    ("<40", ">50", False), ("<=40", "<40", None), ("<=40", "<=40", True), ("<=40", ">40", False),
    (">60", "<40", False), (">60", ">60", True), (">60", ">=60", True), (">60", "<70", None),
    (">=60", ">60", None), (">=60", "<60", False), ("35-40", "<40", True), ("35-40", "<=40", True),
    ("35-40", "<35", False), ("40-45", "<40", False), ("40-45", "<=40", False),
    ("35-45", "<40", None), ("35-45", ">=40", None), ("35-45", "<45", True),
    ("~55", "<40", False), ("~55", "=55", True), ("35-40", "=37.5", None), ("35-40", "=40", False),
    ("35-40", "!=40", True), ("35-40", "!=38", None), ("<40", "in (39, 70)", None),
    ("<40", "in (60, 70)", False),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "comparison", "expected"), DECIDED)
def test_what_a_reading_decides(cell: str, comparison: str, expected: bool | None) -> None:
    """Beside it a plain number, which every comparison decides, and an unknown fraction."""
    reading = parse(cell)
    percent = pa.chunked_array([pa.array([reading.percent, 38.0, None], pa.float64())])
    given = pa.chunked_array([pa.array([reading.given, None, None], pa.string())])
    records = pa.table({"ejection_fraction": percent, "ejection_fraction_given": given})
    is_case, is_known = labels_of(records, f"ejection_fraction {comparison}")
    assert is_known.tolist() == [expected is not None, True, False]
    assert is_case[0] == bool(expected)


@pytest.mark.parametrize("given", ["<40", "<=40", ">60", ">=60", "35-40", "0-5", "95-100", "~55"])
def test_the_number_lies_in_its_bounds(given: str) -> None:
    low, high = bounds(given)
    percent = parse(given).percent
    assert percent is not None
    assert 0 <= low <= percent <= high <= 100


def test_a_column() -> None:
    cells = ["55", None, "<40", "normal", "35–40 %", "Normal", "reduced"]  # noqa: RUF001 (a dash of tables)
    text = pa.chunked_array([pa.array(cells, pa.string())])
    percent, given, words = read_column(text, Path("labels.csv"))
    assert percent.to_pylist() == [55, None, 39, None, 37.5, None, None]
    assert given is not None
    assert given.to_pylist() == [None, None, "<40", None, "35-40", None, None]
    assert words == {"normal": 2, "reduced": 1}


def test_plain_numbers_need_no_second_column() -> None:
    for cells in (["55", "33,5 %"], [None], []):
        text = pa.chunked_array([pa.array(cells, pa.string())])
        assert read_column(text, Path("labels.csv"))[1:] == (None, {})


def test_the_first_cell_of_a_kind_is_named_and_a_number_is_not_shown() -> None:
    text = pa.chunked_array([pa.array(["55", None, "fifty", "fifty"], pa.string())])
    with pytest.raises(ConfigError) as refusal:
        read_column(text, Path("labels.csv"))
    assert str(refusal.value) == (
        "labels labels.csv: ejection_fraction of row 3 below the header must be a percentage such "
        "as 35.5, 55 %, 35-40, <40 or >=60, or empty, got 'fifty'; correct the cell"
    )
    with pytest.raises(ConfigError) as refusal:
        read_column(pa.chunked_array([pa.array(["19510429"])]), Path("labels.csv"))
    assert "19510429" not in str(refusal.value)
