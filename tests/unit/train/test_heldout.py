"""Held-out records: whole patients, stable, of about the share that was asked for."""

from pathlib import Path

import numpy as np
import pytest
from recordings import convert_quietly, ecg_like, write_wfdb
from training_runs import make_store

from ecgfast.labels.commands import import_splits
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.train.dataset import pretraining_rows, split_heldout


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    return open_store(make_store(tmp_path_factory.mktemp("cohort"), num_records=200))


def test_no_patient_is_on_both_sides(store: StoreReader) -> None:
    rows = np.arange(len(store))
    train, held = split_heldout(store, rows, fraction=0.3, seed=0)
    patients = np.array(store.records.column("patient_id").to_pylist())
    assert not set(patients[train]) & set(patients[held])
    assert sorted([*train, *held]) == list(rows)
    assert 0.15 < len(held) / len(rows) < 0.45  # 100 patients: three standard deviations


def test_the_split_does_not_depend_on_the_other_records(store: StoreReader) -> None:
    everything = split_heldout(store, np.arange(len(store)), fraction=0.3, seed=0)[1]
    half = split_heldout(store, np.arange(100), fraction=0.3, seed=0)[1]
    np.testing.assert_array_equal(half, everything[everything < 100])


def test_another_seed_is_another_split(store: StoreReader) -> None:
    rows = np.arange(len(store))
    a, b = (split_heldout(store, rows, fraction=0.3, seed=s)[1] for s in (0, 1))
    assert set(a) != set(b)


def test_nothing_is_held_out_by_default(store: StoreReader) -> None:
    train, held = split_heldout(store, np.arange(5), fraction=0.0, seed=0)
    np.testing.assert_array_equal(train, np.arange(5))
    assert len(held) == 0


def test_test_patients_are_left_out_and_said(
    store: StoreReader, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fifth pair of records is of a test patient."""
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    caplog.set_level("INFO")
    everything = np.arange(len(store))
    expected = everything[everything // 2 % 5 != 4]
    np.testing.assert_array_equal(pretraining_rows(store, None, include_test=False), expected)
    assert "40 records of test patients left out" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(pretraining_rows(store, None, include_test=True), everything)
    np.testing.assert_array_equal(
        pretraining_rows(store, "split=train", include_test=False),
        everything[everything // 2 % 5 < 3],
    )
    assert not caplog.text


def test_no_record_of_a_test_patient_is_read_whatever_its_own_split(tmp_path: Path) -> None:
    """A published split names one ECG of patient 0 alone, and puts a copy of it into train."""
    signal = ecg_like(4, seed=0)
    for number, (patient, which) in enumerate([(0, 0), (0, 1), (1, 2), (2, 0), (3, 3)]):
        comments = [f"patient: {patient}"]
        write_wfdb(tmp_path / f"in/r{number}", signal[which], comments=comments)
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    csv = tmp_path / "splits.csv"
    csv.write_text("record_id,split\nr0,test\nr2,train\nr3,train\n")
    import_splits(tmp_path / "store", csv)
    torn = open_store(tmp_path / "store")
    assert pretraining_rows(torn, None, include_test=False).tolist() == [2, 4]
