"""Thresholds from validation and calibration against counts by hand and scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from ecgfast.evaluate.operating import calibration, operating_point
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
