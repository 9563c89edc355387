"""Expressions over a store's columns, such as ``site=1 and not (age<40 or lvh=true)``.

A comparison is COLUMN OP VALUE with < <= > >= = (or ==) != ~ (contains, case ignored), or COLUMN in
(VALUE, VALUE), COLUMN not in (VALUE, VALUE). ``not`` binds tighter than ``and``, that tighter than
``or``; brackets group. Text, and a column's name, may stand in quotes, and must where they hold
such words or brackets themselves.

A null cell makes a comparison unknown, even !=; so does an ejection fraction that was given as a
range or limit which does not decide it, such as <40 for < 35. Unknown is as in SQL: not of it is
unknown, ``or`` of it with a true part is true, ``and`` of it with a false part is false.
"""

import ast
import difflib
import functools
import itertools
import re
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from ecgfast.errors import ConfigError
from ecgfast.labels.ejection_fraction import bounds_of
from ecgfast.store.format import EF_GIVEN

# One comparison; what may follow it is looked at and left. Brackets in names and values are closed.
_CLAUSE = re.compile(
    r"""\s*(?:"(?P<name>[^"]+)"|'(?P<named>[^']+)'
        |(?!\s|(?:and|or|not)[\s(])(?P<column>(?:\([^<>=!~'"()]*\)|[^<>=!~'"()])+?))\s*
        (?:(?<=[\s"'])(?P<negated>not\s+)?in\s*
           \((?P<list>(?:"[^"]*"|'[^']*'|[^<>=!~'"()])+)\)
        |(?P<op><=|>=|!=|==|<|>|=|~)\s*
        (?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'
           |(?P<bare>(?!\s)(?:\([^<>=!~'"()]*\)|[^<>=!~'"()])+?)))
        (?=\s+(?:and|or)(?:[\s(]|$)|\s*\)|\s*$)""",
    re.VERBOSE,
)
_JOINT = re.compile(r"\s*(?:(and|or|not)(?=[\s(]|$)|([()]))")
_DEEPEST = 50  # brackets and not within each other
_ITEM = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^'",\s](?:[^'",]*[^'",\s])?))\s*(?:,|$)""")
_COMPARE = {
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
    "=": pc.equal,
    "!=": pc.not_equal,
}
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One comparison of a column with a value; of ``in`` with the text between its brackets."""

    column: str
    op: str
    value: str

    @property
    def values(self) -> list[str]:
        """What ``in`` compares with, each in its own right.

        Raises:
            ConfigError: these are no values with commas between them.
        """
        values, position = [], 0
        while position < len(self.value):
            match = _ITEM.match(self.value, position)
            if match is None:
                raise ConfigError(
                    f"{self}: allowed values with commas between them, such as site in (1, 2); "
                    "text with a comma stands in quotes"
                )
            values.append(next(text for text in match.groups() if text is not None))
            position = match.end()
        return values

    def holds(self, table: pa.Table) -> pa.ChunkedArray:
        """Boolean column; null where the cell is null.

        Raises:
            ConfigError: no such column, or the operator does not fit its type.
        """
        if self.op == "in":
            each = (replace(self, op="=", value=value) for value in self.values)
            return functools.reduce(pc.or_, (clause.holds(table) for clause in each))
        cells = column(table, self.column)
        if pa.types.is_boolean(cells.type):
            truth = _TRUTH.get(self.value.lower())
            if truth is None or self.op not in ("=", "!="):
                raise ConfigError(
                    f"{self}: {self.column} is a yes/no column, allowed = true, = false"
                )
            return _COMPARE[self.op](cells, truth)
        if pa.types.is_floating(cells.type) or pa.types.is_integer(cells.type):
            if self.column == "ejection_fraction" and EF_GIVEN in table.column_names:
                return self._decided(*bounds_of(table[EF_GIVEN], cells))
            return self._holds_number(cells)
        if self.op == "~":
            return pc.match_substring(cells, self.value, ignore_case=True)
        if self.op not in ("=", "!="):
            raise ConfigError(f"{self}: {self.column} holds text, allowed = != ~")
        return _COMPARE[self.op](cells, self.value)

    def _decided(self, low: pa.ChunkedArray, high: pa.ChunkedArray) -> pa.ChunkedArray:
        """Whether it holds for all values from low to high; null where for some alone."""
        if self.op in ("=", "!="):
            sides = (replace(self, op=op)._decided(low, high) for op in ("<=", ">="))
            equal = pc.and_kleene(*sides)
            return equal if self.op == "=" else pc.invert(equal)
        at_low, at_high = self._holds_number(low), self._holds_number(high)
        return pc.if_else(pc.equal(at_low, at_high), at_low, pa.scalar(None, pa.bool_()))

    def _holds_number(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        if self.op == "~":
            raise ConfigError(f"{self}: {self.column} holds numbers, allowed < <= > >= = !=")
        try:
            value = float(self.value)
        except ValueError as error:
            raise ConfigError(
                f"{self}: {self.column} holds numbers, got {self.value!r}; compare with a number"
            ) from error
        column = pc.cast(column, pa.float64())
        missing = pc.is_null(column, nan_is_null=True)
        return pc.if_else(missing, pa.scalar(None, pa.bool_()), _COMPARE[self.op](column, value))

    def __str__(self) -> str:
        if self.op == "in":
            return f"{self.column} in ({self.value})"
        return f"{self.column}{self.op}{self.value}"


@dataclass(frozen=True, kw_only=True)
class Negation:
    """Not what a part says; unknown where that is."""

    part: "Expression"

    def holds(self, table: pa.Table) -> pa.ChunkedArray:
        """As of a `Clause`."""
        return pc.invert(self.part.holds(table))

    def __str__(self) -> str:
        return f"not {_grouped(self.part)}"


@dataclass(frozen=True, kw_only=True)
class Junction:
    """Several parts joined by one word, ``and`` or ``or``."""

    word: str
    parts: "tuple[Expression, ...]"

    def holds(self, table: pa.Table) -> pa.ChunkedArray:
        """As of a `Clause`; unknown where the known parts do not decide it."""
        join = pc.and_kleene if self.word == "and" else pc.or_kleene
        return functools.reduce(join, (part.holds(table) for part in self.parts))

    def __str__(self) -> str:
        return f" {self.word} ".join(map(_grouped, self.parts))


Expression = Clause | Negation | Junction


def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
        ConfigError: the text does not follow the grammar.
    """
    skeleton, clauses = _tokens(text)
    try:
        return _built(ast.parse(skeleton, mode="eval").body, clauses, _DEEPEST)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(text) from error


def is_expression(text: str) -> bool:
    """Whether a text compares anything; the name of a column alone does not."""
    return re.search(r"[<>=!~]|\sin\s*\(", text) is not None


def equality(name: str, value: str) -> str:
    """The expression for the records whose column holds a value, with quotes where it needs them.

    Raises:
        ConfigError: no quotes fit.
    """
    wanted = Clause(column=name, op="=", value=value)
    quotes = ("", '"', "'")
    for left, right in itertools.product(quotes, quotes):
        text = f"{left}{name}{left}={right}{value}{right}"
        try:
            if parse(text) == wanted:
                return text
        except ConfigError:
            continue
    raise ConfigError(f"{name!r} and {value!r} hold both kinds of quotes; take one of them out")


def conjuncts(expression: Expression) -> list[Expression]:
    """The parts that ``and`` joins, outermost; the expression itself where it joins none."""
    if isinstance(expression, Junction) and expression.word == "and":
        return [part for joined in expression.parts for part in conjuncts(joined)]
    return [expression]


def _tokens(text: str) -> tuple[str, list[Clause]]:
    """The text as Python's parser takes it, a name such as c0 for each comparison; and these."""
    words: list[str] = []
    clauses: list[Clause] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        if match := _CLAUSE.match(text, position):
            name = f"c{len(clauses)}"
            words.append(f"(not {name})" if match["negated"] else name)
            clauses.append(_clause(match))
        elif match := _JOINT.match(text, position):
            words.append(match[1] or match[2])
        else:
            raise _unreadable(text)
        position = match.end()
    return " ".join(words), clauses


def _clause(match: re.Match[str]) -> Clause:
    def given(*names: str) -> str:
        return next(text for name in names if (text := match[name]) is not None)

    op = "=" if match["op"] == "==" else match["op"] or "in"
    value = given("list", "double", "single", "bare")
    return Clause(column=given("name", "named", "column"), op=op, value=value)


def _built(node: ast.expr, clauses: list[Clause], depth: int) -> Expression:
    match node:
        case ast.Name(id=name) if depth:
            return clauses[int(name[1:])]
        case ast.UnaryOp(op=ast.Not(), operand=part) if depth:
            return Negation(part=_built(part, clauses, depth - 1))
        case ast.BoolOp(op=op, values=values) if depth:
            parts = tuple(_built(value, clauses, depth - 1) for value in values)
            return Junction(word="and" if isinstance(op, ast.And) else "or", parts=parts)
    raise ValueError


def _grouped(part: Expression) -> str:
    return f"({part})" if isinstance(part, Junction) else str(part)


def _unreadable(text: str) -> ConfigError:
    return ConfigError(
        f"expression: got {text!r}, allowed COLUMN OP VALUE with OP one of < <= > >= = != ~, or "
        "COLUMN in (VALUE, VALUE), joined by and, or, not and brackets (at most "
        f'{_DEEPEST} within each other), such as "site=1 and not (age<40 or lvh=true)"; names and '
        "text that hold these words or brackets stand in quotes"
    )


def column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column of a store.

    Raises:
        ConfigError: there is none of this name; the nearest is named.
    """
    if name not in table.column_names:
        near = difflib.get_close_matches(name, table.column_names, n=1)
        hint = f"; did you mean {near[0]}" if near else ""
        raise ConfigError(
            f"column {name!r} is not in the store{hint}; it has {', '.join(table.column_names)}; "
            "ecgfast label adds columns"
        )
    return table[name]
