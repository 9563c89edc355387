"""Patients in a table of records: shared ECGs, unnamed records, pseudonyms beside readable ids."""

import pyarrow as pa
import pytest

from ecgfast.errors import CorruptStoreError
from ecgfast.store.patients import (
    PSEUDONYM,
    is_unnamed,
    patient_groups,
    retained,
    with_pseudonyms,
)
from ecgfast.store.pseudonyms import UNNAMED, Pseudonyms

KEY = bytes(range(32))


def _records(**columns: list[object]) -> pa.Table:
    count = len(columns["patient_id"])
    names = [f"r{number}" for number in range(count)]
    return pa.table({"record_id": names, **columns})


def test_a_shared_ecg_makes_two_ids_one_patient_and_nobody_is_his_own() -> None:
    records = _records(
        patient_id=["A", "B", "C", "A", None, None],
        duplicate_of=[None, None, "r1", None, None, None],
    )
    groups = patient_groups(records)
    assert groups[0] == groups[3]
    assert groups[1] == groups[2]
    assert len(set(groups.tolist())) == 4


def test_a_duplicate_of_a_record_that_is_not_there_is_damage() -> None:
    records = _records(patient_id=["A", "B"], duplicate_of=[None, "r7"])
    with pytest.raises(CorruptStoreError, match="names 1 records that the store does not have"):
        patient_groups(records)


def test_pseudonyms_stand_beside_readable_ids_alone() -> None:
    records = _records(patient_id=["north/A", "north/B"])
    keys = ["north/A", f"{UNNAMED}r1"]
    assert with_pseudonyms(records, keys, Pseudonyms(KEY)) is records
    keeping = Pseudonyms(KEY, keep=True)
    beside = with_pseudonyms(records, keys, keeping)
    assert beside.column_names == [*records.column_names, PSEUDONYM]
    hidden = Pseudonyms(KEY)
    assert beside[PSEUDONYM].to_pylist() == [
        hidden.of("patient", "north/A"),
        hidden.of("record as patient", "r1"),
    ]
    moved = with_pseudonyms(beside, ["south/A", "south/B"], keeping)
    assert moved.column_names == beside.column_names
    assert moved[PSEUDONYM].to_pylist() == [
        hidden.of("patient", "south/A"),
        hidden.of("patient", "south/B"),
    ]


def test_what_is_retained_is_told() -> None:
    records = _records(patient_id=["A", "B"], site=["north", None], snomed=["1", "2"])
    kept = retained(records, identifiers=True, ages_over_89=False)
    assert kept == {
        "identifiers": True,
        "ages_over_89": False,
        "dates": False,
        "sites": True,
        "columns": ["snomed"],
    }
    nowhere = _records(patient_id=["A"], site=pa.array([None], pa.string()))
    assert retained(nowhere, identifiers=False, ages_over_89=True)["sites"] is False


def test_unnamed_records_are_those_that_are_flagged() -> None:
    flags = ["", "no_patient_id", "flat_lead;no_patient_id", "no_patient_id_of_old"]
    records = pa.table({"flags": flags})
    assert is_unnamed(records).tolist() == [False, True, True, False]
