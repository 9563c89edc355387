"""What a report says of given probabilities: patients, thresholds and bins reach every number."""

import json
from dataclasses import replace

import numpy as np
import pytest
from report_pages import html_of
from simulated_cohorts import draw
from sklearn.metrics import average_precision_score, roc_auc_score

from ecgfast.evaluate import planning
from ecgfast.evaluate.discrimination import delong, delong_paired
from ecgfast.evaluate.interval import BINOMIAL, LOGIT_T
from ecgfast.evaluate.planning import POOLED
from ecgfast.evaluate.results import Results, summarise
from ecgfast.evaluate.views import comparison, detection, operating

RUNS = ("ViT", "CNN")
SITE = "site 2, external"


def plan_of(
    is_case: list[bool], patients: list[int], cohorts: dict[str, list[int]]
) -> planning.TestPlan:
    return planning.TestPlan(
        target="ejection_fraction<40",
        is_case=np.array(is_case),
        patients=np.array(patients),
        cohorts={
            name: dict.fromkeys(RUNS, np.array(rows, dtype=np.int64))
            for name, rows in cohorts.items()
        },
        notes=(),
    )


def summary_of(plan: planning.TestPlan, **scores: np.ndarray) -> Results:
    """The numbers of some runs, whose validation records said 0.4."""
    named = {name: {run: by_run[run] for run in scores} for name, by_run in plan.cohorts.items()}
    plan = replace(plan, cohorts=named)
    return summarise(plan, scores, dict.fromkeys(scores, 0.4))


@pytest.fixture(scope="module")
def simulated() -> Results:
    """Four other records, then 80 patients with 1 to 6 ECGs, scored by two runs."""
    y, patient, first, second = draw(np.random.default_rng(8), 80, 1.5, 0.8)
    plan = plan_of(
        [False, True, False, True, *y.tolist()],
        [100, 101, 102, 103, *patient.tolist()],
        {SITE: list(range(4, 4 + len(y))), "site 3, external": []},
    )

    def probability(score: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.1, 0.8, 0.2, 0.6], 1 / (1 + np.exp(1.5 - score))])

    return summary_of(plan, ViT=probability(first), CNN=probability(second))


def test_intervals_and_tests_take_the_records_of_one_patient_together(simulated: Results) -> None:
    plan, by_run = simulated.plan, simulated.cohorts[SITE]
    rows = plan.cohorts[SITE]["ViT"]
    y, patient = plan.is_case[rows], plan.patients[rows]
    scores = {name: result.probability for name, result in by_run.items()}
    for name, result in by_run.items():
        assert result.auroc == delong(y, scores[name], patient)
        assert result.auroc.value == pytest.approx(roc_auc_score(y, scores[name]))
        apart = delong(y, scores[name])
        assert result.auroc.std_error is not None
        assert apart.std_error is not None
        assert result.auroc.std_error > 1.1 * apart.std_error
        expected = average_precision_score(y, scores[name])
        assert result.average_precision.value == pytest.approx(expected)
    test = simulated.paired[SITE]["CNN"]
    assert test == delong_paired(y, scores["ViT"], scores["CNN"], patient)
    apart_test = delong_paired(y, scores["ViT"], scores["CNN"])
    assert test.std_error is not None
    assert apart_test.std_error is not None
    assert test.std_error > 1.1 * apart_test.std_error


def test_every_interval_knows_the_patients() -> None:
    """Six cases of 3 patients and 6 controls of 3: as sure as one record of each would make it."""
    is_case = [True, True, True, False, False, False]
    score = [0.9, 0.8, 0.35, 0.1, 0.4, 0.2]
    valid, known = [False, True, False, True], [0.2, 0.4, 0.1, 0.5]

    def summary(times: int) -> dict[str, object]:
        patients = [10, 11, 12, 13, 14, 15] * times
        plan = plan_of(
            valid + is_case * times, [0, 1, 2, 3, *patients], {SITE: list(range(4, 4 + 6 * times))}
        )
        results = summary_of(plan, CNN=np.array(known + score * times))
        return dict(results.to_json()["cohorts"][SITE]["CNN"])

    once, eight = summary(1), summary(8)
    for path in (
        ("auroc",),
        ("average_precision",),
        ("operating_point", "sensitivity"),
        ("operating_point", "specificity"),
        ("calibration", "brier"),
    ):
        few, many = once, eight
        for key in path:
            few, many = few[key], many[key]  # type: ignore[assignment]  # JSON
        ends = [(part["value"], part["low"], part["high"]) for part in (few, many)]
        assert ends[0] == pytest.approx(ends[1], rel=1e-9), path
        assert few["method"] == many["method"] == LOGIT_T, path


