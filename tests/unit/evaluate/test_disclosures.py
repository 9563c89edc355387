"""What a report says before its first number: unknown patients, copies, foreign encoders."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from recordings import convert_quietly, ecg_like, write_wfdb
from two_hospitals import TARGET, make, rows_of

from ecgfast.evaluate import planning
from ecgfast.evaluate.reconstructions import unread_records
from ecgfast.evaluate.views import disclosures
from ecgfast.labels.commands import import_splits
from ecgfast.runs.register import Register, with_encoder
from ecgfast.store.reader import StoreReader, open_store


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Patients 0, 1 and 2; r3 and r4 name nobody; r5 of patient 2 is a copy of r0 of patient 0."""
    signal = ecg_like(5, seed=0)
    for number, patient in enumerate(("0", "0", "1", None, None, "2")):
        comments = [f"patient: {patient}"] if patient else []
        write_wfdb(tmp_path / f"in/r{number}", signal[number % 5], comments=comments)
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    return tmp_path / "store"


def test_drawn_splits(mixed: Path) -> None:
    assert disclosures(open_store(mixed), [], None) == [
        "2 of 6 ECGs name no patient: nobody knows which belong together, and intervals count each "
        "as a patient; 2 of them in no split.",
        "1 ECGs are copies of others, and stand in the same split as these.",
    ]


def test_given_splits_tear_copies_and_hold_unknown_patients(mixed: Path, tmp_path: Path) -> None:
    csv = tmp_path / "splits.csv"
    csv.write_text("record_id,split\nr0,test\nr1,test\nr2,train\nr3,train\nr5,train\n")
    import_splits(mixed, csv)
    assert disclosures(open_store(mixed), [], None) == [
        "2 of 6 ECGs name no patient: nobody knows which belong together, and intervals count each "
        "as a patient; 1 of them in no split.",
        "1 ECGs are copies of others, and the given splits put 1 patients with copies into more "
        "than one split; no run is tested on a copy of what it learned.",
    ]


def plan_of(rows: dict[str, np.ndarray]) -> planning.TestPlan:
    return planning.TestPlan(
        target=TARGET,
        is_case=np.zeros(16, dtype=bool),
        patients=np.arange(16),
        cohorts={"site 1, test split": rows},
        notes=(),
    )


def meta_of(target: str) -> SimpleNamespace:
    return SimpleNamespace(target=target)


def said_of(register: Register, store: StoreReader, tested: list[int]) -> list[str]:
    run: Any = SimpleNamespace(name="ViT", meta=meta_of("ejection_fraction<40"), register=register)
    results: Any = plan_of({"ViT": np.array(tested)})
    return disclosures(store, [run], results)


@pytest.mark.parametrize("other", ["key", "ids"])
def test_an_encoder_whose_patients_cannot_be_compared(tmp_path: Path, other: str) -> None:
    """It read B, K, L and M at hospital 3; E and F are tested, of whom it may have read others."""
    if other == "key":
        (tmp_path / "other.key").write_text("11" * 32)
    store = make(tmp_path)
    theirs = make(tmp_path, "other", ids="site" if other == "ids" else "global")
    taught: dict[Any, np.ndarray] = {"train": rows_of(store, "1", "train")}
    register = Register.of(store, taught)
    assert said_of(register, store, [4, 5]) == []
    encoder = Register.of(theirs, {"pretrain": rows_of(theirs, "3")})
    assert said_of(with_encoder(register, encoder, "run"), store, [4, 5, 13]) == [
        "ViT: its encoder read, without labels, ECGs of a store under another pseudonym key or "
        "kind of patient ids: 1 of the 3 tested records are of patients with an ECG that it read; "
        "whether it read others of the same patients is not known."
    ]
    own = Register.of(store, {"pretrain": rows_of(store, "3")})
    assert said_of(with_encoder(register, own, "run"), store, [4, 5]) == []
    assert said_of(with_encoder(register, own, "run"), store, [4, 5, 13]) == [
        "ViT: its encoder read, without labels, ECGs of the patients of 1 of the 3 tested records."
    ]


def test_a_run_is_told_of_the_records_that_test_it(tmp_path: Path) -> None:
    """The encoder read K and L (rows 13 and 14), who test the other run alone."""
    store = make(tmp_path)
    encoder = Register.of(store, {"pretrain": rows_of(store, "3")})
    taught: dict[Any, np.ndarray] = {"train": rows_of(store, "1", "train")}
    both = with_encoder(Register.of(store, taught), encoder, "run")
    one = SimpleNamespace(name="ViT", meta=meta_of("x=1"), register=both)
    two = SimpleNamespace(name="CNN", meta=meta_of("x=1"), register=Register.of(store, taught))
    pretraining = SimpleNamespace(name="Pretraining", meta=meta_of(""), register=encoder)
    rows = {"ViT": np.array([4, 5]), "CNN": np.array([4, 5, 13, 14])}
    results: Any = plan_of(rows)
    runs: Any = [one, two, pretraining]
    assert disclosures(store, runs, results) == [
        "Pretraining read, without labels, ECGs of the patients of 2 of the 4 tested records."
    ]


def test_only_patients_that_can_be_compared_are_called_unread(tmp_path: Path) -> None:
    """Under another key, that some ECGs were read says nothing of the other patients."""
    (tmp_path / "other.key").write_text("11" * 32)
    store, other = make(tmp_path), make(tmp_path, "other")
    run: Any = SimpleNamespace(register=Register.of(store, {"pretrain": rows_of(store, "3")}))
    rest = [row for row in range(16) if row not in {1, 12, 13, 14, 15}]  # B, K, L and M
    for where, words in (
        (store, "of patients whom pretraining never read"),
        (
            other,
            "of a store under another key or kind of patient ids, none of them an ECG that it read",
        ),
    ):
        rows, said = unread_records(run, where)
        assert (rows.tolist(), said) == (rest, words)
