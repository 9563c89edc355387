"""Expressions of and, or, not and brackets: precedence, unknown values, and the first grammar."""

import itertools
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfast.errors import ConfigError
from ecgfast.labels.expression import conjuncts, parse
from ecgfast.labels.selection import labels_of, selected

# All 27 rows of yes, no and unknown in three columns.
CELLS = list(itertools.product((True, False, None), repeat=3))
ABC = pa.table({name: [row[i] for row in CELLS] for i, name in enumerate("abc")})

# Comparisons joined by `and`: what the grammar was before it had or, not and brackets.
FIRST_CLAUSE = re.compile(
    r"""\s*(?P<column>[^<>=!~'"]+?)\s*
        (?:(?<=\s)in\s*\((?P<list>(?:"[^"]*"|'[^']*'|[^<>=!~'"()])+)\)
        |(?P<op><=|>=|!=|==|<|>|=|~)\s*
        (?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[^<>=!~'"\s][^<>=!~'"]*?)))
        \s*(?:\s+and\s+|\s*$)""",
    re.VERBOSE,
)


def first_grammar(text: str) -> list[tuple[str, str, str]]:
    found, position = [], 0
    while position < len(text):
        match = FIRST_CLAUSE.match(text, position)
        assert match is not None, text
        values = (match["list"], match["double"], match["single"], match["bare"])
        op = "=" if match["op"] == "==" else match["op"] or "in"
        found.append((match["column"], op, next(value for value in values if value is not None)))
        position = match.end()
    return found


def as_now(text: str) -> list[tuple[str, str, str]]:
    return [(part.column, part.op, part.value) for part in conjuncts(parse(text))]  # type: ignore[union-attr]  # all are comparisons


def sql_and(*values: bool | None) -> bool | None:
    return False if False in values else None if None in values else True


def sql_or(*values: bool | None) -> bool | None:
    return True if True in values else None if None in values else False


def sql_not(value: bool | None) -> bool | None:
    return None if value is None else not value


TRUTHS = {
    "a=1 or b=1": lambda a, b, _: sql_or(a, b),
    "not a=1": lambda a, _, __: sql_not(a),
    "not not a=1": lambda a, _, __: a,
    "not a != true": lambda a, _, __: a,
    "a=1 or b=1 and c=1": lambda a, b, c: sql_or(a, sql_and(b, c)),
    "a=1 and b=1 or c=1": lambda a, b, c: sql_or(sql_and(a, b), c),
    "(a=1 or b=1)": lambda a, b, _: sql_or(a, b),
    "not a=1 or b=1": lambda a, b, _: sql_or(sql_not(a), b),
    "not (a=1 or b=1)": lambda a, b, _: sql_not(sql_or(a, b)),
    "not(a=1 and b=1)or(not c=1)": lambda a, b, c: sql_or(sql_not(sql_and(a, b)), sql_not(c)),
    "not (a=1 and (b=1 or not (c=1)))": lambda a, b, c: sql_not(sql_and(a, sql_or(b, sql_not(c)))),
    "a in (true) or not b in (1)": lambda a, b, _: sql_or(a, sql_not(b)),
    "a not in (false) or b not in (1)": lambda a, b, _: sql_or(a, sql_not(b)),
}


@pytest.mark.parametrize("text", TRUTHS)
def test_truth_is_that_of_sql(text: str) -> None:
    truth = [TRUTHS[text](*cells) for cells in CELLS]
    assert selected(ABC, text).tolist() == [value is True for value in truth]
    y, known = labels_of(ABC, text)
    assert known.tolist() == [value is not None for value in truth]
    assert y.tolist() == [value is True for value in truth]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("(a=1 or b=1) and c=1", lambda a, b, c: (sql_or(a, b), c)),
        ("a=1 and not (b=1 and c=1)", lambda a, b, c: (a, sql_not(sql_and(b, c)))),
        ("a=1 and (b=1 and (c=1))", lambda *cells: cells),
    ],
)
def test_a_label_needs_each_part_that_and_joins(text: str, parts: object) -> None:
    """As it was before: an unknown part is no control, even beside a false one."""
    values = [parts(*cells) for cells in CELLS]  # type: ignore[operator]  # a function
    assert selected(ABC, text).tolist() == [sql_and(*row) is True for row in values]
    y, known = labels_of(ABC, text)
    assert known.tolist() == [None not in row for row in values]
    assert y.tolist() == [row.count(True) == len(row) for row in values]