def test_the_threshold_is_that_of_the_run() -> None:
    """The run says 0.4. On the tested records 0.7 would be best, with both shares 1."""
    is_case = [False, True, False, True, *[True] * 3, *[False] * 4]
    score = np.array([0.2, 0.4, 0.1, 0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.2])
    results = summary_of(plan_of(is_case, list(range(11)), {SITE: list(range(4, 11))}), CNN=score)
    point = results.cohorts[SITE]["CNN"].operating
    assert point is not None
    assert results.thresholds == {"CNN": 0.4}
    assert (point.threshold, point.sensitivity.value, point.specificity.value) == (0.4, 1.0, 0.5)
    assert point.sensitivity.method == BINOMIAL
    assert point.sensitivity.low == pytest.approx(0.025 ** (1 / 3))


def test_calibration_bins_have_ten_records() -> None:
    probability = np.array([0.1, 0.6, 0.2, 0.7, *np.linspace(0, 1, 60)])
    is_case = (probability > 0.45).tolist()
    plan = plan_of(is_case, list(range(64)), {SITE: list(range(4, 64))})
    calibration = summary_of(plan, CNN=probability).cohorts[SITE]["CNN"].calibration
    assert calibration is not None
    assert len(calibration.bin_predicted) == 6


def test_the_curve_of_calibration_is_the_last_cohorts_unless_external_ones_are_pooled() -> None:
    probability = np.linspace(0, 1, 60)
    is_case = (probability > 0.45).tolist()
    rows = {SITE: list(range(20)), "site 3, external": list(range(20, 60))}
    for names, last in ((rows, "site 3, external"), ({POOLED: list(range(60)), **rows}, POOLED)):
        results = summary_of(plan_of(is_case, list(range(60)), names), CNN=probability)
        html = html_of(operating=operating(results))
        assert f"Calibration, {last}: records in groups of equal size by probability" in html


def test_metrics_hold_ends_and_method_of_every_number(simulated: Results) -> None:
    numbers = json.loads(json.dumps(simulated.to_json()))
    cohort = numbers["cohorts"][SITE]["ViT"]
    for part in (
        cohort["auroc"],
        cohort["average_precision"],
        cohort["operating_point"]["sensitivity"],
        cohort["operating_point"]["specificity"],
        cohort["calibration"]["brier"],
    ):
        assert 0 <= part["low"] <= part["value"] <= part["high"] <= 1
        assert part["method"] in {LOGIT_T, BINOMIAL}
    empty = numbers["cohorts"]["site 3, external"]["ViT"]
    assert empty["auroc"]["reason"] == "no labelled records"
    assert empty["average_precision"] == {
        "value": None,
        "low": None,
        "high": None,
        "method": "",
        "reason": "no labelled records",
    }


def test_the_page_shows_intervals_and_their_rule(simulated: Results) -> None:
    result = simulated.cohorts[SITE]["ViT"]
    assert result.operating is not None
    share, html = result.operating.sensitivity, html_of(operating=operating(simulated))
    assert f"<td>{share.value:.2f} ({share.low:.2f} to {share.high:.2f})</td>" in html
    precision = result.average_precision
    assert f"<td>{precision.value:.2f} ({precision.low:.2f} to {precision.high:.2f})</td>" in html
    assert "Obuchowski 1997" in html
    assert "Obuchowski 1997" in html_of(detection=detection(simulated))
    assert "Bandos 2005" in html_of(comparison=comparison(simulated))


def test_runs_are_compared_on_the_records_that_test_both() -> None:
    """The second run learned from a patient of the site; its own number leaves him out."""
    rng = np.random.default_rng(3)
    is_case = rng.random(60) < 0.4
    scores = {run: np.where(np.arange(60) < 60, rng.random(60) + is_case, 0) / 2 for run in RUNS}
    plan = plan_of(is_case.tolist(), list(range(60)), {SITE: []})
    rows = {"ViT": np.arange(60), "CNN": np.arange(5, 60)}
    plan = replace(plan, cohorts={SITE: rows, "site 3, external": {"CNN": np.arange(30)}})
    results = summarise(plan, scores, {"ViT": 0.5, "CNN": 0.6})
    both = np.arange(5, 60)
    expected = delong_paired(is_case[both], scores["ViT"][both], scores["CNN"][both])
    assert results.paired == {SITE: {"CNN": expected}}
    points = {run: results.cohorts[SITE][run].operating for run in RUNS}
    assert [point and point.threshold for point in points.values()] == [0.5, 0.6]
    assert "<td>-</td>" in html_of(detection=detection(results))
