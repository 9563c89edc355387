"""95 % intervals hold the truth of simulated cohorts as often as docs/evaluation.md says.

Drawn with fixed seeds, so a run always gives the same counts. The rule's own coverage there is
0.93 to 0.96 (1,500 cohorts a row). The slow test's floors leave two binomial standard errors of the
number of cohorts drawn. Wald's interval on the plain scale must do worse on the same cohorts.
"""

import numpy as np
import pytest
import simulated_cohorts as cohorts
from scipy.special import expit
from scipy.stats import norm

from ecgfast.evaluate.discrimination import average_precision, delong, delong_paired
from ecgfast.evaluate.interval import mean_interval
from ecgfast.evaluate.operating import calibration, operating_point


@pytest.mark.parametrize(
    ("patients", "shift", "floor"),
    [(300, 1.5, 0.93), (300, 2.6, 0.93), (60, 1.5, 0.91), (60, 2.6, 0.91)],
)
def test_auroc_is_covered(patients: int, shift: float, floor: float) -> None:
    rng = np.random.default_rng([1, patients, int(10 * shift)])
    truth, number = cohorts.true_auroc(shift), 600
    inside = wald = 0
    for _ in range(number):
        cohort = cohorts.draw(rng, patients, shift, alike=0.8)
        area = delong(cohort.is_case, cohort.score, cohort.patient)
        assert area.value is not None
        assert area.low is not None
        assert area.high is not None
        assert area.std_error is not None
        assert area.low <= area.value <= area.high
        inside += area.low <= truth <= area.high
        wald += abs(area.value - truth) <= 1.96 * area.std_error
    assert floor <= inside / number <= 0.975  # above: needlessly wide
    assert wald < inside
    if shift == 2.6:  # true area 0.967
        assert wald / number < floor - 0.01


@pytest.mark.slow  # 4,800 cohorts, four intervals and a test each: some minutes
@pytest.mark.parametrize("changing", [False, True])
@pytest.mark.parametrize("alike", [0.5, 0.8])
@pytest.mark.parametrize("shift", [1.5, 2.6])
@pytest.mark.parametrize(("patients", "floor"), [(300, 0.93), (60, 0.91)])
def test_everything_is_covered(
    patients: int, floor: float, shift: float, alike: float, changing: bool
) -> None:
    rng = np.random.default_rng([2, patients, int(10 * shift), int(10 * alike), changing])
    truths = {
        "auroc": cohorts.true_auroc(shift),
        "average precision": cohorts.true_average_precision(shift),
        "sensitivity": float(norm.cdf(shift - 1)),
        "specificity": float(norm.cdf(1)),
    }
    inside = dict.fromkeys([*truths, "difference"], 0)
    number = 300
    for _ in range(number):
        y, patient, score, other = cohorts.draw(rng, patients, shift, alike, changing=changing)
        found = score >= 1
        intervals = {
            "auroc": delong(y, score, patient),
            "average precision": average_precision(y, score, patient),
            "sensitivity": mean_interval(found[y], patient[y], if_empty="no cases"),
            "specificity": mean_interval(~found[~y], patient[~y], if_empty="no controls"),
        }
        for name, interval in intervals.items():
            assert interval.low is not None
            assert interval.high is not None
            inside[name] += interval.low <= truths[name] <= interval.high
        test = delong_paired(y, score, other, patient)
        assert test.p_value is not None
        assert test.low is not None
        assert test.high is not None
        # The test finds a difference where the interval leaves 0 out, and only there.
        assert (test.p_value >= 0.05) == (test.low <= 0 <= test.high)
        inside["difference"] += test.p_value >= 0.05
    error = (floor * (1 - floor) / number) ** 0.5
    least = dict.fromkeys(inside, floor - 2 * error)
    assert {name: count for name, count in inside.items() if count / number < least[name]} == {}


@pytest.mark.slow  # 600 cohorts, of each two regressions and four shares: some 20 s
@pytest.mark.parametrize("shift", [1.5, 2.6])
def test_calibration_and_predictive_values_are_covered(shift: float) -> None:
    """Scores are normal with one variance, so their log odds are a line: slope 1, intercept 0."""
    rng = np.random.default_rng([3, int(10 * shift)])
    found = np.array([cohorts.PREVALENCE, 1 - cohorts.PREVALENCE]) * norm.sf([1 - shift, 1])
    missed = np.array([cohorts.PREVALENCE, 1 - cohorts.PREVALENCE]) - found
    truths = {"ppv": found[0] / found.sum(), "npv": missed[1] / missed.sum(),
              "slope": 1.0, "intercept": 0.0}  # fmt: skip
    inside, number = dict.fromkeys(truths, 0), 300
    for _ in range(number):
        y, patient, score, _ = cohorts.draw(rng, 300, shift, alike=0.8)
        prior = np.log(cohorts.PREVALENCE / (1 - cohorts.PREVALENCE))
        result = calibration(y, expit(shift * score - shift**2 / 2 + prior), patient)
        point = operating_point(y, score, 1.0, patient)
        assert result is not None
        intervals = {"ppv": point.ppv, "npv": point.npv,
                     "slope": result.slope, "intercept": result.intercept}  # fmt: skip
        for name, interval in intervals.items():
            assert interval.low is not None
            assert interval.high is not None
            inside[name] += interval.low <= truths[name] <= interval.high
    least = 0.93 - 2 * (0.93 * 0.07 / number) ** 0.5
    assert {name: count for name, count in inside.items() if count / number < least} == {}
