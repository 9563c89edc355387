"""Patients and sites of a store's records: their readable keys, and what a CSV corrects in them."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.labels.assign import set_column
from ecgfast.labels.matching import agreeing_rows, first_rows
from ecgfast.labels.table import parse_date
from ecgfast.records import NO_PATIENT, stored_age
from ecgfast.store.csv_files import read_sources, replace_patients
from ecgfast.store.format import key_beside, sources_beside
from ecgfast.store.patients import UNNAMED, Pseudonyms, key_of_unnamed, read_key
from ecgfast.store.reader import StoreReader
from ecgfast.vocabulary import PatientIds


@dataclass(frozen=True, kw_only=True)
class Identities:
    """Readable names of N records, from the table beside the store.

    Attributes:
        store: its folder.
        record_id: (N,) as the store has them.
        record: (N,) readable ids, None where the table does not say.
        patient: (N,) readable keys of the patients (`Pseudonyms.patient_key`).
        recorded: (N,) dates as the files had them.
    """

    store: Path
    record_id: list[str]
    record: list[str | None]
    patient: list[str]
    recorded: list[str]

    @classmethod
    def of(cls, reader: StoreReader) -> Self:
        """Read them. Without the table, pseudonyms take the place of readable keys."""
        records = reader.records
        ids = records["record_id"].to_pylist()
        lines = read_sources(reader.path)
        found = [(lines or {}).get(name, {}) for name in ids]
        record = [line.get("record") or None for line in found]
        unnamed = [NO_PATIENT in flags.split(";") for flags in records["flags"].to_pylist()]
        stored = records["patient_id"].to_pylist()
        patient = [
            key_of_unnamed(name or ids[row])
            if unnamed[row]
            else found[row].get("patient") or stored[row]
            for row, name in enumerate(record)
        ]
        if not all(record):
            log.warning(
                f"{sources_beside(reader.path)} names no patients: splits that are drawn now "
                "depend on the pseudonym key, and no other store has them"
            )
        recorded = [line.get("recorded") or "" for line in found]
        return cls(
            store=reader.path, record_id=ids, record=record, patient=patient, recorded=recorded
        )

    def recorded_dates(self) -> list[datetime.date | None]:
        """(N,) dates of the recordings; None where nobody knows."""
        return [parse_date(text) for text in self.recorded]

    def write_changes(self, patients: Sequence[str]) -> None:
        """Keep other keys than before for the next join."""
        changed = {
            name: "" if now.startswith(UNNAMED) else now
            for name, before, now in zip(self.record_id, self.patient, patients, strict=True)
            if before != now
        }
        if changed and sources_beside(self.store).exists():
            replace_patients(self.store, changed)


def store_pseudonyms(reader: StoreReader, key_file: Path | None) -> Pseudonyms:
    """The key of a store, and whose ids it has made unreadable.

    Raises:
        ConfigError: no key, or that of another store.
    """
    path, manifest = reader.path, reader.manifest
    where = key_file or key_beside(path)
    keep = manifest["identifiers"] == "kept"
    pseudonyms = Pseudonyms(read_key(where), keep, patient_ids(reader))
    if pseudonyms.fingerprint != manifest["key_fingerprint"]:
        raise ConfigError(
            f"pseudonym key {where}: it is not the key of {path}; give that one with --key-file"
        )
    return pseudonyms


def patient_ids(reader: StoreReader) -> PatientIds:
    """Whose the patient ids of a store are; before this was asked, one id was one person."""
    ids: PatientIds = reader.manifest.get("patients", {}).get("ids", "global")
    return ids


def one_ecg_each(reader: StoreReader) -> bool:
    """Whether the user said that each record without a patient is another one."""
    return bool(reader.manifest.get("patients", {}).get("one_ecg_each", False))


def keeps_ages_over_89(reader: StoreReader) -> bool:
    """Whether a store keeps ages over 89 apart; before this was asked, all did."""
    return bool(reader.manifest.get("retained", {}).get("ages_over_89", True))


def splits_of(reader: StoreReader) -> dict[str, Any]:
    """How the splits of a store were made."""
    labels = reader.manifest["labels"] or {}
    drawn = {"kind": labels.get("split", "patient"), "drawn_by": "label" if labels else "convert"}
    splits: dict[str, Any] = reader.manifest.get("splits", drawn)
    return splits


def with_identities(
    records: pa.Table,
    labels: pa.Table,
    matches: list[list[int]],
    names: Identities,
    pseudonyms: Pseudonyms,
    *,
    ages_over_89: bool,
) -> tuple[pa.Table, list[str]]:
    """Correct patient, site, age and sex where the CSV says something.

    Args:
        records: of the store.
        labels: of `read_labels`.
        matches: of `match_rows`.
        names: of the records.
        pseudonyms: of the store.
        ages_over_89: keep these apart.
    Returns:
        the rows; (N,) readable keys of their patients.
    Raises:
        ConfigError: two lines of one record name different patients, or a site changes for a
            patient whose readable id is not known.
    """
    first = first_rows(matches)
    site_before = records["site"].to_pylist()
    for name in ("site", "age", "sex"):
        if name in labels.column_names:
            column = cells(labels[name], first)
            if name == "age":
                ages = [stored_age(age, over_89=ages_over_89) for age in column.to_pylist()]
                column = pa.chunked_array([pa.array(ages, pa.float64())])
            records = set_column(records, name, pc.coalesce(column, records[name]))
    given: list[str | None] = [None] * records.num_rows
    if {"patient_id", "record_id"} <= set(labels.column_names):
        agreeing_rows(matches, labels, ["patient_id"])
        given = cells(labels["patient_id"], first).to_pylist()
    site = records["site"].to_pylist()
    stored: list[str] = records["patient_id"].to_pylist()
    flags: list[str] = records["flags"].to_pylist()
    keys = list(names.patient)
    key_of = {} if pseudonyms.keep else dict(zip(stored, keys, strict=True))
    for row, patient in enumerate(given):
        moved = pseudonyms.patient_ids == "site" and site[row] != site_before[row]
        if patient is not None and patient in key_of:  # a pseudonym of this store
            stored[row], keys[row] = patient, key_of[patient]
        elif patient is not None:
            keys[row] = pseudonyms.patient_key(patient, site[row])
            stored[row] = pseudonyms.patient(patient, site[row])
        elif moved and not keys[row].startswith(UNNAMED):
            if keys[row] == stored[row] and not pseudonyms.keep:
                raise ConfigError(
                    f"the CSV gives patients of {names.store} another site, where their ids are "
                    "those of others, and no readable id is known of them; give patient_id too"
                )
            readable = pseudonyms.readable(keys[row], site_before[row])
            keys[row] = pseudonyms.patient_key(readable, site[row])
            stored[row] = pseudonyms.patient(readable, site[row])
        if patient is not None:
            flags[row] = ";".join(f for f in flags[row].split(";") if f != NO_PATIENT)
    records = set_column(records, "patient_id", pa.array(stored, pa.string()))
    return set_column(records, "flags", pa.array(flags, pa.string())), keys


def cells(column: pa.ChunkedArray, rows: NDArray[np.int64]) -> pa.ChunkedArray:
    """Cells of some lines, null for line -1."""
    return column.take(pa.array(np.maximum(rows, 0), mask=rows < 0))
