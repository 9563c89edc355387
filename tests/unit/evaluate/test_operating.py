"""Operating points, calibration and net benefit against hand counts, scikit-learn, statsmodels."""

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import beta, binomtest
from sklearn import metrics
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from ecgfast.evaluate.interval import PLAIN_T
from ecgfast.evaluate.operating import (
    calibration,
    net_benefit,
    operating_point,
    recalibration,
)
from ecgfast.runs.roc import sensitivity_threshold, youden_threshold


def test_youden_threshold_is_the_best_of_all_thresholds() -> None:
    rng = np.random.default_rng(1)
    y = rng.random(300) < 0.3
    score = np.round(rng.random(300) + 0.4 * y, 2)

    def index(threshold: float) -> float:
        found = score >= threshold
        return float(found[y].mean() - found[~y].mean())

    threshold = youden_threshold(y, score)
    assert threshold is not None
    assert index(threshold) == pytest.approx(max(index(t) for t in np.unique(score)))


def test_the_threshold_of_a_sensitivity_is_the_highest_that_reaches_it() -> None:
    score = np.arange(25) / 25
    y = score >= 5 / 25  # 20 cases: 0.2 to 0.96
    for sensitivity, expected in ((0.9, 7 / 25), (0.5, 15 / 25), (1.0, 5 / 25), (0.04, 24 / 25)):
        assert sensitivity_threshold(y, score, sensitivity) == expected
        found = (score >= expected)[y].mean()
        assert found >= sensitivity > (score > expected)[y].mean()
    assert sensitivity_threshold(y, score) == 7 / 25
    assert sensitivity_threshold(np.ones(3, dtype=bool), score[:3]) is None
    assert sensitivity_threshold(np.zeros(3, dtype=bool), score[:3]) is None


def test_operating_point_counts() -> None:
    y = np.array([True, True, True, False, False])
    score = np.array([0.9, 0.5, 0.2, 0.5, 0.1])
    point = operating_point(y, score, 0.5)
    assert point.sensitivity.value == pytest.approx(2 / 3)
    assert point.specificity.value == pytest.approx(1 / 2)
    assert point.ppv.value == pytest.approx(2 / 3)
    assert point.npv.value == pytest.approx(1 / 2)
    same = operating_point(y, score, 0.5, ["a", "b", "b", "c", "d"])
    assert same.sensitivity.value == point.sensitivity.value
    assert same.sensitivity.low != point.sensitivity.low  # two of the cases are one patient
    assert same.specificity == point.specificity


def test_a_missing_class_has_no_rate() -> None:
    y, score = np.array([True, True]), np.array([0.3, 0.8])
    assert youden_threshold(y, score) is None
    point = operating_point(y, score, 0.5)
    assert (point.sensitivity.value, point.specificity.value) == (0.5, None)
    assert point.specificity.reason == "no controls"
    assert operating_point(~y, score, 0.5).sensitivity.reason == "no cases"
    assert operating_point(y, score, 0.9).ppv.reason == "no findings"
    assert operating_point(y, score, 0.1).npv.reason == "nothing but findings"
    assert calibration(y[:0], score[:0]) is None


