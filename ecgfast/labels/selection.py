"""`COLUMN OP VALUE and ...`: which records to use, what a case is, and which records teach.

Operators: < <= > >= = (or ==) != ~ (contains, case ignored) and in, as in ``site in (1, 2)``. Text
may stand in quotes. A null cell satisfies nothing, not even !=; nor does an ejection fraction that
was given as a range or limit which does not decide the comparison, such as <40 for < 35.
"""

import difflib
import functools
import hashlib
import re
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.labels.ejection_fraction import bounds_of
from ecgfast.labels.splits import splits_of_fold
from ecgfast.store.format import EF_GIVEN

_CLAUSE = re.compile(
    r"""\s*(?P<column>[^<>=!~'"]+?)\s*
        (?:(?<=\s)in\s*\((?P<list>(?:"[^"]*"|'[^']*'|[^<>=!~'"()])+)\)
        |(?P<op><=|>=|!=|==|<|>|=|~)\s*
        (?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[^<>=!~'"\s][^<>=!~'"]*?)))
        \s*(?:\s+and\s+|\s*$)""",
    re.VERBOSE,
)
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
        column = _column(table, self.column)
        if pa.types.is_boolean(column.type):
            truth = _TRUTH.get(self.value.lower())
            if truth is None or self.op not in ("=", "!="):
                raise ConfigError(
                    f"{self}: {self.column} is a yes/no column, allowed = true, = false"
                )
            return _COMPARE[self.op](column, truth)
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
            if self.column == "ejection_fraction" and EF_GIVEN in table.column_names:
                return self._decided(*bounds_of(table[EF_GIVEN], column))
            return self._holds_number(column)
        if self.op == "~":
            return pc.match_substring(column, self.value, ignore_case=True)
        if self.op not in ("=", "!="):
            raise ConfigError(f"{self}: {self.column} holds text, allowed = != ~")
        return _COMPARE[self.op](column, self.value)

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


def selected(table: pa.Table, expression: str | None) -> NDArray[np.bool_]:
    """(N,) records for which every clause of `--select` holds; None selects all.

    Raises:
        ConfigError: the text does not follow the grammar, or does not fit the columns.
    """
    mask = np.ones(table.num_rows, bool)
    for clause in () if expression is None else parse(expression):
        mask &= _numpy(pc.fill_null(clause.holds(table), False))
    return mask


