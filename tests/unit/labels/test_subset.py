"""Fewer labels: nested by patient, balanced by class, in no order but that of a hash."""

import hashlib
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.labels.selection import Labelled
from ecgfast.labels.subset import label_subset

NUM_PATIENTS, ECGS = 100, 3  # patients 0 to 39 are cases by their second ECG alone; 60 to 99 valid
FRACTIONS = [0.03, 0.1, 0.3, 0.7, 1.0]


def records(names: list[str] | None = None) -> pa.Table:
    """A store's table: ECG r of patient r mod 100."""
    names = names or [f"p{number}" for number in range(NUM_PATIENTS)]
    return pa.table({"patient_id": names * ECGS})


def found(num_valid: int = 40) -> Labelled:
    rows = np.arange(NUM_PATIENTS * ECGS)
    patient, which = rows % NUM_PATIENTS, rows // NUM_PATIENTS
    is_valid = patient >= NUM_PATIENTS - num_valid
    is_case = (which == 1) & ((patient < 20) | (patient >= 90))
    truth = is_case[:, None].astype(np.float64)
    return Labelled(truth=truth, train=rows[~is_valid], valid=rows[is_valid], num_unknown=5)


def patients(rows: NDArray[np.int64]) -> set[int]:
    return set((rows % NUM_PATIENTS).tolist())


def test_the_smaller_subset_is_within_the_larger_one() -> None:
    subsets = [label_subset(records(), found(), fraction=f, seed=7) for f in FRACTIONS]
    for smaller, larger in pairwise(subsets):
        assert set(smaller.train.tolist()) < set(larger.train.tolist())
        assert set(smaller.valid.tolist()) < set(larger.valid.tolist())


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_of_each_class_the_fraction_stays_with_all_ecgs(fraction: float) -> None:
    """20 case and 40 control patients teach, 10 and 30 validate."""
    kept = label_subset(records(), found(), fraction=fraction, seed=0)
    for rows, num_cases, num_controls in ((kept.train, 20, 40), (kept.valid, 10, 30)):
        assert np.all(np.diff(rows) > 0)
        assert len(rows) == ECGS * len(patients(rows))
        cases = {p for p in patients(rows) if p < 20 or p >= 90}
        assert len(cases) == max(1, round(fraction * num_cases))
        assert len(patients(rows) - cases) == max(1, round(fraction * num_controls))
    assert kept.num_unknown == 5


def test_the_subset_is_the_lowest_hashes_of_seed_and_id() -> None:
    def number(patient: int) -> bytes:
        return hashlib.sha256(f"ecgfast labels 3\0p{patient}".encode()).digest()

    expected = {*sorted(range(20), key=number)[:2], *sorted(range(20, 60), key=number)[:4]}
    assert patients(label_subset(records(), found(), fraction=0.1, seed=3).train) == expected


def test_it_depends_on_no_order_of_records() -> None:
    """The same patients in rows of the reverse order."""
    names = [f"p{number}" for number in reversed(range(NUM_PATIENTS))]
    flipped = replace_rows(found())
    kept = label_subset(records(), found(), fraction=0.1, seed=0)
    other = label_subset(records(names), flipped, fraction=0.1, seed=0)
    assert patients(kept.train) == {NUM_PATIENTS - 1 - p for p in patients(other.train)}


def replace_rows(labels: Labelled) -> Labelled:
    rows = np.arange(NUM_PATIENTS * ECGS)
    place = rows // NUM_PATIENTS * NUM_PATIENTS + (NUM_PATIENTS - 1 - rows % NUM_PATIENTS)
    return Labelled(
        truth=labels.truth[place],
        train=place[labels.train],
        valid=place[labels.valid],
        num_unknown=labels.num_unknown,
    )


def test_three_seeds_are_three_subsets() -> None:
    kept = [label_subset(records(), found(), fraction=0.3, seed=seed) for seed in range(3)]
    assert len({tuple(each.train.tolist()) for each in kept}) == 3
    assert len({tuple(each.valid.tolist()) for each in kept}) == 3


def test_all_labels_are_what_was_found_itself() -> None:
    everything = found()
    assert label_subset(records(), everything, fraction=1.0, seed=0) is everything


def test_a_subset_without_a_case_is_refused_with_the_fraction_that_has_one() -> None:
    with pytest.raises(ConfigError) as error:
        label_subset(records(), found(), fraction=0.02, seed=0)
    assert str(error.value) == (
        "finetune.label_fraction=0.02 leaves no case patient to learn from, of 20 case and 40 "
        "control patients with labels in training; take at least 0.025"
    )
    assert len(label_subset(records(), found(), fraction=0.025, seed=0).train) == 2 * ECGS


@pytest.mark.parametrize("number", [1, 5, 20])
def test_so_many_patients_of_each_class_teach(number: int) -> None:
    """Of 20 case and 40 control patients; of 10 and 30 in validation the same shares."""
    kept = label_subset(records(), found(), per_class=number, seed=0)
    cases = {p for p in patients(kept.train) if p < 20}
    assert len(cases) == len(patients(kept.train) - cases) == number
    assert len(kept.train) == 2 * number * ECGS
    watching = {p for p in patients(kept.valid) if p >= 90}
    assert len(watching) == max(1, int(number / 20 * 10 + 0.5))
    assert len(patients(kept.valid) - watching) == max(1, int(number / 40 * 30 + 0.5))


def test_fewer_per_class_are_within_more_and_within_a_fraction() -> None:
    asked = [{"per_class": 2}, {"per_class": 8}, {"fraction": 0.4}, {"fraction": 1.0}]
    subsets = [label_subset(records(), found(), **each, seed=7) for each in asked]
    cases = [{p for p in patients(kept.train) if p < 20} for kept in subsets]
    assert cases[1] == cases[2]  # 8 of 20
    for smaller, larger in pairwise(subsets):
        assert set(smaller.train.tolist()) < set(larger.train.tolist())
        assert set(smaller.valid.tolist()) < set(larger.valid.tolist())


def test_more_per_class_than_there_are_is_refused_with_how_many_there_are() -> None:
    with pytest.raises(ConfigError) as error:
        label_subset(records(), found(), per_class=21, seed=0)
    assert str(error.value) == (
        "finetune.labels_per_class=21 needs so many patients of each class, got 20 case and 40 "
        "control patients with labels in training; take at most 20"
    )
