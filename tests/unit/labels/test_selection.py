"""The selection grammar: nulls are never negatives."""

import pyarrow as pa
import pytest

from ecgfast.errors import ConfigError
from ecgfast.labels.expression import parse
from ecgfast.labels.selection import labels_of, selected

TABLE = pa.table(
    {
        "site": ["1", "2", None, "10"],
        "ejection_fraction": [35.0, 40.0, None, float("nan")],
        "age": pa.array([50, None, 70, 80], pa.int64()),
        "lvh": [True, False, None, True],
        "Other states": ["Early repolarization", "paced and stable", None, ""],
        "admin in (x)": ["", "y", None, "x"],
    }
)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("site=1", [1, 0, 0, 0]),
        ("site==1", [1, 0, 0, 0]),
        ("lvh == true and age==50", [1, 0, 0, 0]),
        ("site!=1", [0, 1, 0, 1]),
        ("ejection_fraction<40", [1, 0, 0, 0]),
        ("ejection_fraction <= 40", [1, 1, 0, 0]),
        ("ejection_fraction>=40", [0, 1, 0, 0]),
        ("ejection_fraction != 1", [1, 1, 0, 0]),
        ("age>60 and site!=99", [0, 0, 0, 1]),
        ("age>60", [0, 0, 1, 1]),
        ("lvh=true", [1, 0, 0, 1]),
        ("lvh != 1", [0, 1, 0, 0]),
        ("Other states ~ REPOL", [1, 0, 0, 0]),
        ("Other states='paced and stable'", [0, 1, 0, 0]),
        ('Other states=""', [0, 0, 0, 1]),
        ("site=1 and lvh=true and age<60", [1, 0, 0, 0]),
        ("site in (1, 10)", [1, 0, 0, 1]),
        ("site in (1)", [1, 0, 0, 0]),
        ("Other states in ('paced and stable', Early repolarization)", [1, 1, 0, 0]),
        ('age > 60 and site in ("10",2)', [0, 0, 0, 1]),
        ("site in(2) and age in (50, 80.0)", [0, 0, 0, 0]),
        ("age in (50, 80.0)", [1, 0, 0, 1]),
        ("lvh in (false, true)", [1, 1, 0, 1]),
        ("admin in (x) = y", [0, 1, 0, 0]),
    ],
)
def test_mask(expression: str, expected: list[int]) -> None:
    assert selected(TABLE, expression).astype(int).tolist() == expected


def test_nothing_selects_all() -> None:
    assert selected(TABLE, None).all()


def test_target_drops_nulls() -> None:
    y, known = labels_of(TABLE, "ejection_fraction<40")
    assert y.tolist() == [True, False, False, False]
    assert known.tolist() == [True, True, False, False]
    y, known = labels_of(TABLE, "lvh=true and age>60")
    assert y.tolist() == [False, False, False, True]
    assert known.tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " ",
        "site",
        "site=",
        "=1",
        "site===1",
        "site=1 and",
        "site=1 or age",
        "a<<3",
        "a=1 and ",
        "site in ()",
        "site in 1, 2",
        "site in (1, 2",
    ],
)
def test_grammar_errors(expression: str) -> None:
    with pytest.raises(ConfigError, match="expression"):
        parse(expression)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("sites=1", "did you mean site"),
        ("age=old", "holds numbers, got 'old'"),
        ("age~5", "holds numbers"),
        ("site<3", "holds text"),
        ("lvh=maybe", "yes/no"),
        ("lvh<1", "yes/no"),
        ("age in (50, old)", "holds numbers, got 'old'"),
        ("site in (1,,2)", "values with commas between them"),
        ("sites in (1)", "did you mean site"),
    ],
)
def test_type_errors(expression: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        selected(TABLE, expression)


def test_a_list_is_shown_as_it_was_given() -> None:
    assert str(parse("site in (1, 'a, b') and age>18")) == "site in (1, 'a, b') and age>18"
