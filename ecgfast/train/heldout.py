"""Records that pretraining reads, and those that it sets aside to watch itself."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.data.loader import selected_rows
from ecgfast.store.patients import patient_groups
from ecgfast.store.reader import StoreReader


def pretraining_rows(
    store: StoreReader, select: str | None, *, include_test: bool
) -> NDArray[np.int64]:
    """Return the rows that pretraining may read: without test patients, unless asked for.

    Args:
        store: an open store.
        select: an expression, None for all records.
        include_test: as in `pretrain`.
    """
    rows = selected_rows(store, select)
    if include_test:
        return rows
    kept = without_splits(store, rows, "test")
    if len(kept) < len(rows):
        log.info(f"{len(rows) - len(kept)} records of test patients left out")
    return kept


def without_splits(store: StoreReader, rows: NDArray[np.int64], *splits: str) -> NDArray[np.int64]:
    """Return the rows of patients of whom no record is in some splits.

    Given splits can name some ECGs of a patient alone, or tear copies of one ECG.
    """
    names = np.array([name or "" for name in store.records["split"].to_pylist()], dtype=np.str_)
    groups = patient_groups(store.records)
    return rows[~np.isin(groups[rows], groups[np.isin(names, splits)])]


def split_heldout(
    store: StoreReader, rows: NDArray[np.int64], *, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows into training and held-out ones by a keyed hash of the patient.

    The hash knows nothing but seed and patient, so that records added later move nobody.

    Args:
        store: the rows' store.
        rows: (R,) rows to split.
        fraction: expected share of held-out patients.
        seed: of the run.
    Returns:
        training rows, held-out rows; both in the order of `rows`.
    """
    if fraction == 0:
        return rows, rows[:0]
    groups = patient_groups(store.records)[rows]
    names = store.records["patient_id"].take(rows).to_pylist()
    first: dict[int, str] = {}  # one name of each patient, whatever the order of his records
    for group, name in zip(groups.tolist(), names, strict=True):
        first[group] = min(first.get(group, name), name)
    held = np.array([_uniform(seed, first[group]) < fraction for group in groups], dtype=bool)
    return rows[~held], rows[held]


def _uniform(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"held out {seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64
