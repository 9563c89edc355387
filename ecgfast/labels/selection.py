"""Which records to use, what a case is, and which records teach: see `expression`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.labels.expression import column, conjuncts, parse
from ecgfast.labels.splits import splits_of_fold
from ecgfast.store.format import EF_GIVEN

MOST_CLASSES = 50


def selected(table: pa.Table, expression: str | None) -> NDArray[np.bool_]:
    """(N,) records for which `--select` holds, unknown being no; None selects all.

    Raises:
        ConfigError: the text does not follow the grammar, or does not fit the columns.
    """
    if expression is None:
        return np.ones(table.num_rows, bool)
    return _numpy(pc.fill_null(parse(expression).holds(table), False))


def labels_of(
    table: pa.Table, target: str, truth: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Labels of all records: a case where the target holds, unknown where null cells leave it so.

    Each of the parts that ``and`` joins, outermost, must be known: one that is unknown leaves the
    label so even where another is false.

    Args:
        table: N records.
        target: an expression.
        truth: (N,) labels that are known already, above 0 of a case and NaN where unknown.
    Returns:
        y (N,) bool, and known (N,) bool; drop and count those that are not.
    Raises:
        ConfigError: `target` cannot be read, or names a column that is not there.
    """
    if truth is not None:
        return truth > 0, ~np.isnan(truth)
    y, known = np.ones(table.num_rows, bool), np.ones(table.num_rows, bool)
    for part in conjuncts(parse(target)):
        holds = part.holds(table)
        known &= _numpy(pc.is_valid(holds))
        y &= _numpy(pc.fill_null(holds, False))
    return y & known, known


def numbers_of(table: pa.Table, name: str) -> NDArray[np.float64]:
    """(N,) numbers of a column, NaN where unknown.

    An ejection fraction that was given as a limit, such as <40, is unknown: its number is a bound.
    Of a range it is the middle.
    """
    cells = pc.cast(column(table, name), pa.float64())
    numbers: NDArray[np.float64] = cells.to_numpy().astype(np.float64)
    if name == "ejection_fraction" and EF_GIVEN in table.column_names:
        limits = pc.match_substring_regex(table[EF_GIVEN], "^[<>]")
        numbers = np.where(_numpy(pc.fill_null(limits, False)), np.nan, numbers)
    return numbers


def classes_of(table: pa.Table, name: str, given: Sequence[str] = ()) -> tuple[str, ...]:
    """The classes of a column, those that are given or else all of its text, sorted.

    Raises:
        ConfigError: fewer than two, more than `MOST_CLASSES`, or a column without text.
    """
    if given:
        classes = tuple(given)
    elif pa.types.is_string(column(table, name).type):
        classes = tuple(sorted(pc.unique(column(table, name)).drop_null().to_pylist()))
    else:
        raise ConfigError(f"--target {name} must be a column of numbers or text; name another")
    if len(set(classes)) < len(classes) or not 2 <= len(classes) <= MOST_CLASSES:
        raise ConfigError(
            f"classes of --target {name} must be 2 to {MOST_CLASSES}, each once, got "
            f"{len(classes)}; name those to learn with --classes A,B"
        )
    return classes


def target_labels(
    records: pa.Table, target: str | None, truth: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """`labels_of` a target; without one, no label is known."""
    if not target and truth is None:
        return np.zeros(records.num_rows, bool), np.zeros(records.num_rows, bool)
    return labels_of(records, target or "", truth)


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
