"""Splits of records that a finished store gains: none of its own records moves.

A record of a known patient goes where that patient is. Another patient's number decides alone, not
his place among others: below 0.15 is test, below 0.30 valid. So it does not matter which records
come together. A patient of a store has one number under every key, as `labels.splits` explains.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ecgfast import log
from ecgfast.labels.columns import set_column
from ecgfast.labels.selection import folds_of
from ecgfast.labels.splits import NUM_FOLDS, SHARES, draw
from ecgfast.store.patients import is_unnamed, patient_groups

_ASKED = ("record_id", "patient_id", "duplicate_of", "flags", "split", "fold")


def with_appended_splits(
    old: pa.Table,
    new: pa.Table,
    keys: Sequence[str],
    *,
    splits: Mapping[str, Any],
    one_ecg_per_patient: bool,
) -> pa.Table:
    """Give new records their splits and folds.

    Args:
        old: rows of the store.
        new: rows that it gains, whose `duplicate_of` may name old ones.
        keys: readable key of the patient of each new row.
        splits: the manifest's entry. Where a table gave the splits, patients whom it does not know
            get none.
        one_ecg_per_patient: each record that names no patient is another patient.
    Returns:
        the new rows.
    """
    both = pa.concat_tables([each.select(_ASKED) for each in (old, new)])
    groups, num_old = patient_groups(both), old.num_rows
    unnamed = is_unnamed(both) & (not one_ecg_per_patient)
    # A record without a patient that copies the ECG of a known one belongs to that patient.
    unnamed = unnamed & ~np.isin(groups, groups[~unnamed])
    ours = groups[num_old:]
    known: dict[int, tuple[set[str], set[int]]] = defaultdict(lambda: (set(), set()))
    rows = np.flatnonzero(np.isin(groups[:num_old], ours))
    theirs = both.select(["split", "fold"]).take(pa.array(rows))
    columns = (groups[rows].tolist(), theirs["split"].to_pylist(), folds_of(theirs))
    for group, name, number in zip(*columns, strict=True):
        names, numbers = known[group]
        if name is not None:
            names.add(name)
        if number is not None:
            numbers.add(number)
    first: dict[int, str] = {}
    for group, key in zip(ours.tolist(), keys, strict=True):
        first[group] = min(first.get(group, key), key)
    given: list[tuple[str | None, int | None]] = []
    for group, out in zip(ours.tolist(), unnamed[num_old:].tolist(), strict=True):
        names, numbers = known[group]
        if out or len(names) > 1 or len(numbers) > 1:
            given.append((None, None))
        elif names or splits["kind"] != "patient":
            given.append((next(iter(names), None), next(iter(numbers), None)))
        else:
            given.append(draw_alone(splits["seed"], first[group]))
    num_torn = sum(max(len(names), len(numbers)) > 1 for names, numbers in known.values())
    if num_torn:
        log.warning(
            f"{num_torn:,} patients of the store whose splits differ turn out to be one, by an "
            "ECG that both have: their new records are in no split, the old ones stay where they "
            "are; ecgfast splits --draw draws all anew"
        )
    new = set_column(new, "split", pa.array([name for name, _ in given], pa.string()))
    return set_column(new, "fold", pa.array([number for _, number in given], pa.int64()))


def draw_alone(seed: int, patient_key: str) -> tuple[str, int]:
    """Split and fold of a patient by his numbers alone, in the shares of `SHARES`.

    Args:
        seed: of the splits.
        patient_key: as for `draw`.
    """
    number, end = draw(seed, patient_key), 0.0
    digest = hashlib.sha256(f"ecgfast fold {seed}\0{patient_key}".encode()).digest()
    fold = int.from_bytes(digest[:8], "big") % NUM_FOLDS + 1
    for name, share in SHARES.items():
        end += share
        if number < end:
            return name, fold
    return "train", fold
