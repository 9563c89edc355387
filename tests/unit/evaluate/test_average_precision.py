"""Average precision against scikit-learn: the value, and the interval from its weighted form."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from simulated_cohorts import draw
from sklearn.metrics import average_precision_score

from ecgfast.errors import ShapeError
from ecgfast.evaluate.discrimination import average_precision


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40))
def test_the_value_is_scikit_learn_s(rows: list[tuple[bool, int]]) -> None:
    y, score = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], dtype=float)
    value = average_precision(y, score).value
    if y.all() or not y.any():
        assert value is None
    else:
        assert value == pytest.approx(average_precision_score(y, score), abs=1e-12)


def test_the_interval_follows_from_scikit_learn_s_weights() -> None:
    """The influence of a record is how the weighted value moves with its weight."""
    y, patient, score, _ = draw(np.random.default_rng(4), 25, 1.5, 0.8)
    score = score.round(1)  # with ties
    value, step = average_precision_score(y, score), 1e-5
    influence = np.empty(len(y))
    for row in range(len(y)):
        ends = []
        for sign in (1, -1):
            weight = np.ones(len(y))
            weight[row] += sign * step
            ends.append(average_precision_score(y, score, sample_weight=weight))
        influence[row] = (ends[0] - ends[1]) / (2 * step)
    sums = np.array([influence[patient == p].sum() for p in np.unique(patient)])
    is_case = np.array([y[patient == p].any() for p in np.unique(patient)])  # of the patient
    classes = [sums[is_case], sums[~is_case]]
    variances = [float((u**2).sum()) * len(u) / (len(u) - 1) for u in classes]
    variance = sum(variances)
    welch = variance**2 / sum(v**2 / (len(u) - 1) for v, u in zip(variances, classes, strict=True))
    moment = 2 / ((sums**4).sum() / (sums**2).sum() ** 2 - 1 / len(sums))
    half = stats.t.ppf(0.975, min(welch, moment)) * variance**0.5 / (value * (1 - value))
    centre = math.log(value / (1 - value))
    ends = [1 / (1 + math.exp(-(centre + sign * half))) for sign in (-1, 1)]
    result = average_precision(y, score, patient)
    assert (result.low, result.high) == pytest.approx(ends, rel=1e-6)


def test_without_both_classes_or_patients_it_says_why() -> None:
    assert average_precision(np.array([True]), np.array([0.5])).reason == "no controls"
    y, score = np.array([True, False, False]), np.array([0.3, 0.1, 0.2])
    single = average_precision(y, score)
    assert (single.value, single.low) == (1.0, None)
    assert single.reason == "cases of a single patient"
    with pytest.raises(ShapeError, match="one score per record"):
        average_precision(y, score[:2])


def test_perfect_ranking_has_a_bound_below_one() -> None:
    y = np.repeat([True, False], [5, 20])
    result = average_precision(y, y.astype(float))
    assert (result.value, result.high) == (1.0, 1.0)
    assert result.low == pytest.approx(0.025 ** (1 / 5))