def test_an_undecided_ejection_fraction_stays_unknown() -> None:
    table = pa.table(
        {
            "ejection_fraction": [20.0, 38.0, 50.0, None],
            "ejection_fraction_given": ["<40", None, None, None],
            "hf": [None, False, True, True],
        }
    )
    assert selected(table, "not ejection_fraction<35").tolist() == [False, True, True, False]
    assert selected(table, "not ejection_fraction<40").tolist() == [False, False, True, False]
    y, known = labels_of(table, "ejection_fraction<40 or hf=true")
    assert y.tolist() == [True, True, True, True]
    assert known.all()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a=1 or b=1 and c=1", "a=1 or (b=1 and c=1)"),
        ("not (a=1 or b=1)", "not (a=1 or b=1)"),
        ("site not in (1, 'x or y') or a=1", "not site in (1, 'x or y') or a=1"),
        ("Stroke or TIA=1 or LVEF (%)<40", "Stroke or TIA=1 or LVEF (%)<40"),
        ("(dx=paced (DDD) or dx~block)", "dx=paced (DDD) or dx~block"),
        ("\"not sure\"=1 or '(x'!=2", "not sure=1 or (x!=2"),
    ],
)
def test_how_a_text_is_read(text: str, shown: str) -> None:
    assert str(parse(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "a=1 or", "or a=1", "not", "a=1 not b=1", "(a=1", "a=1)", "a=1 or (b=1", "()", "a=1 or 2",
        "a=1 b='2' c=3", "'a'=1 'b'=2", "(a=1) (b=1)", "(a=1)(b=1)", "a=1 or or b=1", "1<a<3",
        "a='1' if b=2 else c=3", "f(a)", "lambda: 0", "a=1; b=2", "a in 1", "a='1", "a=1 or c0",
        "not " * 60 + "a=1", "(" * 300 + "a=1" + ")" * 300, "not " * 20_000 + "a=1", "\0=1 or (",
    ],
)  # fmt: skip
def test_anything_else_is_one_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expression: got .+, allowed COLUMN OP .+ in quotes"):
        parse(text)


def test_many_parts_are_read() -> None:
    text = " or ".join(["a=1", "not b=1"] * 2000)
    assert selected(ABC, text).tolist() == [a is True or b is False for a, b, _ in CELLS]
    assert selected(ABC, "(" * 45 + "a=1" + ")" * 45).tolist() == [a is True for a, _, _ in CELLS]


@pytest.mark.parametrize(
    "text",
    [
        "site=1", "site==1", "lvh == true and age==50", "site!=1", "ejection_fraction<40",
        "ejection_fraction <= 40", "ejection_fraction>=40", "ejection_fraction != 1",
        "age>60 and site!=99", "lvh=true", "lvh != 1", "Other states ~ REPOL", "a~b and c~d",
        "Other states='paced and stable'", 'Other states=""', "site=1 and lvh=true and age<60",
        "site in (1, 10)", "Other states in ('paced and stable', Early repolarization)",
        'age > 60 and site in ("10",2)', "site in(2) and age in (50, 80.0)", "lvh in (false, true)",
        "admin in (x) = y", "site in (1, 'a, b') and age>18", "lvh=true and age>60",
        "site in (1,,2)",
        "store=A", "split=train", "record_id=site1/000-17", "patient_id=9f-3a.x:1", "age<-1",
        "NORM=1", "nyha in (3, 4)", "lvh=1 and age>=60", 'quality=""', "site='georgia'",
        "noise_uv<15 and wander_uv<1000", "original_timesteps>=4000", "site=1 and age>=18",
        "no_such_column<4", "x < y", "LVEF (%) < 40 and dx=paced (DDD)", "Stroke or TIA=1",
        "Stroke and TIA=1", "dx=not done and dx~pain in chest", "\tsite = 1\n and  age<3 \n",
    ],
)  # fmt: skip
def test_the_first_grammar_means_what_it_meant(text: str) -> None:
    assert as_now(text) == first_grammar(text)


WORD = st.text("abz09_-.,:/+%µ", min_size=1, max_size=6)
NAME = st.lists(WORD, min_size=1, max_size=3).map(" ".join)
TEXT = st.text("ab ()<>=!~,-", max_size=8)
VALUE = NAME | TEXT.map('"{}"'.format) | TEXT.map("'{}'".format)
SIGN = st.sampled_from(["<", "<=", ">", ">=", "=", "==", "!=", "~", " < ", " = ", " ~"])
COMPARISON = st.tuples(NAME, SIGN, VALUE).map("".join) | st.tuples(
    NAME, st.lists(VALUE, min_size=1, max_size=3).map(", ".join)
).map(lambda pair: f"{pair[0]} in ({pair[1]})")


@given(st.lists(COMPARISON, min_size=1, max_size=4).map(" and ".join))
def test_any_text_of_the_first_grammar_means_what_it_meant(text: str) -> None:
    assert as_now(text) == first_grammar(text)


CLAUSES = st.sampled_from(["a=1", "b=1", "c=1"])
NESTED = st.recursive(
    CLAUSES,
    lambda inner: (
        inner.map("not ({})".format)
        | st.tuples(inner, inner).map("({0[0]}) and ({0[1]})".format)
        | st.tuples(inner, inner).map("({0[0]}) or ({0[1]})".format)
    ),
    max_leaves=8,
)


@given(NESTED)
def test_records_without_unknowns_follow_python(text: str) -> None:
    known = [all(cell is not None for cell in row) for row in CELLS]
    code = text.replace("=1", "")
    expected = [eval(code, dict(zip("abc", row, strict=True))) for row in CELLS]
    assert (selected(ABC, text) == np.array(expected, bool))[known].all()
