"""Means over targets: their values against scikit-learn, their intervals against the bootstrap."""

import numpy as np
import pytest
from report_pages import fixed, nobody
from simulated_cohorts import draw
from sklearn.metrics import average_precision_score, roc_auc_score

from ecgfast.evaluate import planning
from ecgfast.evaluate.discrimination import areas_of_scores, precision_influence
from ecgfast.evaluate.interval import mean_interval
from ecgfast.evaluate.results import Results, summarise
from ecgfast.evaluate.several import Mean, Several, mean_of
from ecgfast.runs.column_task import Classes, task_of


def test_the_interval_is_that_of_a_bootstrap_over_patients() -> None:
    """Two targets of 150 patients with up to six ECGs; a fifth has no label of the second."""
    rng = np.random.default_rng(5)
    y, patient, first, second = draw(rng, 150, 1.2, 0.6)
    other = (y ^ (rng.random(len(y)) < 0.1)).astype(bool)
    rows = [np.arange(len(y)), np.flatnonzero(patient % 5 > 0)]
    truths, scores = [y.astype(bool), other], [first, second]

    def areas(chosen: np.ndarray) -> float:
        found = []
        for own, truth, score in zip(rows, truths, scores, strict=True):
            taken = chosen[np.isin(chosen, own)]
            found.append(roc_auc_score(truth[taken], score[taken]))
        return float(np.mean(found))

    of_patient = [np.flatnonzero(patient == each) for each in np.unique(patient)]
    drawn = [
        areas(np.concatenate([of_patient[n] for n in rng.integers(0, len(of_patient), 150)]))
        for _ in range(400)
    ]
    parts = []
    for own, truth, score in zip(rows, truths, scores, strict=True):
        value, influence = areas_of_scores(truth[own], score[own][None])
        parts.append((float(value[0]), own, influence[0]))
    found = mean_of(parts, patient)
    assert found.value == pytest.approx(areas(np.arange(len(y))))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.012)  # 400 draws, and another kind of interval
    assert found.high == pytest.approx(high, abs=0.012)


def test_a_target_given_twice_has_the_interval_of_one() -> None:
    y, patient, score, _ = draw(np.random.default_rng(9), 60, 1.2, 0.6)
    value, influence = areas_of_scores(y.astype(bool), score[None])
    part = float(value[0]), np.arange(len(y)), influence[0]
    once, twice = mean_of([part], patient), mean_of([part, part], patient)
    assert (twice.value, twice.low, twice.high) == pytest.approx((once.value, once.low, once.high))


def test_the_mean_of_average_precisions_is_scikit_learns() -> None:
    y, patient, first, second = draw(np.random.default_rng(6), 60, 1.2, 0.6)
    rows, parts = np.arange(len(y)), []
    for score in (first, second):
        value, influence = precision_influence(y.astype(bool), score)
        parts.append((value, rows, influence))
    expected = np.mean([average_precision_score(y, score) for score in (first, second)])
    assert mean_of(parts, patient).value == pytest.approx(expected)


def results_of(
    name: str, is_case: np.ndarray, score: np.ndarray, patients: np.ndarray, num_sites: int
) -> Results:
    """Of one target, at sites of as many records each."""
    rows = np.array_split(np.arange(len(score)), num_sites)
    plan = planning.TestPlan(
        target=name,
        is_case=is_case,
        patients=patients,
        cohorts={f"site {n}": {"ViT": own} for n, own in enumerate(rows, 1)},
        notes=(),
    )
    return summarise(plan, {"ViT": score}, {"ViT": fixed(None)}, nobody(len(score)))