def test_calibration_equals_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    probability = rng.random(400)
    y = rng.random(400) < probability**2
    result = calibration(y, probability)
    assert result is not None
    observed, predicted = calibration_curve(y, probability, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(result.bin_predicted, predicted)
    np.testing.assert_allclose(result.bin_observed, observed)
    assert result.brier.value == pytest.approx(brier_score_loss(y, probability))
    assert result.brier.low is not None
    assert result.brier.low < result.brier.value
    assert (
        result.mean_predicted > result.observed + 0.1
    )  # the network is overconfident, and it shows


@pytest.mark.parametrize(
    ("records", "bins"), [(9, 1), (19, 1), (20, 2), (60, 6), (99, 9), (500, 10)]
)
def test_every_bin_has_ten_records_or_more(records: int, bins: int) -> None:
    probability = np.linspace(0, 1, records)
    result = calibration(probability > 0.5, probability)
    assert result is not None
    assert len(result.bin_predicted) == len(result.bin_observed) == bins


def test_shares_at_a_threshold_equal_scikit_learn() -> None:
    y, probability, _ = overconfident(5)
    point, found = operating_point(y, probability, 0.3), probability >= 0.3
    for share, expected in (
        (point.sensitivity, metrics.recall_score(y, found)),
        (point.specificity, metrics.recall_score(~y, ~found)),
        (point.ppv, metrics.precision_score(y, found)),
        (point.npv, metrics.precision_score(~y, ~found)),
    ):
        assert share.value == pytest.approx(expected)
        assert share.low is not None
        assert share.high is not None
        assert share.low < expected < share.high


def overconfident(seed: int, num_patients: int = 250) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and patients: true log odds are -0.5 + 0.6 of those that are said."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(num_patients), rng.integers(1, 4, num_patients))
    said = 2 * rng.normal(size=num_patients)[patient] + 0.5 * rng.normal(size=len(patient))
    y = rng.random(len(patient)) < expit(-0.5 + 0.6 * said)
    return y, expit(said), patient


def test_slope_and_intercept_equal_statsmodels_with_clustered_errors() -> None:
    sm = pytest.importorskip("statsmodels.api", reason="statsmodels is not installed")
    y, probability, patient = overconfident(6)
    result = calibration(y, probability, patient)
    assert result is not None
    x, number = logit(probability), len(np.unique(patient))
    clustered = {"cov_type": "cluster", "cov_kwds": {"groups": patient, "use_correction": False}}
    both = sm.GLM(y, sm.add_constant(x), family=sm.families.Binomial()).fit(**clustered)
    shift = sm.GLM(y, np.ones(len(y)), offset=x, family=sm.families.Binomial()).fit(**clustered)
    for ours, theirs in ((result.slope, both), (result.intercept, shift)):
        assert ours.value == pytest.approx(theirs.params[-1], abs=1e-6)
        assert ours.low is not None
        assert ours.high is not None
        half = theirs.bse[-1] * (number / (number - 1)) ** 0.5
        # Student's t with some degrees of freedom, at least as wide as the normal distribution
        assert 1.96 <= (ours.high - ours.low) / 2 / half < 2.1
        assert ours.method == PLAIN_T
    assert result.slope.high < 1  # type: ignore[operator]  # it is overconfident, and this is seen


def test_recalibration_corrects_what_it_was_fitted_on() -> None:
    sm = pytest.importorskip("statsmodels.api", reason="statsmodels is not installed")
    y, probability, _ = overconfident(7)
    fitted = recalibration(y, probability)
    expected = sm.Logit(y, sm.add_constant(logit(probability))).fit(disp=0)
    assert (fitted.intercept, fitted.slope) == pytest.approx(tuple(expected.params), abs=1e-6)
    corrected = fitted.of(probability)
    assert corrected is not None
    np.testing.assert_allclose(corrected, expected.predict(), atol=1e-7)
    np.testing.assert_array_equal(np.argsort(corrected), np.argsort(probability))
    after, before = calibration(y, corrected), calibration(y, probability)
    assert after is not None
    assert before is not None
    assert (after.slope.value, after.intercept.value) == pytest.approx((1, 0), abs=1e-6)
    assert after.expected_calibration_error < before.expected_calibration_error
    assert after.brier.value < before.brier.value  # type: ignore[operator]  # not None


@pytest.mark.parametrize(
    ("y", "probability", "reason"),
    [
        ([1, 1], [0.2, 0.4], "no controls"),
        ([0, 1], [0.2, 0.2], "one probability for all records"),
        ([0, 0, 1, 1], [0.1, 0.2, 0.2, 0.4], "probabilities of cases and controls do not overlap"),
        ([1, 1, 0, 0], [0.1, 0.2, 0.2, 0.4], "probabilities of cases and controls do not overlap"),
        ([1, 0, 1, 0], [0.1, 0.2, 0.3, 0.4], "does not rise with the probability"),
    ],
)
def test_what_cannot_be_recalibrated_says_why(
    y: list[int], probability: list[float], reason: str
) -> None:
    is_case, score = np.array(y, dtype=bool), np.array(probability)
    fitted = recalibration(is_case, score)
    assert fitted.reason.endswith(reason)
    assert (fitted.num_cases, fitted.num_controls) == (sum(y), len(y) - sum(y))
    assert fitted.of(score) is None


def test_a_network_that_says_0_and_1_has_a_finite_slope() -> None:
    y, probability, patient = overconfident(8)
    sure = np.where(probability > 0.9, 1.0, np.where(probability < 0.1, 0.0, probability))
    result = calibration(y, sure, patient)
    assert result is not None
    assert result.slope.value is not None
    assert 0 < result.slope.value < 0.3
    single = calibration(y, probability, np.zeros(len(y)))
    assert single is not None
    assert single.slope.reason == single.intercept.reason == "cases of a single patient"


def test_expected_calibration_error_equals_the_curve_of_scikit_learn() -> None:
    y, probability, patient = overconfident(9)
    y, probability, patient = y[:400], probability[:400], patient[:400]
    observed, predicted = calibration_curve(y, probability, n_bins=10, strategy="quantile")
    result = calibration(y, probability, patient)
    assert result is not None
    expected = np.abs(observed - predicted).mean()  # ten bins of 40 records
    assert result.expected_calibration_error == pytest.approx(expected)
    in_order = np.argsort(probability, kind="stable")
    for rows, share, *ends in zip(
        np.array_split(in_order, 10), result.bin_observed, result.bin_low, result.bin_high,
        strict=True,
    ):  # fmt: skip
        trials = len(np.unique(patient[rows]))
        low, high = beta.ppf((0.025, 0.975), (share * trials, share * trials + 1),
                             (trials - share * trials + 1, trials - share * trials))  # fmt: skip
        assert ends == pytest.approx([low, high])
        assert low < share < high


def test_larger_bins_count_for_more_in_the_expected_calibration_error() -> None:
    """11 controls at 0.2, then 10 cases at 0.9: (11 * 0.2 + 10 * 0.1) / 21."""
    y = np.arange(21) >= 11
    result = calibration(y, np.where(y, 0.9, 0.2))
    assert result is not None
    assert result.expected_calibration_error == pytest.approx(3.2 / 21)


def test_a_bin_without_a_case_has_the_exact_binomial_bound() -> None:
    probability = np.linspace(0, 1, 40)
    result = calibration(probability > 0.5, probability)
    assert result is not None
    exact = binomtest(0, 10).proportion_ci(0.95, method="exact")
    assert (result.bin_low[0], result.bin_high[0]) == pytest.approx((0, exact.high))
    assert (result.bin_low[-1], result.bin_high[-1]) == pytest.approx((1 - exact.high, 1))


def test_net_benefit_counts() -> None:
    """20 records, 5 cases; at 20 % four cases and three controls are acted on."""
    y = np.arange(20) < 5
    score = np.array([0.9, 0.5, 0.2, 0.2, 0.1, 0.6, 0.3, 0.2, *[0.05] * 12])
    curve = net_benefit(y, score)
    assert curve is not None
    assert curve.threshold == pytest.approx([percent / 100 for percent in range(1, 51)])
    at = curve.threshold.index(0.2)
    assert curve.model[at] == pytest.approx(4 / 20 - 3 / 20 * 0.2 / 0.8)
    assert curve.everyone[at] == pytest.approx(5 / 20 - 15 / 20 * 0.25)
    assert curve.model[0] == curve.everyone[0]  # all are at 1 % or above
    for threshold, got in zip(curve.threshold, curve.model, strict=True):
        tn, fp, fn, tp = metrics.confusion_matrix(y, score >= threshold).ravel()
        assert got == pytest.approx((tp - fp * threshold / (1 - threshold)) / (tn + fp + fn + tp))
    assert net_benefit(y[:0], score[:0]) is net_benefit(y[5:], score[5:]) is None
