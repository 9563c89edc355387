"""Cohort tables against counts by hand."""

import numpy as np
import pyarrow as pa
import pytest

from ecgfast.evaluate.cohort import cohort_table, natural_order, subgroups
from ecgfast.store.patients import patient_groups

TABLE = pa.table(
    {
        "site": ["1", "1", "1", "1", "10", "10", "2", None],
        "split": ["train", "train", "test", "valid", None, None, "train", "train"],
        "patient_id": ["a", "a", "b", "c", "d", None, None, "e"],
        "ejection_fraction": [30.0, 35.0, 60.0, None, 39.9, 40.0, None, 20.0],
    }
)


def test_rows_are_counted_by_site_and_split() -> None:
    rows = {(r.site, r.split): r for r in cohort_table(TABLE, "ejection_fraction<40")}
    train = rows["1", "train"]
    assert (train.num_records, train.num_cases, train.num_controls) == (2, 2, 0)
    assert train.num_patients == 1
    whole = rows["1", "all"]
    assert (whole.num_cases, whole.num_controls, whole.num_unlabelled) == (2, 1, 1)
    assert whole.prevalence == pytest.approx(2 / 3)
    ten = rows["10", "-"]
    assert (ten.num_cases, ten.num_controls, ten.num_patients) == (1, 1, 2)  # 40.0 is a control
    everything = rows["all", "all"]
    assert (everything.num_records, everything.num_patients) == (8, 7)
    assert (everything.num_cases, everything.num_controls) == (4, 2)


def test_a_cohort_without_labels_has_no_prevalence() -> None:
    rows = {(r.site, r.split): r for r in cohort_table(TABLE, None)}
    assert rows["all", "all"].prevalence is None
    assert rows["2", "train"].num_unlabelled == 1
    assert rows["-", "train"].num_records == 1  # a record of no known site is not lost


def test_sites_are_listed_by_number() -> None:
    sites = [r.site for r in cohort_table(TABLE, None)]
    assert list(dict.fromkeys(sites)) == ["1", "2", "10", "-", "all"]
    assert natural_order(["b", "10", "9", "a"]) == ["9", "10", "a", "b"]


def test_records_without_patient_are_their_own_patient() -> None:
    groups = patient_groups(TABLE)
    assert groups[0] == groups[1]
    assert len(set(groups.tolist())) == 7


def test_subgroups_by_hand() -> None:
    records = pa.table(
        {
            "age": [17.0, 18.0, 59.9, 60.0, 90.0, None],
            "sex": ["F", "M", "F", None, "M", "F"],
            "site": ["10", "9", "9", "9", "9", "9"],
            "device": pa.nulls(6, pa.string()),
        }
    )
    found = {
        column: {group: np.flatnonzero(chosen).tolist() for group, chosen in groups.items()}
        for column, groups in subgroups(records).items()
    }
    assert found == {
        "age": {
            "under 18": [0], "18 to 39": [1], "40 to 59": [2], "60 to 79": [3],
            "80 and over": [4], "unknown": [5],
        },
        "sex": {"unknown": [3], "F": [0, 2, 5], "M": [1, 4]},
        "site": {"9": [1, 2, 3, 4, 5], "10": [0]},
    }  # fmt: skip
    assert subgroups(pa.table({"record_id": ["a"]})) == {}
