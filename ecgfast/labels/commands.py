"""What `ecgfast label` and `ecgfast splits` do to a finished store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

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
from ecgfast.labels.choice import parse_date, window_of
from ecgfast.labels.join import (
    Join,
    JoinRule,
    columns_of,
    digest_of_tables,
    join_tables,
    read_tables,
)
from ecgfast.labels.matching import Identities, patient_ids, store_pseudonyms
from ecgfast.labels.naming import Naming
from ecgfast.labels.preview import (
    named_and_labelled,
    preview,
    unmatched_file,
    write_unmatched,
)
from ecgfast.labels.selection import folds_of, target_labels
from ecgfast.labels.splits import SPLITS
from ecgfast.store.csv_files import csv_lines
from ecgfast.store.durable import store_lock, write_durably
from ecgfast.store.format import SHIFTED_DATE, refuse_to_replace, sources_beside
from ecgfast.store.generations import whole_store
from ecgfast.store.patients import patient_groups, retained, with_pseudonyms, with_shifted_dates
from ecgfast.store.quality import with_site_flags
from ecgfast.store.reader import open_store
from ecgfast.store.table import recording_of, replace_records
from ecgfast.vocabulary import LabelPick, SplitMethod

COLUMNS = ("record_id", "split", "fold")  # of an exported table


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """What a join did.

    Attributes:
        num_records: records of the store.
        num_matched: of them, named by a line of a table.
        num_outside_window: matched, but without a label inside --label-window-days.
        num_unused_lines: lines of the tables that name no record of the store.
        columns: label columns taken.
        splits: records in each split.
        unmatched: the file that lists the records and the lines without a partner.
    """

    num_records: int
    num_matched: int
    num_outside_window: int
    num_unused_lines: int
    columns: tuple[str, ...]
    splits: dict[str, int]
    unmatched: Path


def label_store(
    store: str | Path,
    tables: str | Path | Sequence[str | Path],
    *,
    naming: Naming | None = None,
    label_window_days: int | str | None = None,
    label_pick: LabelPick = "nearest",
    columns: Sequence[str] | None = None,
    split: SplitMethod | None = None,
    target: str | None = None,
    split_seed: int | None = None,
    one_ecg_per_patient: bool | None = None,
    key_file: str | Path | None = None,
    keep_ages_over_89: bool = False,
    shift_dates: bool = False,
    unmatched: str | Path | None = None,
    before_write: Callable[[str], None] | None = None,
) -> LabelSummary:
    """Join labels and assign splits; the signals are not touched.

    Args:
        store: a finished store.
        tables: one or several, each a CSV, a Parquet file or FILE.xlsx#SHEET, with record_id or
            patient_id, readable or pseudonyms, and label columns. The columns patient_id, site, age
            and sex correct those of the recordings; joined by patient_id, a patient is the one of
            that site. What a later table says of a record replaces the earlier.
        naming: what the tables call their columns, where that is not what a store calls them.
        label_window_days: take only labels whose label_date lies within so many days of the ECG
            (column ecg_date, or the recording's own date): 14 for 14 before or after, "-7..30" from
            7 before to 30 after.
        label_pick: the "nearest" label in the window, or the "first".
        columns: label columns to take; None takes the ejection fraction and columns of 0 and 1 or
            yes and no, no other numbers and no text.
        split: "patient" draws 70/15/15 by patient; "column" takes the table's `split`, and `fold`
            where it has one; None draws with the first labels, and keeps what an earlier label
            drew or gave.
        target: what a case is: splits get equal shares of cases. None takes
            "ejection_fraction<40" where an ejection fraction is known.
        split_seed: another seed is another draw; None keeps the store's.
        one_ecg_per_patient: each record that names no patient is another patient; None keeps what
            the store has; without a choice, such records get no split.
        key_file: the store's pseudonym key, where it is not STORE.key.
        keep_ages_over_89: keep these ages; else they are all 90, unless the store keeps them.
        shift_dates: keep the day of each recording, moved by a number of days of the patient's own;
            no table is needed then.
        unmatched: file for records and lines without a partner; None means STORE.unmatched.csv.
        before_write: is given a preview before anything is written; what it raises stops the join.
    Raises:
        ConfigError: a table does not fit, splits leak a patient, or one generation is named.
    """
    path = whole_store(store)
    paths = [Path(tables)] if isinstance(tables, str | Path) else [*map(Path, tables)]
    if not paths and not shift_dates:
        raise ConfigError("label needs a table, got none; give a CSV, Parquet or .xlsx file")
    window = window_of(label_window_days, label_pick)
    with store_lock(path):
        reader = open_store(path)
        beside = unmatched_file(path, unmatched)
        pseudonyms = store_pseudonyms(reader, key_file)
        found = read_tables(paths, naming or Naming(), columns)
        names = Identities.of(reader)
        # Stores of earlier versions keep every age, and have no such entry.
        kept_ages = reader.manifest.get("retained", {}).get("ages_over_89", True)
        rule = JoinRule(
            window=window, ages_over_89=bool(kept_ages) or keep_ages_over_89, store=path
        )
        records, patients, joins = join_tables(reader.records, found, names, pseudonyms, rule)
        if "quality_limits" in reader.manifest:  # a site may have changed
            records = with_site_flags(records, reader.manifest["quality_limits"])
        earlier = splits_of(reader)
        split_rule = SplitRule(
            split=split,
            target=known_target(records, target),
            seed=earlier.get("seed", 0) if split_seed is None else split_seed,
            one_ecg_each=one_ecg_each(reader)
            if one_ecg_per_patient is None
            else one_ecg_per_patient,
        )
        records, splits = with_splits(records, patients, joins, earlier, split_rule)
        records = with_pseudonyms(records, patients, pseudonyms)
        dates = [parse_date(text) for text in names.recorded]
        # Patients may have changed; where the table of dates is gone, the column stays as it is.
        if shift_dates or (SHIFTED_DATE in records.column_names and any(dates)):
            records = with_shifted_dates(records, dates, patients, pseudonyms)
        if before_write is not None:
            before_write(preview(records, joins, split_rule.target, path))
        changed = {
            "splits": splits,
            "retained": retained(
                records.column_names,
                sites=records["site"].null_count < records.num_rows,
                identifiers=pseudonyms.keep,
                ages_over_89=rule.ages_over_89,
            ),
            "patients": {"ids": pseudonyms.patient_ids, "one_ecg_each": split_rule.one_ecg_each},
        }
        if paths:
            changed["labels"] = {
                # Keyed, so that guesses of a small table cannot be tested against it.
                "csv_digest": pseudonyms.digest("labels", digest_of_tables(paths)).hex(),
                "columns": columns_of(joins),
                "window_days": window and window.text,
                **({"pick": label_pick} if label_pick != "nearest" else {}),
            }
        replace_records(reader, records, changed)
        names.write_changes(patients)
        if paths:
            write_unmatched(beside, joins, names)
        warn_of_unnamed(records, one_ecg_per_patient=split_rule.one_ecg_each)
    return _summary_of(joins, records, beside)


def _summary_of(joins: Sequence[Join], records: pa.Table, unmatched: Path) -> LabelSummary:
    is_named, has_label = named_and_labelled(joins, records.num_rows)
    return LabelSummary(
        num_records=records.num_rows,
        num_matched=int(is_named.sum()),
        num_outside_window=int((is_named & ~has_label).sum()),
        num_unused_lines=sum(len(each.unused_lines) for each in joins),
        columns=tuple(columns_of(joins)),
        splits=count_splits(records["split"].to_pylist()),
        unmatched=unmatched,
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
    path = whole_store(store)
    with store_lock(path):
        reader = open_store(path)
        if one_ecg_per_patient is None:
            one_ecg_per_patient = one_ecg_each(reader)
        records, splits = assign_splits(
            reader.records,
            pa.chunked_array([Identities.of(reader).patient], pa.string()),
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
