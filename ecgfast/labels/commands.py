"""What `ecgfast label` and `ecgfast splits` do to a finished store."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.labels.assign import (
    SplitRule,
    assign_splits,
    count_splits,
    known_target,
    one_ecg_each,
    splits_of,
    warn_of_unnamed,
    with_splits,
)
from ecgfast.labels.columns import label_columns, set_column, stored
from ecgfast.labels.matching import (
    Identities,
    agreeing_rows,
    cells,
    first_rows,
    match_rows,
    nearest_rows,
    patient_ids,
    recording_of,
    store_pseudonyms,
    with_identities,
)
from ecgfast.labels.selection import folds_of, target_labels
from ecgfast.labels.splits import SPLITS
from ecgfast.labels.table import parse_date, read_labels
from ecgfast.store.csv_files import csv_lines
from ecgfast.store.durable import store_lock, write_durably
from ecgfast.store.format import refuse_to_replace, sources_beside
from ecgfast.store.patients import patient_groups, retained, with_pseudonyms
from ecgfast.store.reader import open_store
from ecgfast.store.table import replace_records
from ecgfast.vocabulary import SplitMethod

COLUMNS = ("record_id", "split", "fold")  # of an exported table


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """What a join did.

    Attributes:
        num_records: records of the store.
        num_matched: of them, named by a line of the CSV.
        num_outside_window: matched, but without a label inside --label-window-days.
        num_unused_lines: lines of the CSV that name no record of the store.
        columns: label columns taken.
        splits: records in each split.
    """

    num_records: int
    num_matched: int
    num_outside_window: int
    num_unused_lines: int
    columns: tuple[str, ...]
    splits: dict[str, int]


def label_store(
    store: str | Path,
    csv: str | Path,
    *,
    label_window_days: int | None = None,
    columns: Sequence[str] | None = None,
    split: SplitMethod | None = None,
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
            columns patient_id, site, age and sex correct those of the recordings; joined by
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
            the store has; without a choice, such records get no split.
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
            dates = [parse_date(text) for text in named.recorded]
            chosen = nearest_rows(matches, labels, taken, dates, label_window_days)
        records = _with_labels(records, labels, taken, chosen)
        # Stores of earlier versions keep every age, and have no such entry.
        kept_ages = reader.manifest.get("retained", {}).get("ages_over_89", True)
        keep_ages = bool(kept_ages) or keep_ages_over_89
        records, patients = with_identities(
            records, labels, matches, named, pseudonyms, ages_over_89=keep_ages
        )
        earlier = splits_of(reader)
        if one_ecg_per_patient is None:
            one_ecg_per_patient = one_ecg_each(reader)
        rule = SplitRule(
            split=split,
            target=known_target(records, target),
            seed=earlier.get("seed", 0) if split_seed is None else split_seed,
            one_ecg_each=one_ecg_per_patient,
        )
        records, splits = with_splits(records, patients, labels, matches, earlier, rule, csv)
        records = with_pseudonyms(records, patients, pseudonyms)
        digest = hashlib.sha256(csv.read_bytes()).hexdigest()
        spec = {
            # Keyed, so that guesses of a small table cannot be tested against it.
            "csv_digest": pseudonyms.digest("labels", digest).hex(),
            "columns": taken,
            "window_days": label_window_days,
        }
        manifest = {
            "labels": spec,
            "splits": splits,
            "retained": retained(
                records.column_names,
                sites=records["site"].null_count < records.num_rows,
                identifiers=pseudonyms.keep,
                ages_over_89=keep_ages,
            ),
            "patients": {"ids": pseudonyms.patient_ids, "one_ecg_each": rule.one_ecg_each},
        }
        replace_records(reader, records, manifest)
        named.write_changes(patients)
        warn_of_unnamed(records, one_ecg_per_patient=rule.one_ecg_each)
    used = {row for rows in matches for row in rows}
    return LabelSummary(
        num_records=records.num_rows,
        num_matched=int((first >= 0).sum()),
        num_outside_window=int(((first >= 0) & (chosen < 0)).sum()),
        num_unused_lines=labels.num_rows - len(used),
        columns=tuple(taken),
        splits=count_splits(records["split"].to_pylist()),
    )


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


def draw_again(
    store: str | Path,
    *,
    target: str | None = None,
    split_seed: int | None = None,
    one_ecg_per_patient: bool | None = None,
    keep: bool = False,
) -> None:
    """Draw the splits of a store anew.

    Args:
        store: a finished store.
        target: what a case is: splits get equal shares; None takes "ejection_fraction<40" where
            an ejection fraction is known.
        split_seed: another seed is another draw; None keeps the store's.
        one_ecg_per_patient: as in `label_store`.
        keep: patients keep the splits and folds that they have; only others draw.
    Raises:
        ConfigError: `target` cannot be read, or names a column that is not there; a patient, or
            copies of one ECG, are in two of the kept splits.
    """
    path = Path(store)
    with store_lock(path):
        reader = open_store(path)
        if one_ecg_per_patient is None:
            one_ecg_per_patient = one_ecg_each(reader)
        records, splits = assign_splits(
            reader.records,
            Identities.of(reader).patient,
            seed=splits_of(reader).get("seed", 0) if split_seed is None else split_seed,
            target=known_target(reader.records, target),
            one_ecg_per_patient=one_ecg_per_patient,
            drawn_by="label",
            keep=keep,
        )
        patients = {"ids": patient_ids(reader), "one_ecg_each": one_ecg_per_patient}
        replace_records(reader, records, {"splits": splits, "patients": patients})
    warn_of_unnamed(records, one_ecg_per_patient=one_ecg_per_patient)


def export_splits(store: str | Path, out: Path, *, readable: bool = False) -> int:
    """Write record_id, split and fold of every record that has a split.

    Args:
        store: a finished store.
        out: CSV to write.
        readable: record ids as the sources have them, for a split that others are to use; they
            can name people. False: the store's own ids.
    Returns:
        how many records were written.
    Raises:
        ConfigError: readable ids are not known, or `out` is another file that exists.
    """
    header = csv_lines([COLUMNS])
    refuse_to_replace(out, "--export", header.encode(), "table of splits")
    reader = open_store(store)
    names = Identities.of(reader)
    records = reader.records
    if readable and not all(names.record):
        raise ConfigError(
            f"--readable needs the readable ids in {sources_beside(reader.path)}, which is missing "
            "or was written by an earlier version; export without --readable"
        )
    lines: dict[str, tuple[str, str, str]] = {}
    columns = (names.record if readable else names.record_id, records["split"].to_pylist())
    starts = records["start_timestep"].to_pylist()
    for name, split, number, start in zip(*columns, folds_of(records), starts, strict=True):
        if split is not None and name is not None:
            own = name if readable else recording_of(name, start)
            lines[own] = (own, split, "" if number is None else str(number))
    write_durably(out, [(header + csv_lines([*lines.values()])).encode()])
    return len(lines)


def import_splits(
    store: str | Path, csv: Path, *, key_file: Path | None = None, draw_others: bool = False
) -> None:
    """Take the splits, and the folds where it has any, of a CSV as `export_splits` writes it.

    Args:
        store: a finished store.
        csv: record_id, split and perhaps fold.
        key_file: the store's pseudonym key, where it is not STORE.key.
        draw_others: patients whom it does not name draw, as in a store with more files than the one
            that was exported; False leaves them without a split.
    Raises:
        ConfigError: no line names a record, a split is none of the three, or a patient is in two
            splits or folds.
    """
    summary = label_store(store, csv, columns=[], split="column", key_file=key_file)
    without = summary.num_records - summary.num_matched
    if without and not draw_others:
        log.warning(f"{csv}: {without:,} of {summary.num_records:,} records get no split from it")
    if summary.num_unused_lines:
        log.warning(
            f"{csv}: {summary.num_unused_lines:,} of its lines name no record of this store "
            "(capitals count in ids)"
        )
    if draw_others:
        draw_again(store, keep=True)


def summary(store: str | Path, target: str | None = None) -> str:
    """Patients, records, cases and controls of each split, as text."""
    records = open_store(store).records
    target = known_target(records, target)
    groups = patient_groups(records)
    is_case, is_known = target_labels(records, target)
    split = np.array([name or "-" for name in records["split"].to_pylist()], dtype=np.str_)
    lines = [f"{'split':<8}{'patients':>10}{'records':>10}{'cases':>8}{'controls':>10}"]
    for name in (*SPLITS, "-"):
        here = split == name
        if here.any():
            cases, controls = (here & is_known & is_case).sum(), (here & is_known & ~is_case).sum()
            patients = len(np.unique(groups[here]))
            lines.append(f"{name:<8}{patients:>10}{here.sum():>10}{cases:>8}{controls:>10}")
    return "\n".join([*lines, f"target  {target or 'none'}"])
