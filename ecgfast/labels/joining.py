"""Join a CSV of labels into a finished store and assign its splits."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.labels.matching import (
    agreeing_rows,
    first_rows,
    match_rows,
    nearest_rows,
    recorded_dates,
)
from ecgfast.labels.splits import check_splits, split_of
from ecgfast.labels.table import PERSONAL, label_columns, read_labels, stored
from ecgfast.store.durable import store_lock
from ecgfast.store.format import key_beside, sources_beside
from ecgfast.store.pseudonyms import Pseudonyms, read_key
from ecgfast.store.reader import open_store
from ecgfast.store.relabel import replace_records

Split = Literal["patient", "column"]


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
    split: Split | None = None,
    key_file: Path | None = None,
) -> LabelSummary:
    """Join labels and assign splits; the signals are not touched.

    Args:
        store: a finished store.
        csv: a table with record_id or patient_id, readable or pseudonyms, and label columns. The
            columns patient_id, site, age and sex correct what the recordings say.
        label_window_days: take only labels whose label_date lies within so many days of the ECG
            (column ecg_date, or the recording's own date), the nearest where there are several.
        columns: label columns to take; None takes all numbers and yes/no columns, no text.
        split: "patient" draws 70/15/15 by patient from the key; "column" takes the CSV's `split`;
            None keeps splits that an earlier CSV gave, and draws where none did.
        key_file: the store's pseudonym key, where it is not STORE.key.
    Raises:
        ConfigError: the CSV does not fit, or splits leak a patient.
    """
    path, csv = Path(store), Path(csv)
    with store_lock(path):
        reader = open_store(path)
        pseudonyms = _pseudonyms(path, key_file, reader.manifest)
        labels = read_labels(csv)
        taken = label_columns(labels, columns, csv)
        records = reader.records
        matches = match_rows(records, labels, pseudonyms)
        named = first_rows(matches)
        if not (named >= 0).any():
            raise ConfigError(
                f"labels {csv}: no line names a record of {path}; ids are paths below the source "
                "without suffix, such as data/1; see the .sources.csv beside the store"
            )
        if label_window_days is None:
            chosen = agreeing_rows(matches, labels, taken)
        else:
            dates = recorded_dates(sources_beside(path), records)
            chosen = nearest_rows(matches, labels, dates, label_window_days)
        records = _with_labels(records, labels, taken, chosen)
        records = _with_personal(records, labels, matches, named, pseudonyms)
        earlier = (reader.manifest["labels"] or {}).get("split", "patient")
        records = _with_splits(records, labels, matches, split, earlier, pseudonyms)
        spec = {
            "csv_sha256": hashlib.sha256(csv.read_bytes()).hexdigest(),
            "columns": taken,
            "window_days": label_window_days,
            "split": split or earlier,
        }
        replace_records(reader, records, spec)
    used = {row for rows in matches for row in rows}
    counts = pc.value_counts(records["split"].drop_null()).to_pylist()
    return LabelSummary(
        num_records=records.num_rows,
        num_matched=int((named >= 0).sum()),
        num_outside_window=int(((named >= 0) & (chosen < 0)).sum()),
        num_unused_lines=labels.num_rows - len(used),
        columns=tuple(taken),
        splits={entry["values"]: entry["counts"] for entry in counts},
    )


def _pseudonyms(path: Path, key_file: Path | None, manifest: dict[str, object]) -> Pseudonyms:
    where = key_file or key_beside(path)
    pseudonyms = Pseudonyms(read_key(where), keep=manifest["identifiers"] == "kept")
    if pseudonyms.fingerprint != manifest["key_fingerprint"]:
        raise ConfigError(
            f"pseudonym key {where}: it is not the key of {path}; give that one with --key-file"
        )
    return pseudonyms


def _with_labels(
    records: pa.Table, labels: pa.Table, columns: list[str], chosen: NDArray[np.int64]
) -> pa.Table:
    """Set label columns; records without a line keep what they had."""
    for name in columns:
        column = stored(_taken(labels[name], chosen))
        if name in records.column_names and records[name].type == column.type:
            column = pc.if_else(pa.array(chosen >= 0), column, records[name])
        records = _set(records, name, column)
    return records


def _with_personal(
    records: pa.Table,
    labels: pa.Table,
    matches: list[list[int]],
    named: NDArray[np.int64],
    pseudonyms: Pseudonyms,
) -> pa.Table:
    """Correct patient, site, age and sex where the CSV says something."""
    for name in PERSONAL:
        if name in labels.column_names:
            column = _taken(labels[name], named).cast(records.schema.field(name).type)
            records = _set(records, name, pc.coalesce(column, records[name]))
    if "patient_id" in labels.column_names and "record_id" in labels.column_names:
        agreeing_rows(matches, labels, ["patient_id"])
        known = set(records["patient_id"].to_pylist())
        patients = [
            name if name is None or name in known else pseudonyms.of("patient", name)
            for name in _taken(labels["patient_id"], named).to_pylist()
        ]
        column = pc.coalesce(
            pa.chunked_array([pa.array(patients, pa.string())]), records["patient_id"]
        )
        given = pa.array([name is not None for name in patients])
        flags = pc.replace_substring_regex(records["flags"], r"no_patient_id;?|;no_patient_id$", "")
        records = _set(records, "patient_id", column)
        records = _set(records, "flags", pc.if_else(given, flags, records["flags"]))
    return records


def _with_splits(
    records: pa.Table,
    labels: pa.Table,
    matches: list[list[int]],
    split: Split | None,
    earlier: Split,
    pseudonyms: Pseudonyms,
) -> pa.Table:
    patients = records["patient_id"].to_pylist()
    if split not in (None, "patient", "column"):
        raise ConfigError(f"--split must be patient or column, got {split!r}")
    if split == "column":
        if "split" not in labels.column_names:
            raise ConfigError("--split column needs a column named split in the CSV")
        column = _taken(labels["split"], agreeing_rows(matches, labels, ["split"]))
        check_splits(patients, column.to_pylist())
        return _set(records, "split", column)
    if "split" in labels.column_names:
        log.info("labels: the column split is not used; --split column takes it")
    if split is None and earlier == "column":
        log.info("splits stay as an earlier CSV gave them; --split patient draws them anew")
        check_splits(patients, records["split"].to_pylist())
        return records
    names = [split_of(pseudonyms, patient) for patient in patients]
    return _set(records, "split", pa.chunked_array([pa.array(names, pa.string())]))


def _taken(column: pa.ChunkedArray, rows: NDArray[np.int64]) -> pa.ChunkedArray:
    """Cells of some lines, null for line -1."""
    return column.take(pa.array(np.maximum(rows, 0), mask=rows < 0))


def _set(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)
