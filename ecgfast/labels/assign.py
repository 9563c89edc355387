"""Splits of a whole store: drawn, kept or given, and the warnings about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.labels.choice import agreeing_rows, cells
from ecgfast.labels.columns import set_column
from ecgfast.labels.expression import parse
from ecgfast.labels.join import Join
from ecgfast.labels.selection import folds_of, target_labels
from ecgfast.labels.splits import (
    NUM_FOLDS,
    SHARES,
    Drawn,
    Strata,
    check_splits,
    draw_splits,
    num_torn,
    refuse_torn,
    warn_where_few,
)
from ecgfast.labels.table import folds
from ecgfast.store.patients import before_id, is_unnamed, patient_groups
from ecgfast.store.reader import StoreReader
from ecgfast.vocabulary import SplitMethod

DEFAULT_TARGET = "ejection_fraction<40"
ONE_ECG_OPTION = "--assume-one-ecg-per-patient"


def known_target(records: pa.Table, target: str | None) -> str | None:
    """What is balanced between splits: as asked for, else the study's label where it is known."""
    if target is not None:
        parse(target)  # refused now, not after the splits are drawn
        return target
    column = records["ejection_fraction"] if "ejection_fraction" in records.column_names else None
    has_values = column is not None and column.null_count < len(column)
    return DEFAULT_TARGET if has_values else None


