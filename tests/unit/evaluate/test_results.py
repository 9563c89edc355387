"""What a report says of given probabilities: patients, thresholds and bins reach every number."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from report_pages import fixed, html_of, nobody
from simulated_cohorts import draw
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    precision_score,
    roc_auc_score,
)

from ecgfast.evaluate import planning
from ecgfast.evaluate.baselines import Fitted, age_and_sex
from ecgfast.evaluate.discrimination import delong, delong_paired
from ecgfast.evaluate.findings import calibration, comparison, detection, operating
from ecgfast.evaluate.interval import BINOMIAL, LOGIT_T
from ecgfast.evaluate.operating import (
    Fixed,
    Recalibration,
    operating_point,
    recalibration,
)
from ecgfast.evaluate.operating import calibration as calibration_of
from ecgfast.evaluate.planning import POOLED
from ecgfast.evaluate.results import Results, summarise

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
    return summarise(plan, scores, dict.fromkeys(scores, fixed(0.4)), nobody(len(plan.is_case)))


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


def test_recalibrated_numbers_and_subgroups_know_the_patients(simulated: Results) -> None:
    rows = simulated.plan.cohorts[SITE]["ViT"]
    plan = replace(simulated.plan, cohorts={SITE: {"ViT": rows}})
    score = simulated.scores["ViT"]
    corrects = Recalibration(num_cases=2, num_controls=2, intercept=-0.5, slope=0.7)
    of_validation = Fixed(thresholds={"youden": 0.4}, recalibration=corrects)
    sites = pa.table({"site": ["2"] * len(score)})
    found = summarise(plan, {"ViT": score}, {"ViT": of_validation}, sites)
    y, patient, probability = plan.is_case[rows], plan.patients[rows], score[rows]
    result, group = found.cohorts[SITE]["ViT"], found.groups["site"]["2"]["ViT"]
    assert result.calibration == calibration_of(y, probability, patient)
    assert result.recalibrated == calibration_of(y, corrects.of(probability), patient)  # type: ignore[arg-type]  # was fitted
    assert result.recalibrated != calibration_of(y, corrects.of(probability))  # type: ignore[arg-type]  # was fitted
    assert group.auroc == delong(y, probability, patient) != delong(y, probability)
    assert group.operating == operating_point(y, probability, 0.4, patient)
    assert group.operating != operating_point(y, probability, 0.4)


@pytest.mark.parametrize(("num_cases", "is_computed"), [(10, True), (9, False), (31, False)])
def test_a_subgroup_has_ten_cases_and_ten_controls(num_cases: int, *, is_computed: bool) -> None:
    is_case = (np.arange(40) < num_cases).tolist()
    plan = replace(plan_of(is_case, list(range(40)), {}), cohorts={SITE: {"ViT": np.arange(40)}})
    sites = pa.table({"site": ["2"] * 40})
    score = np.random.default_rng(0).random(40)
    found = summarise(plan, {"ViT": score}, {"ViT": fixed(0.5)}, sites).groups["site"]["2"]["ViT"]
    assert (found.auroc.value is not None) is (found.operating is not None) is is_computed


def test_the_threshold_is_that_of_the_run() -> None:
    """The run says 0.4. On the tested records 0.7 would be best, with both shares 1."""
    is_case = [False, True, False, True, *[True] * 3, *[False] * 4]
    score = np.array([0.2, 0.4, 0.1, 0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.2])
    results = summary_of(plan_of(is_case, list(range(11)), {SITE: list(range(4, 11))}), CNN=score)
    point = results.cohorts[SITE]["CNN"].operating
    assert point is not None
    assert results.to_json()["thresholds"] == {"CNN": 0.4}
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
        html = html_of(calibration=calibration(results))
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


def test_every_comparison_of_a_report_counts_in_the_correction() -> None:
    """Two runs against the first in two cohorts, of which one has no cases: two tests."""
    rng = np.random.default_rng(5)
    is_case = [*(rng.random(80) < 0.4).tolist(), *[False] * 10]
    scores = {run: rng.random(90) + np.array(is_case) * lift for run, lift in
              (("A", 0.6), ("B", 0.0), ("C", 0.5))}  # fmt: skip
    plan = replace(
        plan_of(is_case, list(range(90)), {}),
        cohorts={
            SITE: dict.fromkeys(scores, np.arange(80)),
            "site 3, external": dict.fromkeys(scores, np.arange(80, 90)),
        },
    )
    results = summarise(plan, scores, dict.fromkeys(scores, fixed(None)), nobody(90))
    raw = {run: test.p_value for run, test in results.paired[SITE].items()}
    assert raw["B"] is not None
    assert raw["C"] is not None
    assert raw["B"] < raw["C"]
    assert results.to_json()["p_holm"] == {
        SITE: {"B": pytest.approx(2 * raw["B"]), "C": pytest.approx(max(raw["C"], 2 * raw["B"]))}
    }


def test_groups_of_few_cases_are_not_computed_and_age_and_sex_are_compared() -> None:
    rng = np.random.default_rng(6)
    number = 400
    age, sex = rng.uniform(20, 90, number), np.where(rng.random(number) < 0.5, "F", "M")
    y = rng.random(number) < 1 / (1 + np.exp(-(age - 70) / 10))
    records = pa.table({"age": age, "sex": sex})
    score = np.clip(0.3 * y + 0.7 * rng.random(number), 0, 1)
    test, young = np.arange(200, number), (age >= 18) & (age < 40)
    plan = replace(
        plan_of(y.tolist(), list(range(number)), {}),
        cohorts={SITE: {"ViT": test}},
        training={"ViT": np.arange(200)},
    )
    of_validation = Fixed(
        thresholds={"youden": 0.5, "sensitivity_90": 0.3},
        recalibration=recalibration(y[:200], score[:200]),
    )
    results = summarise(plan, {"ViT": score}, {"ViT": of_validation}, records)
    numbers = json.loads(json.dumps(results.to_json()))
    groups = numbers["subgroups"]
    assert groups["cohort"] == SITE
    few = groups["age"]["18 to 39"]["ViT"]
    assert few["auroc"]["num_cases"] == y[test][young[test]].sum() < 10
    assert few["auroc"]["value"] is few["operating"] is None
    assert few["auroc"]["reason"] == "fewer than 10 cases or controls"
    men = test[sex[test] == "M"]
    got = groups["sex"]["M"]["ViT"]
    assert got["auroc"]["value"] == pytest.approx(roc_auc_score(y[men], score[men]))
    assert got["operating"]["sensitivity"]["value"] == (score[men] >= 0.5)[y[men]].mean()
    fitted = age_and_sex(records, y, np.arange(200))
    assert isinstance(fitted, Fitted)
    baseline = fitted.probability
    against = numbers["age_and_sex"]["cohorts"][SITE]["ViT"]
    assert against["auroc"]["value"] == pytest.approx(roc_auc_score(y[test], baseline[test]))
    expected = delong_paired(y[test], score[test], baseline[test])
    assert against["run_minus"]["p_value"] == expected.p_value
    assert numbers["age_and_sex"]["not_fitted"] == {}
    result = numbers["cohorts"][SITE]["ViT"]
    assert result["operating_points"]["youden"] == result["operating_point"]
    found = score[test] >= 0.3
    assert result["operating_points"]["sensitivity_90"]["ppv"]["value"] == pytest.approx(
        precision_score(y[test], found)
    )
    assert numbers["fixed_on_validation"]["ViT"]["recalibration"]["num_cases"] == y[:200].sum()
    corrected = of_validation.recalibration.of(score[test])
    assert corrected is not None
    assert result["recalibrated"]["brier"]["value"] == pytest.approx(
        brier_score_loss(y[test], corrected)
    )
    assert result["net_benefit_recalibrated"]["model"] != result["net_benefit"]["model"]
    nothing = summarise(plan, {"ViT": score}, {"ViT": of_validation}, nobody(number))
    assert nothing.to_json()["age_and_sex"] == {
        "not_fitted": {"ViT": "neither age nor sex is known"}, "how": {}, "cohorts": {},
    }  # fmt: skip


def test_the_page_shows_intervals_and_their_rule(simulated: Results) -> None:
    result = simulated.cohorts[SITE]["ViT"]
    assert result.operating is not None
    share, html = result.operating.sensitivity, html_of(operating=operating(simulated))
    assert f"<td>{share.value:.2f} ({share.low:.2f} to {share.high:.2f})</td>" in html
    precision = result.average_precision
    assert "Obuchowski 1997" in html
    html = html_of(detection=detection(simulated))
    assert f"<td>{precision.value:.2f} ({precision.low:.2f} to {precision.high:.2f})</td>" in html
    assert "Obuchowski 1997" in html
    assert "Bandos 2005" in html_of(comparison=comparison(simulated))


def test_runs_are_compared_on_the_records_that_test_both() -> None:
    """The second run learned from a patient of the site; its own number leaves him out."""
    rng = np.random.default_rng(3)
    is_case = rng.random(60) < 0.4
    scores = {run: np.where(np.arange(60) < 60, rng.random(60) + is_case, 0) / 2 for run in RUNS}
    plan = plan_of(is_case.tolist(), list(range(60)), {SITE: []})
    rows = {"ViT": np.arange(60), "CNN": np.arange(5, 60)}
    plan = replace(plan, cohorts={SITE: rows, "site 3, external": {"CNN": np.arange(30)}})
    results = summarise(plan, scores, {"ViT": fixed(0.5), "CNN": fixed(0.6)}, nobody(60))
    both = np.arange(5, 60)
    expected = delong_paired(is_case[both], scores["ViT"][both], scores["CNN"][both])
    assert results.paired == {SITE: {"CNN": expected}}
    points = {run: results.cohorts[SITE][run].operating for run in RUNS}
    assert [point and point.threshold for point in points.values()] == [0.5, 0.6]
    assert "<td>-</td>" in html_of(detection=detection(results))
