"""The ROC curve of labels and scores, its area, and thresholds set on it.

Shapes: n records, m cases, k controls, K scores compared on the same records.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from ecgfast.errors import ShapeError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def auroc(y: ArrayLike, score: ArrayLike) -> float | None:
    """Area under the ROC curve: the chance that a case scores above a control, ties half.

    Args:
        y: (n,) bool or 0/1, True = case.
        score: (n,) float, higher = more likely a case; NaN is refused.
    Returns:
        A value in [0, 1], or None when only one class is present.
    Raises:
        ShapeError: the lengths differ or a score is not finite.
    Source: Hanley and McNeil 1982.
    """
    is_case, scores = checked(y, [score])
    if undefined(is_case):
        return None
    # DeLong's components, for one number everywhere: scikit-learn's often differs in its last bit.
    return float(components(is_case, scores)[0].mean())


def roc_curve(y: ArrayLike, score: ArrayLike) -> tuple[Floats, Floats]:
    """Points of the empirical ROC curve, from (0, 0) to (1, 1).

    Args:
        y: (n,) bool or 0/1, True = case; both classes present.
        score: (n,) float, higher = more likely a case.
    Returns:
        1 - specificity and sensitivity, one point per distinct score and the origin.
    Raises:
        ShapeError: the lengths differ, a score is not finite, or a class is missing.
    """
    from sklearn.metrics import roc_curve as sklearn_curve  # takes a second

    is_case, scores = checked(y, [score])
    if reason := undefined(is_case):
        raise ShapeError(f"a ROC curve needs both classes, got {reason}; leave this cohort out")
    false_rate, true_rate, _ = sklearn_curve(is_case, scores[0], drop_intermediate=False)
    return false_rate, true_rate


def youden_threshold(is_case: Flags, probability: Floats) -> float | None:
    """Threshold with the highest sensitivity + specificity; None when a class is missing.

    Args:
        is_case: (n,) bool.
        probability: (n,) float, higher = more likely a case.
    Source: Youden 1950.
    """
    if is_case.all() or not is_case.any():
        return None
    false_rate, true_rate = roc_curve(is_case, probability)
    candidates = np.unique(probability)[::-1]  # one per point of the curve after the origin
    best = int(np.argmax((true_rate - false_rate)[1:]))
    return float(candidates[best])


def sensitivity_threshold(
    is_case: Flags, probability: Floats, sensitivity: float = 0.9
) -> float | None:
    """Highest threshold that still finds a share of the cases; None when a class is missing.

    Args:
        is_case: (n,) bool.
        probability: (n,) float, higher = more likely a case.
        sensitivity: the share, in (0, 1].
    """
    if is_case.all() or not is_case.any():
        return None
    cases = np.sort(probability[is_case])[::-1]
    return float(cases[math.ceil(sensitivity * len(cases) - 1e-9) - 1])


def components(is_case: Flags, scores: Floats) -> tuple[Floats, Floats]:
    """DeLong's structural components: (K, m) of the cases and (K, k) of the controls.

    Mid-ranks give them in n log n instead of m x k comparisons (Sun and Xu 2014).
    """
    num_cases, num_controls = is_case.sum(), (~is_case).sum()
    all_ranks = rankdata(scores, axis=1)
    case_ranks = rankdata(scores[:, is_case], axis=1)
    control_ranks = rankdata(scores[:, ~is_case], axis=1)
    of_cases = (all_ranks[:, is_case] - case_ranks) / num_controls
    of_controls = 1 - (all_ranks[:, ~is_case] - control_ranks) / num_cases
    return of_cases, of_controls


def checked(y: ArrayLike, scores: Sequence[ArrayLike]) -> tuple[Flags, Floats]:
    """Labels (n,) bool and scores (K, n) of the same records.

    Raises:
        ShapeError: the lengths differ or a score is not finite.
    """
    is_case = np.asarray(y).astype(bool)
    table = np.stack([np.asarray(score, dtype=np.float64) for score in scores])
    if is_case.ndim != 1 or table.shape[1:] != is_case.shape:
        raise ShapeError(
            f"labels and scores must be two vectors of one length, got {is_case.shape} and "
            f"{table.shape[1:]}"
        )
    if not np.isfinite(table).all():
        raise ShapeError(
            f"scores must be finite, got {int((~np.isfinite(table)).sum())} that are not; "
            "look at the model's loss"
        )
    return is_case, table


def undefined(is_case: Flags) -> str:
    """Why labels of (n,) records define no area; empty when both classes are present."""
    if not len(is_case):
        return "no labelled records"
    if is_case.all():
        return "no controls"
    return "" if is_case.any() else "no cases"
