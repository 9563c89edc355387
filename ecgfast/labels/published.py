"""Splits as such: drawn again, written for others, taken from others, shown."""

from pathlib import Path

import numpy as np

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.labels.assign import assign_splits, known_target, warn_of_unnamed
from ecgfast.labels.identities import Identities, one_ecg_each, patient_ids, splits_of
from ecgfast.labels.joining import label_store
from ecgfast.labels.selection import parse_target
from ecgfast.labels.splits import SPLITS
from ecgfast.store.csv_files import csv_lines
from ecgfast.store.durable import store_lock, write_durably
from ecgfast.store.format import refuse_to_replace, sources_beside
from ecgfast.store.patients import patient_groups
from ecgfast.store.reader import open_store
from ecgfast.store.table import replace_records

COLUMNS = ("record_id", "split", "fold")


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
    fold = records["fold"].to_pylist() if "fold" in records.column_names else [None] * len(reader)
    starts = records["start_timestep"].to_pylist()
    for name, split, number, start in zip(*columns, fold, starts, strict=True):
        if split is not None and name is not None:
            own = name.rsplit("@", 1)[0] if start and not readable else name
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
    nothing = np.zeros(records.num_rows, dtype=bool)
    is_case, is_known = parse_target(target).labels(records) if target else (nothing, nothing)
    split = np.array([name or "-" for name in records["split"].to_pylist()], dtype=np.str_)
    lines = [f"{'split':<8}{'patients':>10}{'records':>10}{'cases':>8}{'controls':>10}"]
    for name in (*SPLITS, "-"):
        here = split == name
        if here.any():
            cases, controls = (here & is_known & is_case).sum(), (here & is_known & ~is_case).sum()
            patients = len(np.unique(groups[here]))
            lines.append(f"{name:<8}{patients:>10}{here.sum():>10}{cases:>8}{controls:>10}")
    return "\n".join([*lines, f"target  {target or 'none'}"])
