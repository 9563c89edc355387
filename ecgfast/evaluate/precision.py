"""Average precision, the area under the precision-recall curve, with its interval.

Shapes: n records, m cases, T different scores.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfast.errors import ShapeError
from ecgfast.evaluate.interval import Interval, limits, patients_of, spread
from ecgfast.evaluate.roc import no_variance
from ecgfast.runs.roc import undefined

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def average_precision(is_case: Flags, score: Floats, groups: ArrayLike | None = None) -> Interval:
    """Mean precision over the thresholds at which a case is found, by the rule of `interval`.

    Args:
        is_case: (n,) bool.
        score: (n,) float, higher = more likely a case.
        groups: (n,) patient of each record; None: every record is its own patient.
    Returns:
        `Interval`; its value is None when a class is missing, its interval when a class has a
        single patient. At 1 the binomial interval counts pairs of a case and a control as it does
        for the area under the ROC curve, of which average precision has no exact counterpart.
    Raises:
        ShapeError: the lengths differ.
    Source: Boyd et al. 2013 for the estimator and the logit interval; the variance is the
        infinitesimal jackknife, see `_influence`.
    """
    if is_case.shape != score.shape:
        raise ShapeError(
            f"labels and scores must have one length, got {is_case.shape} and {score.shape}; give "
            "one score per record"
        )
    patients = patients_of(groups, len(is_case))
    if reason := undefined(is_case):
        return Interval(reason=reason)
    value, influence = _influence(is_case, score)
    if reason := no_variance(is_case, patients):
        return Interval(value=value, reason=reason)
    low, high, method = limits(value, spread(influence, is_case, patients))
    return Interval(value=value, low=low, high=high, method=method)


def _influence(is_case: Flags, score: Floats) -> tuple[float, Floats]:
    """Average precision, and its derivative by the weight of each record at equal weights.

    With c(t) cases at score t, C(t) cases and N(t) controls at t or above, average precision is
    sum c C / (C + N) / m. One more case at score s adds its own precision and raises that of every
    t <= s by N / (C + N)^2; one more control there lowers it by C / (C + N)^2.
    """
    num_cases = int(is_case.sum())
    # Not from scikit-learn: its value differs in the last bit, and it has no influences.
    at = np.unique(-score, return_inverse=True)[1]  # 0 = highest score
    cases_at = np.bincount(at, is_case)
    cases, controls = np.cumsum(cases_at), np.cumsum(np.bincount(at, ~is_case))
    precision = cases / (cases + controls)
    value = float(cases_at @ precision) / num_cases
    raised = cases_at * controls / (cases + controls) ** 2
    lowered = cases_at * cases / (cases + controls) ** 2
    of_case = precision - value + _from_here_on(raised)
    of_control = -_from_here_on(lowered)
    return value, np.where(is_case, of_case[at], of_control[at]) / num_cases


def _from_here_on(values: Floats) -> Floats:
    """Sum of the values at each score and below it."""
    return np.cumsum(values[::-1])[::-1]
