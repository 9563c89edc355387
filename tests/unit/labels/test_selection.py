"""The selection grammar: nulls are never negatives."""

import pyarrow as pa
import pytest

from ecgfast.errors import ConfigError
from ecgfast.labels import parse_selection, parse_target

TABLE = pa.table(
    {
        "site": ["1", "2", None, "10"],
        "ejection_fraction": [35.0, 40.0, None, float("nan")],
        "age": pa.array([50, None, 70, 80], pa.int64()),
        "lvh": [True, False, None, True],
        "Other states": ["Early repolarization", "paced and stable", None, ""],
    }
)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("site=1", [1, 0, 0, 0]),
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
    ],
)
def test_mask(expression: str, expected: list[int]) -> None:
    assert parse_selection(expression).mask(TABLE).astype(int).tolist() == expected


def test_nothing_selects_all() -> None:
    assert parse_selection(None).mask(TABLE).all()


def test_target_drops_nulls() -> None:
    y, known = parse_target("ejection_fraction<40").labels(TABLE)
    assert y.tolist() == [True, False, False, False]
    assert known.tolist() == [True, True, False, False]
    y, known = parse_target("lvh=true and age>60").labels(TABLE)
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
        "site==1",
        "site=1 and",
        "site=1 or age<3",
        "a<<3",
        "a=1 and ",
    ],
)
def test_grammar_errors(expression: str) -> None:
    with pytest.raises(ConfigError, match="expression"):
        parse_selection(expression)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("sites=1", "did you mean site"),
        ("age=old", "holds numbers, got 'old'"),
        ("age~5", "holds numbers"),
        ("site<3", "holds text"),
        ("lvh=maybe", "yes/no"),
        ("lvh<1", "yes/no"),
    ],
)
def test_type_errors(expression: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_selection(expression).mask(TABLE)
