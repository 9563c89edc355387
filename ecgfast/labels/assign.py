"""Splits of a whole store: who is divided, what is balanced, and what is said about it."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.labels.selection import parse_target
from ecgfast.labels.splits import NUM_FOLDS, SHARES, Drawn, Strata, draw_splits, warn_where_few
from ecgfast.store.patients import before_id, is_unnamed, patient_groups

DEFAULT_TARGET = "ejection_fraction<40"
ONE_ECG_OPTION = "--assume-one-ecg-per-patient"


def known_target(records: pa.Table, target: str | None) -> str | None:
    """What is balanced between splits: as asked for, else the study's label where it is known."""
    if target is not None:
        return target
    column = records["ejection_fraction"] if "ejection_fraction" in records.column_names else None
    has_values = column is not None and column.null_count < len(column)
    return DEFAULT_TARGET if has_values else None


def assign_splits(
    records: pa.Table,
    keys: Sequence[str],
    *,
    seed: int,
    target: str | None,
    one_ecg_per_patient: bool,
    drawn_by: Literal["convert", "label"],
    keep: bool = False,
) -> tuple[pa.Table, dict[str, Any]]:
    """Draw the columns `split` and `fold` of a store.

    Args:
        records: its rows.
        keys: (N,) readable key of each record's patient.
        seed: of the split.
        target: what is balanced beside the site, None for nothing.
        one_ecg_per_patient: the user says that each record without a patient is another patient;
            else these get no split.
        drawn_by: the command; the first labels draw anew, later ones keep what a label drew.
        keep: patients keep the splits and folds that they have; only others draw.
    Returns:
        the rows; what the manifest says about the splits.
    Raises:
        ConfigError: `target` cannot be read, or names a column that is not there.
    """
    nothing = np.zeros(records.num_rows, dtype=bool)
    is_case, is_known = parse_target(target).labels(records) if target else (nothing, nothing)
    groups = patient_groups(records)
    unnamed = nothing if one_ecg_per_patient else is_unnamed(records)
    unnamed = unnamed & ~np.isin(groups, groups[~unnamed])  # the copy of a patient's ECG is his
    drawn: Drawn = draw_splits(
        keys,
        groups,
        Strata(site=records["site"].to_pylist(), is_case=is_case, is_known=is_known),
        seed=seed,
        left_out=unnamed,
        kept=_drawn_before(records) if keep else None,
    )
    records = set_column(records, "split", pa.array(drawn.split, pa.string()))
    records = set_column(records, "fold", pa.array(drawn.fold, pa.int64()))
    spec = {
        "kind": "patient",
        "drawn_by": drawn_by,
        "seed": seed,
        "shares": SHARES,
        "folds": NUM_FOLDS,
        "strata": ["site", *([target] if target else [])],
    }
    if target:
        warn_where_few(target, drawn.split, is_case, is_known)
    _warn_of_lost_sites(keys, records["site"].to_pylist())
    return records, spec


def _warn_of_lost_sites(keys: Sequence[str], sites: Sequence[str | None]) -> None:
    """Say where a number occurs at a site and without one: two patients here, perhaps one person.

    Args:
        keys: (N,) `Pseudonyms.patient_key`, SITE/ID where ids belong to a site.
        sites: (N,) of the records.
    """
    lost = {key for key, site in zip(keys, sites, strict=True) if site is None}
    if lost:
        lost &= {
            key.removeprefix(before_id(site))
            for key, site in zip(keys, sites, strict=True)
            if site is not None and key.startswith(before_id(site))
        }
    if lost:
        log.warning(
            f"{len(lost):,} patient ids occur both at a site and on records without one. They "
            "count as different patients, and splits may part what is one person: give the site of "
            "all records with ecgfast label, or convert with --patient-ids global"
        )


def _drawn_before(records: pa.Table) -> Drawn:
    has_folds = "fold" in records.column_names
    fold = records["fold"].to_pylist() if has_folds else [None] * records.num_rows
    return Drawn(split=records["split"].to_pylist(), fold=fold)


def warn_of_unnamed(records: pa.Table, *, one_ecg_per_patient: bool) -> int:
    """Say how many records name no patient, and what that means; returns how many."""
    unnamed = is_unnamed(records)
    count = int(unnamed.sum())
    if count and one_ecg_per_patient:
        log.warning(
            f"{count:,} of {records.num_rows:,} records name no patient and count as one patient "
            f"each, as {ONE_ECG_OPTION} says"
        )
    elif count:
        without = int((unnamed & pc.is_null(records["split"]).to_numpy()).sum())
        log.warning(
            f"{count:,} of {records.num_rows:,} records name no patient, so nobody knows which "
            f"belong together: {without:,} of them are in no split; give patient_id with ecgfast "
            f"label, or say {ONE_ECG_OPTION}"
        )
    return count


def set_column(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The table with a column replaced, or appended."""
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def count_splits(split: Sequence[str | None]) -> dict[str, int]:
    """Records of each split that has any."""
    names: NDArray[np.str_] = np.array([name for name in split if name is not None], dtype=np.str_)
    return {str(n): int(c) for n, c in zip(*np.unique(names, return_counts=True), strict=True)}
