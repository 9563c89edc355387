"""Join a CSV of labels into a finished store and assign its splits."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.labels.assign import (
    assign_splits,
    count_splits,
    known_target,
    set_column,
    warn_of_unnamed,
)
from ecgfast.labels.columns import label_columns, stored
from ecgfast.labels.identities import (
    Identities,
    cells,
    keeps_ages_over_89,
    one_ecg_each,
    splits_of,
    store_pseudonyms,
    with_identities,
)
from ecgfast.labels.matching import agreeing_rows, first_rows, match_rows, nearest_rows
from ecgfast.labels.splits import check_folds, check_splits, num_torn
from ecgfast.labels.table import folds, read_labels
from ecgfast.store.durable import store_lock
from ecgfast.store.patients import patient_groups, retained, with_pseudonyms
from ecgfast.store.reader import open_store
from ecgfast.store.table import replace_records
from ecgfast.vocabulary import Split


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """What a join did.

    Attributes:
        num_records: records of the store.
        num_matched: of them, named by a line of the CSV.
        num_outside_window: matched, but without a label inside --label-window-days.
        num_unused_lines: lines of the CSV that name no record of the store.
        num_unnamed: records of the store that name no patient.
        columns: label columns taken.
        splits: records in each split.
    """

    num_records: int
    num_matched: int
    num_outside_window: int
    num_unused_lines: int
    num_unnamed: int
    columns: tuple[str, ...]
    splits: dict[str, int]


def label_store(
    store: str | Path,
    csv: str | Path,
    *,
    label_window_days: int | None = None,
    columns: Sequence[str] | None = None,
    split: Split | None = None,
    target: str | None = None,
    split_seed: int | None = None,
    one_ecg_per_patient: bool | None = None,
    key_file: Path | None = None,
    keep_ages_over_89: bool = False,
) -> LabelSummary:
    """Join labels and assign splits; the signals are not touched.

    Args:
        store: a finished store.
        csv: a table with record_id or patient_id, readable or pseudonyms, and label columns. The
            columns patient_id, site, age and sex correct what the recordings say; joined by
            patient_id, a patient is the one of that site.
        label_window_days: take only labels whose label_date lies within so many days of the ECG
            (column ecg_date, or the recording's own date), the nearest where there are several.
        columns: label columns to take; None takes the ejection fraction and columns of 0 and 1 or
            yes and no, no other numbers and no text.
        split: "patient" draws 70/15/15 by patient; "column" takes the CSV's `split`, and `fold`
            where it has one; None draws with the first labels, and keeps what an earlier label
            drew or gave.
        target: what a case is: splits get equal shares of cases. None takes
            "ejection_fraction<40" where an ejection fraction is known.
        split_seed: another seed is another draw; None keeps the store's.
        one_ecg_per_patient: each record that names no patient is another patient; None keeps what
            the store says, at first that such records get no split.
        key_file: the store's pseudonym key, where it is not STORE.key.
        keep_ages_over_89: keep these ages; else they are all 90, unless the store keeps them.
    Raises:
        ConfigError: the CSV does not fit, or splits leak a patient.
    """
    path, csv = Path(store), Path(csv)
    with store_lock(path):
        reader = open_store(path)
        pseudonyms = store_pseudonyms(reader, key_file)
        labels = read_labels(csv)
        taken = label_columns(labels, columns, csv)
        records, named = reader.records, Identities.of(reader)
        matches = match_rows(records, labels, pseudonyms)
        first = first_rows(matches)
        if not (first >= 0).any():
            raise ConfigError(
                f"labels {csv}: no line names a record of {path}; ids are paths below the source "
                "without suffix, such as data/1; see the .sources.csv beside the store"
                f"{_would_fit(named.record, labels)}"
            )
        if label_window_days is None:
            chosen = agreeing_rows(matches, labels, taken)
        else:
            dates = named.recorded_dates()
            chosen = nearest_rows(matches, labels, taken, dates, label_window_days)
        records = _with_labels(records, labels, taken, chosen)
        keep_ages = keeps_ages_over_89(reader) or keep_ages_over_89
        records, patients = with_identities(
            records, labels, matches, named, pseudonyms, ages_over_89=keep_ages
        )
        earlier = splits_of(reader)
        if one_ecg_per_patient is None:
            one_ecg_per_patient = one_ecg_each(reader)
        rule = _Rule(
            split=split,
            target=known_target(records, target),
            seed=earlier.get("seed", 0) if split_seed is None else split_seed,
            one_ecg_each=one_ecg_per_patient,
        )
        records, splits = _with_splits(records, patients, labels, matches, earlier, rule, csv)
        records = with_pseudonyms(records, patients, pseudonyms)
        spec = {
            # Keyed: nobody shall test guesses of a small table.
            "csv_digest": pseudonyms.digest("labels", _sha256(csv)).hex(),
            "columns": taken,
            "window_days": label_window_days,
        }
        manifest = {
            "labels": spec,
            "splits": splits,
            "retained": retained(records, identifiers=pseudonyms.keep, ages_over_89=keep_ages),
            "patients": {"ids": pseudonyms.patient_ids, "one_ecg_each": rule.one_ecg_each},
        }
        replace_records(reader, records, manifest)
        named.write_changes(patients)
        num_unnamed = warn_of_unnamed(records, one_ecg_per_patient=rule.one_ecg_each)
    used = {row for rows in matches for row in rows}
    return LabelSummary(
        num_records=records.num_rows,
        num_matched=int((first >= 0).sum()),
        num_outside_window=int(((first >= 0) & (chosen < 0)).sum()),
        num_unused_lines=labels.num_rows - len(used),
        num_unnamed=num_unnamed,
        columns=tuple(taken),
        splits=count_splits(records["split"].to_pylist()),
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """How splits are made, as asked for or as before."""

    split: Split | None
    target: str | None
    seed: int
    one_ecg_each: bool


def _with_labels(
    records: pa.Table, labels: pa.Table, columns: list[str], chosen: NDArray[np.int64]
) -> pa.Table:
    """Set label columns; records without a line keep what they had."""
    for name in columns:
        column = stored(cells(labels[name], chosen))
        if name in records.column_names and records[name].type == column.type:
            column = pc.if_else(pa.array(chosen >= 0), column, records[name])
        records = set_column(records, name, column)
    return records


def _would_fit(names: Sequence[str | None], labels: pa.Table) -> str:
    """Whether ids lack the first folder, as where a dataset's own table starts below the source."""
    if "record_id" not in labels.column_names:
        return ""
    shorter = {name.partition("/")[2] for name in names if name} - {""}
    count = sum(name in shorter for name in labels["record_id"].to_pylist())
    if not count:
        return ""
    return (
        f"; {count:,} of its ids are such paths without their first folder: convert that folder "
        "instead of the one above it, or write it in front of the ids"
    )


def _with_splits(
    records: pa.Table,
    patients: Sequence[str],
    labels: pa.Table,
    matches: list[list[int]],
    earlier: dict[str, Any],
    rule: _Rule,
    csv: Path,
) -> tuple[pa.Table, dict[str, Any]]:
    """The rows with their splits, and what the manifest says about these."""
    if rule.split not in (None, "patient", "column"):
        raise ConfigError(f"--split must be patient or column, got {rule.split!r}")
    if rule.split == "column":
        return _given_splits(records, labels, matches, csv), {"kind": "column"}
    if "split" in labels.column_names:
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
        patients,
        seed=rule.seed,
        target=rule.target,
        one_ecg_per_patient=rule.one_ecg_each,
        drawn_by="label",
        keep=keep,
    )


def _given_splits(
    records: pa.Table, labels: pa.Table, matches: list[list[int]], csv: Path
) -> pa.Table:
    if "split" not in labels.column_names:
        raise ConfigError("--split column needs a column named split in the CSV")
    names = [name for name in ("split", "fold") if name in labels.column_names]
    rows = agreeing_rows(matches, labels, names)
    split = cells(labels["split"], rows)
    patients = records["patient_id"].to_pylist()
    check_splits(patients, split.to_pylist())
    _say_torn_copies(records, split.to_pylist(), "split")
    records = set_column(records, "split", split)
    if "fold" not in names:
        return set_column(records, "fold", pa.nulls(records.num_rows, pa.int64()))
    fold = cells(folds(labels, csv), rows)
    check_folds(patients, fold.to_pylist())
    _say_torn_copies(records, fold.to_pylist(), "fold")
    return set_column(records, "fold", fold)


def _say_torn_copies(
    records: pa.Table, parts: Sequence[object], name: Literal["split", "fold"]
) -> None:
    """Published splits tear copies of one ECG: loud, because they must be taken as they are."""
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
