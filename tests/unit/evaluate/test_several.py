"""Means over targets: their values against scikit-learn, their intervals against the bootstrap."""

import numpy as np
import pytest
from report_pages import fixed, nobody
from simulated_cohorts import draw
from sklearn.metrics import average_precision_score, roc_auc_score

from ecgfast.evaluate import planning
from ecgfast.evaluate.discrimination import areas_of_scores, precision_influence
from ecgfast.evaluate.results import Results, summarise
from ecgfast.evaluate.several import Several, mean_of
from ecgfast.runs.column_task import task_of


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


def test_a_target_without_cases_or_controls_is_not_in_the_mean() -> None:
    """Of b, site 2 has cases alone, and site 3 has one class of either."""
    rng = np.random.default_rng(7)
    truths = {"a=1": rng.random(90) < 0.4, "b=1": rng.random(90) < 0.5}
    truths["b=1"][30:] = True
    truths["a=1"][60:] = False
    scores = {name: rng.random(90) + 0.5 * truth for name, truth in truths.items()}

    def results(name: str) -> Results:
        rows = np.arange(len(scores[name]))
        plan = planning.TestPlan(
            target=name,
            is_case=truths[name],
            patients=rows // 2,
            cohorts={f"site {n + 1}": {"ViT": rows[30 * n : 30 * n + 30]} for n in range(3)},
            notes=(),
        )
        return summarise(plan, {"ViT": scores[name]}, {"ViT": fixed(None)}, nobody(90))

    task = task_of(list(truths))
    means = Several(task=task, results={n: results(n) for n in truths}, runs={}).means()
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