def test_a_target_without_cases_or_controls_is_not_in_the_mean() -> None:
    """Of b, site 2 has cases alone, and site 3 has one class of either."""
    rng = np.random.default_rng(7)
    truths = {"a=1": rng.random(90) < 0.4, "b=1": rng.random(90) < 0.5}
    truths["b=1"][30:] = True
    truths["a=1"][60:] = False
    scores = {name: rng.random(90) + 0.5 * truth for name, truth in truths.items()}

    task = task_of(list(truths))
    results = {
        name: results_of(name, truth, scores[name], np.arange(90) // 2, 3)
        for name, truth in truths.items()
    }
    means = Several(task=task, results=results, runs={}).means()
    for site, part, names in (("site 1", slice(0, 30), "ab"), ("site 2", slice(30, 60), "a")):
        mean = means[site]["ViT"]
        assert mean.num_targets == len(names)
        for found, value_of in (
            (mean.auroc, roc_auc_score),
            (mean.average_precision, average_precision_score),
        ):
            expected = [value_of(truths[f"{n}=1"][part], scores[f"{n}=1"][part]) for n in names]
            assert found.value == pytest.approx(np.mean(expected))
    assert means["site 3"] == {}


def test_one_patient_has_no_interval() -> None:
    found = mean_of([(0.5, np.arange(2), np.array([0.1, -0.1]))], np.zeros(2, np.intp))
    assert (found.value, found.low, found.reason) == (0.5, None, "records of a single patient")


def mean_of_site(
    truths: dict[str, np.ndarray], scores: dict[str, np.ndarray], patients: np.ndarray
) -> Mean:
    results = {n: results_of(n, truth, scores[n], patients, 1) for n, truth in truths.items()}
    return Several(task=task_of(list(truths)), results=results, runs={}).means()["site 1"]["ViT"]


def test_records_given_twice_add_no_certainty_to_a_mean() -> None:
    rng = np.random.default_rng(8)
    truths = {name: rng.random(40) < 0.4 for name in ("a=1", "b=1")}
    scores = {name: rng.random(40) + 0.5 * truth for name, truth in truths.items()}
    once = mean_of_site(truths, scores, np.arange(40))
    twice = mean_of_site(
        {name: np.tile(truth, 2) for name, truth in truths.items()},
        {name: np.tile(score, 2) for name, score in scores.items()},
        np.tile(np.arange(40), 2),
    )
    for found, same in (
        (once.auroc, twice.auroc),
        (once.average_precision, twice.average_precision),
    ):
        assert (same.low, same.high) == pytest.approx((found.low, found.high))


def test_a_target_with_cases_of_one_patient_leaves_the_mean_without_an_interval() -> None:
    """How much another case patient would have changed it, nobody knows."""
    rng = np.random.default_rng(9)
    truths = {"a=1": rng.random(40) < 0.4, "b=1": np.arange(40) < 2}
    scores = {name: rng.random(40) for name in truths}
    found = mean_of_site(truths, scores, np.arange(40) // 2)
    areas = [roc_auc_score(truths[name], scores[name]) for name in truths]
    assert (found.num_targets, found.auroc.value) == (2, pytest.approx(np.mean(areas)))
    for part in (found.auroc, found.average_precision):
        assert (part.low, part.high, part.reason) == (None, None, "cases of a single patient")


def test_accuracy_counts_patients_and_the_matrix_has_true_classes_in_rows() -> None:
    """Ten patients with two records of one class and one answer each: 6 of 10 are right."""
    true = np.repeat([0, 0, 0, 0, 1, 1, 1, 2, 2, 2], 2)
    said = np.repeat([0, 0, 0, 2, 1, 1, 0, 2, 0, 0], 2)
    names = ["AF", "SR", "VT"]
    results = {
        f"rhythm={name}": results_of(
            f"rhythm={name}", true == n, np.where(said == n, 0.8, 0.1), np.arange(20) // 2, 1
        )
        for n, name in enumerate(names)
    }
    task = Classes(targets=("rhythm",), classes=tuple(names))
    found = Several(task=task, results=results, runs={}).confusions()["site 1"]["ViT"]
    assert found.counts == [[6, 0, 2], [2, 4, 0], [4, 0, 2]]
    expected = mean_interval(np.arange(10) < 6, None, if_empty="")
    assert (found.accuracy.value, found.accuracy.low) == pytest.approx((0.6, expected.low))