def assign_splits(
    records: pa.Table,
    keys: pa.ChunkedArray,
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
        one_ecg_per_patient: each record that names no patient is another patient, on the user's
            word; else these get no split.
        drawn_by: the command; the first labels draw anew, later ones keep what a label drew.
        keep: patients keep the splits and folds that they have; only others draw.
    Returns:
        the rows; the manifest's entry on the splits.
    Raises:
        ConfigError: `target` cannot be read, or names a column that is not there.
    """
    is_case, is_known = target_labels(records, target)
    groups = patient_groups(records)
    unnamed = is_unnamed(records) & (not one_ecg_per_patient)
    # A record without a patient that copies the ECG of a known one belongs to that patient.
    unnamed = unnamed & ~np.isin(groups, groups[~unnamed])
    drawn: Drawn = draw_splits(
        keys,
        groups,
        Strata(site=records["site"], is_case=is_case, is_known=is_known),
        seed=seed,
        left_out=unnamed,
        kept=Drawn(split=records["split"], fold=pa.array(folds_of(records))) if keep else None,
    )
    records = set_column(records, "split", drawn.split)
    records = set_column(records, "fold", drawn.fold)
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
    _warn_of_lost_sites(keys, records["site"])
    return records, spec


def _warn_of_lost_sites(keys: pa.ChunkedArray, sites: pa.ChunkedArray) -> None:
    """Warn of ids that occur at a site and without one: two patients here, perhaps one person.

    Args:
        keys: (N,) `Pseudonyms.patient_key`, SITE/ID where ids belong to a site.
        sites: (N,) of the records.
    """
    if sites.null_count in (0, len(sites)):
        return
    without = set(keys.filter(sites.is_null()).to_pylist())
    known = sites.is_valid()
    pairs = zip(sites.filter(known).to_pylist(), keys.filter(known).to_pylist(), strict=True)
    own = {
        key.removeprefix(before_id(site)) for site, key in pairs if key.startswith(before_id(site))
    }
    lost = without & own
    if lost:
        log.warning(
            f"{len(lost):,} patient ids occur both at a site and on records without one. They "
            "count as different patients, and splits may part what is one person: give the site of "
            "all records with ecgfast label, or convert with --patient-ids global"
        )


def warn_of_unnamed(records: pa.Table, *, one_ecg_per_patient: bool) -> int:
    """Warn of records that name no patient, and of what that means; returns how many."""
    unnamed = is_unnamed(records)
    count = int(unnamed.sum())
    if count and one_ecg_per_patient:
        log.warning(
            f"{count:,} of {records.num_rows:,} records name no patient and count as one patient "
            f"each, as {ONE_ECG_OPTION} says"
        )
    elif count:
        without = int((unnamed & pc.is_null(records["split"]).to_numpy()).sum())
        apart = f": {without:,} of them in no split" if without else ""
        log.warning(
            f"{count:,} of {records.num_rows:,} records name no patient, so nobody knows which "
            f"belong together{apart}; give patient_id with ecgfast label, or say {ONE_ECG_OPTION}"
        )
    return count


def count_splits(split: Sequence[str | None]) -> dict[str, int]:
    """Records of each split that has any."""
    names: NDArray[np.str_] = np.array([name for name in split if name is not None], dtype=np.str_)
    return {str(n): int(c) for n, c in zip(*np.unique(names, return_counts=True), strict=True)}


def one_ecg_each(reader: StoreReader) -> bool:
    """Whether each record that names no patient is another one, on the user's word."""
    return bool(reader.manifest.get("patients", {}).get("one_ecg_each", False))


def splits_of(reader: StoreReader) -> dict[str, Any]:
    """How the splits of a store were made."""
    labels = reader.manifest["labels"] or {}
    drawn = {"kind": labels.get("split", "patient"), "drawn_by": "label" if labels else "convert"}
    splits: dict[str, Any] = reader.manifest.get("splits", drawn)
    return splits


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """How splits are made, as asked for or as before."""

    split: SplitMethod | None
    target: str | None
    seed: int
    one_ecg_each: bool


def with_splits(
    records: pa.Table,
    patients: Sequence[str],
    joins: Sequence[Join],
    earlier: dict[str, Any],
    rule: SplitRule,
) -> tuple[pa.Table, dict[str, Any]]:
    """The rows with their splits, and the manifest's entry on them.

    Raises:
        ConfigError: no table or several have such splits, or they leak a patient.
    """
    given = [each for each in joins if "split" in each.table.labels.column_names]
    if rule.split is not None and rule.split not in get_args(SplitMethod):
        raise ConfigError(
            f"--split must be {' or '.join(get_args(SplitMethod))}, got {rule.split!r}"
        )
    if rule.split == "column":
        if len(given) != 1:
            raise ConfigError(
                f"--split column needs a column named split in one table, got {len(given)}"
            )
        return _given_splits(records, given[0]), {"kind": "column"}
    if given:
        log.info("labels: the column split is not used; --split column takes it")
    if rule.split is None and earlier["kind"] == "column":
        log.info("splits stay as an earlier CSV gave them; --split patient draws them anew")
        check_splits(records["patient_id"].to_pylist(), records["split"].to_pylist())
        return records, earlier
    keep = rule.split is None and earlier["drawn_by"] == "label"
    if keep:
        log.info("splits stay as the first labels drew them; --split patient draws them anew")
    return assign_splits(
        records,
        pa.chunked_array([patients], pa.string()),
        seed=rule.seed,
        target=rule.target,
        one_ecg_per_patient=rule.one_ecg_each,
        drawn_by="label",
        keep=keep,
    )


def _given_splits(records: pa.Table, join: Join) -> pa.Table:
    labels = join.table.labels
    names = [name for name in ("split", "fold") if name in labels.column_names]
    rows = agreeing_rows(join.matches, labels, names)
    split = cells(labels["split"], rows)
    patients = records["patient_id"].to_pylist()
    check_splits(patients, split.to_pylist())
    _warn_of_torn_copies(records, split.to_pylist(), "split")
    records = set_column(records, "split", split)
    if "fold" not in names:
        return set_column(records, "fold", pa.nulls(records.num_rows, pa.int64()))
    fold = cells(folds(labels, join.table.path), rows)
    refuse_torn(patients, fold.to_pylist(), "fold")
    _warn_of_torn_copies(records, fold.to_pylist(), "fold")
    return set_column(records, "fold", fold)


def _warn_of_torn_copies(
    records: pa.Table, parts: Sequence[object], name: Literal["split", "fold"]
) -> None:
    """Warn of copies of one ECG in several parts; published splits are taken as they are."""
    torn = num_torn(patient_groups(records).tolist(), parts)
    if not torn:
        return
    text = (
        f"{name} column: copies of {torn} ECGs are in more than one {name}: evaluate leaves out "
        "what a run has learned a copy of, but validation records may be copies of training ones; "
        f"give copies one {name}, or use --split patient"
    )
    if log.is_strict():
        raise ConfigError(text)
    log.warning(text)
