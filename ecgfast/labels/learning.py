"""Which records teach a classifier: those with a label in the training and validation splits."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.labels.selection import parse_target
from ecgfast.labels.splits import splits_of_fold


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Records of a selection, by what they are for.

    Attributes:
        is_case: (N,) bool, one per row of the store; False where no label is known.
        train: (n,) int64 rows to learn from.
        valid: (n,) int64 rows that choose the weights.
        num_unknown: selected records without a label; they teach nothing.
    """

    is_case: NDArray[np.bool_]
    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    num_unknown: int

    @property
    def digest(self) -> str:
        """16 hex digits, the same as long as the same records teach the same."""
        labels = (self.is_case[self.train], self.is_case[self.valid])
        return digest_of(self.train, self.valid, *labels)


def labelled(
    records: pa.Table, rows: NDArray[np.int64], target: str, fold: int | None = None
) -> Labelled:
    """Sort selected records by split, those without a label left out.

    Args:
        records: `StoreReader.records`.
        rows: (R,) selected rows.
        target: what a case is, such as "ejection_fraction<40".
        fold: of a cross-validation, which is held out; None takes the store's splits.
    Raises:
        ConfigError: `target` cannot be read, or names a column that is not there; no such fold.
    """
    is_case, is_known = parse_target(target).labels(records)
    names = records.column("split").to_pylist()
    if fold is not None:
        has_folds = "fold" in records.column_names
        folds = records.column("fold").to_pylist() if has_folds else [None] * records.num_rows
        names = splits_of_fold(folds, fold)
    split = np.array(names, dtype=object)[rows]
    known = is_known[rows]
    return Labelled(
        is_case=is_case,
        train=rows[known & (split == "train")],
        valid=rows[known & (split == "valid")],
        num_unknown=int((~known).sum()),
    )


def digest_of(*parts: NDArray[np.int64] | NDArray[np.bool_]) -> str:
    """16 hex digits that tell arrays of rows or labels from others."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.dtype.str} {part.shape} ".encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]
