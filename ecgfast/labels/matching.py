"""Lines of a CSV and records of a store: which belong together, and what lines correct."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from ecgfast import log
from ecgfast.errors import ConfigError
from ecgfast.labels.choice import agreeing_rows, cells, first_rows
from ecgfast.labels.columns import set_column
from ecgfast.labels.naming import stored_id
from ecgfast.records import NO_PATIENT, stored_age
from ecgfast.store.csv_files import read_sources, replace_patients
from ecgfast.store.format import key_beside, sources_beside
from ecgfast.store.patients import UNNAMED, Pseudonyms, is_unnamed, key_of_unnamed, read_key
from ecgfast.store.reader import StoreReader
from ecgfast.store.table import recordings_of
from ecgfast.vocabulary import PatientIds


def match_rows(records: pa.Table, labels: pa.Table, pseudonyms: Pseudonyms) -> list[list[int]]:
    """For each record the lines of the CSV that name it, in the order of the CSV.

    Joined on record_id where the CSV has one, else on patient_id and the patient's site. Readable
    ids are turned into pseudonyms with the store's key; pseudonyms are taken as they are.

    Raises:
        ConfigError: several sites number their own patients, and the CSV has no column `site`.
    """
    if "record_id" not in labels.column_names:
        lines = _lines_by_patient(records, labels, pseudonyms)
        return [lines.get(name, []) for name in records["patient_id"].to_pylist()]
    ours = recordings_of(records)
    known = set(ours)
    lines = defaultdict(list)
    for number, name in enumerate(labels["record_id"].to_pylist()):
        if name is not None:
            lines[stored_id(name, known, pseudonyms)].append(number)
    return [lines.get(name, []) for name in ours]


def _lines_by_patient(
    records: pa.Table, labels: pa.Table, pseudonyms: Pseudonyms
) -> dict[str, list[int]]:
    """Stored patient id -> lines of the CSV."""
    known = set(records["patient_id"].to_pylist())
    names = labels["patient_id"].to_pylist()
    sites = _sites_of_lines(records, labels, pseudonyms)
    sites_of: dict[str, set[str | None]] = defaultdict(set)
    for name, site in zip(names, sites, strict=True):
        sites_of[name].add(site)
    lines: dict[str, list[int]] = defaultdict(list)
    for number, (name, site) in enumerate(zip(names, sites, strict=True)):
        if name is None:
            continue
        if name in known:
            lines[name].append(number)
            continue
        lines[pseudonyms.patient(name, site)].append(number)
        siteless = pseudonyms.patient(name, None)  # of a recording that names no site
        if site is not None and siteless in known and pseudonyms.patient_ids == "site":
            if len(sites_of[name]) > 1:
                raise ConfigError(
                    f"labels: line {number + 2} and others give one patient_id at "
                    f"{len(sites_of[name])} sites, and recordings of it name no site; join by "
                    "record_id"
                )
            lines[siteless].append(number)
    return lines


def _sites_of_lines(
    records: pa.Table, labels: pa.Table, pseudonyms: Pseudonyms
) -> list[str | None]:
    """The site whose patient each line means."""
    if "site" in labels.column_names:
        sites: list[str | None] = labels["site"].to_pylist()
        return sites
    ours = set(records["site"].to_pylist())
    if pseudonyms.patient_ids == "global" or len(ours) == 1:
        return [next(iter(ours)) if len(ours) == 1 else None] * labels.num_rows
    known = set(records["patient_id"].to_pylist())
    if all(name is None or name in known for name in labels["patient_id"].to_pylist()):
        return [None] * labels.num_rows  # pseudonyms, which know their site
    raise ConfigError(
        f"labels: joined by patient_id, got no column site, needed as the store has {len(ours)} "
        "sites that each number their own patients; add the column site, or join by recording "
        "with --id-column NAME, or convert with --patient-ids global where one number is one "
        "person everywhere"
    )


@dataclass(frozen=True, kw_only=True)
class Identities:
    """Readable names of N records, from the table beside the store.

    Attributes:
        store: its folder.
        record_id: (N,) as the store has them.
        record: (N,) readable ids, None where the table has none.
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
        unnamed = is_unnamed(records)
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

    def write_changes(self, patients: Sequence[str]) -> None:
        """Write patient keys that changed into the table beside the store, for the next join."""
        changed = {
            name: "" if now.startswith(UNNAMED) else now
            for name, before, now in zip(self.record_id, self.patient, patients, strict=True)
            if before != now
        }
        if changed and sources_beside(self.store).exists():
            replace_patients(self.store, changed)


def store_pseudonyms(reader: StoreReader, key_file: str | Path | None) -> Pseudonyms:
    """The key of a store, and whether its patient ids belong to sites.

    Raises:
        ConfigError: no key, or that of another store.
    """
    path, manifest = reader.path, reader.manifest
    where = Path(key_file or key_beside(path))
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


def with_identities(
    records: pa.Table,
    labels: pa.Table,
    matches: list[list[int]],
    names: Identities,
    pseudonyms: Pseudonyms,
    *,
    ages_over_89: bool,
) -> tuple[pa.Table, list[str]]:
    """Correct patient, site, age and sex where the CSV has a value.

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