def labels_of(table: pa.Table, target: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Labels of all records: a case where every clause holds, unknown where any cell is null.

    Returns:
        y (N,) bool, and known (N,) bool: False where a cell is null; drop and count those.
    Raises:
        ConfigError: `target` cannot be read, or names a column that is not there.
    """
    y, known = np.ones(table.num_rows, bool), np.ones(table.num_rows, bool)
    for clause in parse(target):
        holds = clause.holds(table)
        known &= _numpy(pc.is_valid(holds))
        y &= _numpy(pc.fill_null(holds, False))
    return y & known, known


def target_labels(
    records: pa.Table, target: str | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """`labels_of` a target; without one, no label is known."""
    if not target:
        return np.zeros(records.num_rows, bool), np.zeros(records.num_rows, bool)
    return labels_of(records, target)


def parse(expression: str) -> tuple[Clause, ...]:
    """Read `COLUMN OP VALUE and ...`.

    Raises:
        ConfigError: the text does not follow the grammar.
    """
    clauses: list[Clause] = []
    position = 0
    while position < len(expression) or not clauses:
        match = _CLAUSE.match(expression, position)
        if match is None:
            raise ConfigError(
                f"expression: got {expression!r}, allowed COLUMN OP VALUE joined by 'and' with OP "
                'one of < <= > >= = != ~, such as "site=1 and ejection_fraction<40", or COLUMN in '
                "(VALUE, VALUE)"
            )
        values = (match["list"], match["double"], match["single"], match["bare"])
        value = next(text for text in values if text is not None)
        op = "=" if match["op"] == "==" else match["op"] or "in"
        clauses.append(Clause(column=match["column"], op=op, value=value))
        position = match.end()
    if expression.rstrip().endswith(" and"):
        raise ConfigError(f"expression: got {expression!r}, which ends in 'and'; add what follows")
    return tuple(clauses)


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        near = difflib.get_close_matches(name, table.column_names, n=1)
        hint = f"; did you mean {near[0]}" if near else ""
        raise ConfigError(
            f"column {name!r} is not in the store{hint}; it has {', '.join(table.column_names)}; "
            "ecgfast label adds columns"
        )
    return table[name]


def _numpy(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    array: NDArray[np.bool_] = column.to_numpy().astype(bool)
    return array


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Records of a selection, by what they are for.

    Attributes:
        truth: (N, K) float64 labels of the K outputs, NaN where unknown.
        train: (n,) int64 rows to learn from.
        valid: (n,) int64 rows that choose the weights.
        num_unknown: selected records without a label; they teach nothing.
    """

    truth: NDArray[np.float64]
    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    num_unknown: int

    @property
    def splits(self) -> dict[str, NDArray[np.int64]]:
        """Rows by the name of their split."""
        return {"train": self.train, "valid": self.valid}

    @property
    def is_case(self) -> NDArray[np.bool_]:
        """(N,) whether a record is a case of any output."""
        return np.asarray((self.truth > 0).any(axis=1))

    @property
    def digest(self) -> str:
        """16 hex digits, the same as long as the same records teach the same."""
        cases = [self.is_case[rows] for rows in self.splits.values()]
        truths = [self.truth[rows] for rows in self.splits.values()]
        same = all(np.array_equal(t, c[:, None]) for t, c in zip(truths, cases, strict=True))
        return digest_of(self.train, self.valid, *cases, *([] if same else truths))


def labelled(
    records: pa.Table, rows: NDArray[np.int64], target: str, fold: int | None = None
) -> Labelled:
    """Sort selected records by split, those without a label left out; see `labelled_by`.

    Args:
        records: `StoreReader.records`.
        rows: (R,) selected rows.
        target: what a case is, such as "ejection_fraction<40".
        fold: of a cross-validation, which is held out; None takes the store's splits.
    Raises:
        ConfigError: `target` cannot be read, or names a column that is not there; no such fold.
    """
    is_case, is_known = labels_of(records, target)
    return labelled_by(records, rows, np.where(is_known, is_case, np.nan)[:, None], fold)


def labelled_by(
    records: pa.Table,
    rows: NDArray[np.int64],
    truth: NDArray[np.float64],
    fold: int | None = None,
) -> Labelled:
    """Sort selected records by split, those without any label left out.

    Args:
        records: `StoreReader.records`, N rows.
        rows: (R,) selected rows.
        truth: (N, K) labels, NaN where unknown.
        fold: of a cross-validation, which is held out; None takes the store's splits.
    Raises:
        ConfigError: no such fold.
    """
    names = records.column("split").to_pylist()
    if fold is not None:
        names = splits_of_fold(folds_of(records), fold)
    split = np.array(names, dtype=object)[rows]
    known = ~np.isnan(truth[rows]).all(axis=1)
    return Labelled(
        truth=truth,
        train=rows[known & (split == "train")],
        valid=rows[known & (split == "valid")],
        num_unknown=int((~known).sum()),
    )


def folds_of(records: pa.Table) -> list[int | None]:
    """(N,) the column `fold`; None for every record of a store without folds."""
    has_folds = "fold" in records.column_names
    folds: list[int | None] = records["fold"].to_pylist() if has_folds else []
    return folds or [None] * records.num_rows


def digest_of(*parts: NDArray[np.int64] | NDArray[np.bool_] | NDArray[np.float64]) -> str:
    """16 hex digits of a SHA-256 over arrays of rows or labels, their types and shapes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.dtype.str} {part.shape} ".encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]
