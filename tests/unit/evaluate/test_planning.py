"""Who is tested on what: no patient of a run's training, whatever the store and the company."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from recordings import ecg_like, write_wfdb
from two_hospitals import ROWS, TARGET, make, rows_of, write_sources

from ecgfast.errors import ConfigError
from ecgfast.evaluate import planning
from ecgfast.evaluate.planning import POOLED, Learner, plan_for
from ecgfast.labels.commands import draw_again, import_splits, label_store
from ecgfast.runs.register import Register
from ecgfast.store.reader import StoreReader, open_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    return make(tmp_path_factory.mktemp("hospitals"))


def learner(store: StoreReader, *sites: str, fold: int | None = None) -> Learner:
    parts = {
        split: np.concatenate([rows_of(store, site, split) for site in sites])
        for split in ("train", "valid")
    }
    return Learner(register=Register.of(store, parts), fold=fold)  # type: ignore[arg-type]  # two roles


def rows_by_cohort(plan: planning.TestPlan, run: str) -> dict[str, list[int]]:
    return {
        cohort: by_run[run].tolist() for cohort, by_run in plan.cohorts.items() if run in by_run
    }


def test_patients_of_training_and_validation_are_tested_nowhere(store: StoreReader) -> None:
    plan = plan_for(store, TARGET, {"one": learner(store, "1")})
    assert rows_by_cohort(plan, "one") == {
        "site 1, test split": [4, 5],
        "site 2, external": [8, 9, 10, 11],  # without A and C
        "site 3, external": [13, 14],  # without B; M has no label
        POOLED: [8, 9, 10, 11, 13, 14],
    }
    assert list(plan.cohorts)[-1] == POOLED  # sums come last
    # A and B of hospital 1; what they have at other hospitals taught nothing
    assert {run: rows.tolist() for run, rows in plan.training.items()} == {"one": [0, 1]}
    assert {run: rows.tolist() for run, rows in plan.validation.items()} == {"one": [2, 3]}
    fractions = [fraction for *_, fraction in ROWS]
    assert plan.is_case.tolist() == [f is not None and f < 40 for f in fractions]
    assert plan.notes == (
        "site 2: 2 records of patients whom one learned from left out",
        "site 3: 1 records of patients whom one learned from left out",
        f"1 records have no label for {TARGET} and count nowhere",
    )


def test_a_run_is_tested_alike_in_any_company(store: StoreReader) -> None:
    """One run of hospital 1 beside one of hospitals 1 and 2: hospital 2 is external to one."""
    alone = rows_by_cohort(plan_for(store, TARGET, {"one": learner(store, "1")}), "one")
    runs = {"one": learner(store, "1"), "two": learner(store, "1", "2")}
    plan = plan_for(store, TARGET, runs)
    both = rows_by_cohort(plan, "one")
    for cohort in ("site 1, test split", "site 2, external", "site 3, external"):
        assert both[cohort] == alone[cohort]
    assert rows_by_cohort(plan, "two") == {
        "site 1, test split": [4, 5],
        "site 2, test split": [8, 11],
        "site 3, external": [13, 14],
        "test splits of sites 1, 2": [4, 5, 8, 11],
    }
    assert both["site 2, test split"] == [8, 11]  # the same records, to compare the two on
    assert both["test splits of sites 1, 2"] == [4, 5, 8, 11]
    assert both[POOLED] == alone[POOLED]


def test_sites_that_all_runs_never_saw_are_pooled_by_themselves(store: StoreReader) -> None:
    runs = {"one": learner(store, "1"), "three": learner(store, "3")}
    plan = plan_for(store, TARGET, runs)
    assert rows_by_cohort(plan, "one")["external sites 2, 3"] == [8, 9, 10, 11, 13, 14]
    assert rows_by_cohort(plan, "three")["external sites 1, 2"] == [
        0,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
    ]


def test_a_site_without_labels_is_a_note_and_no_empty_row(tmp_path: Path) -> None:
    path = make(tmp_path).path
    table = (tmp_path / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_text(re.sub(r"^(r1[234],\w+),.*$", r"\1,", table, flags=re.M))
    label_store(path, tmp_path / "labels.csv", split="column")
    store = open_store(path)
    plan = plan_for(store, TARGET, {"one": learner(store, "1")})
    assert list(plan.cohorts) == ["site 1, test split", "site 2, external"]  # nothing to pool
    assert plan.main_cohort == "site 2, external"
    assert "site 3: no record has a label for ejection_fraction<40" in plan.notes


@pytest.mark.parametrize("key", [None, "11" * 32])
def test_a_store_converted_again_tests_no_patient_of_training(
    store: StoreReader, tmp_path: Path, key: str | None
) -> None:
    """Under the same key and under another one; before, all its records were external."""
    if key:
        (tmp_path / "again.key").write_text(key)
    again = make(tmp_path, "again", codec="zstd")
    plan = plan_for(again, TARGET, {"one": learner(store, "1")})
    assert rows_by_cohort(plan, "one") == {
        "site 1, test split": [4, 5],
        "site 2, external": [8, 9, 10, 11],
        "site 3, external": [13, 14],
        POOLED: [8, 9, 10, 11, 13, 14],
    }
    assert any("under another pseudonym key" in note for note in plan.notes) is bool(key)


def test_two_hospitals_that_both_number_from_one_keep_their_patients(tmp_path: Path) -> None:
    """A and C of hospital 2 and B of hospital 3 are others than those of hospital 1."""
    store = make(tmp_path, ids="site")
    plan = plan_for(store, TARGET, {"one": learner(store, "1")})
    assert rows_by_cohort(plan, "one")["site 2, external"] == [6, 7, 8, 9, 10, 11]
    assert rows_by_cohort(plan, "one")["site 3, external"] == [12, 13, 14]


def test_a_run_of_a_fold_is_tested_on_it(store: StoreReader, tmp_path: Path) -> None:
    folder = make(tmp_path, ids="site").path
    draw_again(folder)
    folded = open_store(folder)
    fold = np.array(folded.records["fold"].to_pylist())
    here = rows_of(folded, "1")
    held, valid = here[fold[here] == 2], here[fold[here] == 3]
    rest = here[(fold[here] != 2) & (fold[here] != 3)]
    register = Register.of(folded, {"train": rest, "valid": valid})
    plan = plan_for(folded, TARGET, {"one": Learner(register=register, fold=2)})
    assert len(held)
    assert rows_by_cohort(plan, "one")["site 1, held-out fold"] == held.tolist()
    assert not any("held out fold" in note for note in plan.notes)
    runs = {"one": Learner(register=register, fold=2), "split": Learner(register=register)}
    both = plan_for(folded, TARGET, runs).cohorts["site 1, test split or fold"]
    assert both["one"].tolist() == held.tolist()
    assert both["split"].tolist() != held.tolist()


@pytest.mark.parametrize(("targets", "got"), [(["a<1", "b<1"], "a<1, b<1"), ([], "none")])
def test_runs_of_different_targets_are_not_compared(
    store: StoreReader, targets: list[str], got: str
) -> None:
    runs: list[Any] = [
        SimpleNamespace(name=target, meta=SimpleNamespace(target=target)) for target in targets
    ]
    with pytest.raises(ConfigError, match=f"must share one target, got {got};"):
        planning.plan_tests(store, runs)


def test_records_of_no_site_and_larger_sums_first() -> None:
    site = np.array(["-", "1", "2", "3"])
    tests = {
        name: planning._Test(
            training_sites=frozenset(known),
            unseen=np.ones(4, bool),
            in_test=np.zeros(4, bool),
            taught=np.zeros(4, bool),
            validated=np.zeros(4, bool),
            by_fold=False,
        )
        for name, known in (("one", "1"), ("three", "123"))
    }
    assert list(planning._pooled(site, ["1", "2", "3", "-"], tests)) == [
        "test splits of sites 1, 2, 3",
        planning.POOLED,
    ]
    assert [planning._called(name) for name in ("-", "1")] == ["no site", "site 1"]
    few = frozenset("12")
    assert planning._distinct([few, frozenset("345"), few, frozenset("6")]) == [
        frozenset("345"),
        few,
    ]


def test_nothing_left_to_test_is_said(store: StoreReader) -> None:
    everything = Register.of(store, {"train": np.arange(len(store))})
    with pytest.raises(ConfigError, match="is left to test"):
        plan_for(store, TARGET, {"one": Learner(register=everything)})


def test_test_records_of_patients_of_training_are_counted(
    store: StoreReader, tmp_path: Path
) -> None:
    """Later splits put A, whom the run learned from at hospital 1, into test, and E into train."""
    later = make(tmp_path).path
    csv = tmp_path / "later.csv"
    csv.write_text(
        "record_id,split\nr00,test\nr06,test\nr01,train\nr02,valid\nr03,valid\nr04,train\n"
        "r05,test\n"
    )
    import_splits(later, csv)
    plan = plan_for(open_store(later), TARGET, {"one": learner(store, "1")})
    assert rows_by_cohort(plan, "one")["site 1, test split"] == [5]
    assert plan.notes[:2] == (
        "site 1, test split: 1 records of patients whom one learned from left out",
        "site 2: 2 records of patients whom one learned from left out",
    )


def test_a_store_without_the_fold_of_a_run_is_said(store: StoreReader) -> None:
    plan = plan_for(store, TARGET, {"one": learner(store, "1", fold=2)})
    assert rows_by_cohort(plan, "one")["site 1, test split"] == [4, 5]
    assert (
        "one held out fold 2, which this store does not have: it is tested on the test split"
        in plan.notes
    )


def test_why_patients_cannot_be_compared_is_said(store: StoreReader, tmp_path: Path) -> None:
    """By site, A of hospital 1 is another person than A of hospital 2; hospital 1 is the same."""
    other_ids = make(tmp_path, ids="site")
    register = Register.of(store, {"train": np.array([0]), "valid": np.array([2])})
    few = {"one": Learner(register=register)}
    plan = plan_for(other_ids, TARGET, few)
    note = "one was trained on a store with another --patient-ids: its patients are recognised here"
    assert any(text.startswith(note) for text in plan.notes)
    assert not any("pseudonym key" in text or "another key" in text for text in plan.notes)
    # no ECG of its training is here, but the key says that hospital 1 is the same
    rows = register.rows.set_column(1, "content", pa.nulls(2, pa.string()))
    alone = {"one": Learner(register=replace(register, rows=rows))}
    assert "site 1, test split" in plan_for(other_ids, TARGET, alone).cohorts


def test_a_site_of_the_same_name_under_another_key_is_said(
    store: StoreReader, tmp_path: Path
) -> None:
    """No ECG of hospital 1's training is among the others', so nobody knows whether it is it."""
    (tmp_path / "other.key").write_text("11" * 32)
    other = make(tmp_path, "other")
    register = Register.of(store, {"train": np.array([0]), "valid": np.array([2])})
    rows = register.rows.set_column(1, "content", pa.array(["0" * 32, "1" * 32]))
    run = Learner(register=replace(register, rows=rows))
    plan = plan_for(other, TARGET, {"one": run})
    assert "site 1, external" in plan.cohorts
    assert (
        "site 1: one learned from a site of the same name under another key; whether it is the "
        "same hospital is not known"
    ) in plan.notes


def test_records_without_a_site_may_be_of_any(store: StoreReader, tmp_path: Path) -> None:
    """Two files name no site: whether they are external to hospital 1 nobody knows."""
    for number in (0, 1):
        signal = ecg_like(1, seed=500 + number)[0]
        write_wfdb(tmp_path / f"in/n{number}", signal, comments=[f"patient: N{number}"])
    write_sources(tmp_path / "in")
    more = make(tmp_path)
    csv = tmp_path / "nowhere.csv"
    csv.write_text("record_id,ejection_fraction\nn0,30\nn1,60\n")
    label_store(more.path, csv)
    more = open_store(more.path)
    plan = plan_for(more, TARGET, {"one": learner(more, "1")})
    assert rows_by_cohort(plan, "one")["no site, external"] == [0, 1]
    assert "no site: whether one learned from the hospital of these is not known" in plan.notes
    nameless = Register.of(more, {"train": np.array([0]), "valid": np.array([1])})
    note = "one learned from records that name no site: whether they are of a site called external"
    plan = plan_for(store, TARGET, {"one": Learner(register=nameless)})
    assert any(text.startswith(note) for text in plan.notes)
    everybody = {"one": learner(store, "1", "2", "3")}
    assert not any("no site" in text for text in plan_for(store, TARGET, everybody).notes)
