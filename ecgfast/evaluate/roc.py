"""AUROC with DeLong intervals, clustered by patient where records repeat, and paired tests.

Shapes: n records, m cases, k controls, K scores compared on the same records.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from ecgfast.errors import ShapeError

Floats = NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Auroc:
    """Area under the ROC curve with its interval.

    Attributes:
        num_cases: records with the label.
        num_controls: records without it.
        value: in [0, 1], or None where it is not defined.
        low: lower end of the 95 % interval, or None.
        high: upper end of the 95 % interval, or None.
        std_error: of the value, or None.
        reason: why `value` or the interval is not defined; empty when both are.
    """

    num_cases: int
    num_controls: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    std_error: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Difference of two AUROCs on the same records, first minus second.

    Attributes:
        difference: in [-1, 1], or None where it is not defined.
        low: lower end of the 95 % interval, or None.
        high: upper end of the 95 % interval, or None.
        p_value: two-sided, of equal areas, or None.
        reason: why it is not defined; empty when it is.
    """

    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    reason: str = ""


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
    is_case, scores = _checked(y, [score])
    if _undefined(is_case):
        return None
    return float(_components(is_case, scores)[0].mean())


def delong(y: ArrayLike, score: ArrayLike, groups: ArrayLike | None = None) -> Auroc:
    """AUROC with its 95 % interval from DeLong's variance, on the plain scale, cut to [0, 1].

    Args:
        y: (n,) bool or 0/1, True = case.
        score: (n,) float, higher = more likely a case.
        groups: (n,) patient of each record; records of one patient are then not taken as
            independent. None: every record is its own patient.
    Returns:
        `Auroc`; its value is None when only one class is present, its interval is None when
        a class has a single patient.
    Raises:
        ShapeError: the lengths differ or a score is not finite.
    Source: DeLong et al. 1988; Obuchowski 1997 for clustered records.
    """
    is_case, scores = _checked(y, [score])
    result = Auroc(num_cases=int(is_case.sum()), num_controls=int((~is_case).sum()))
    if reason := _undefined(is_case):
        return replace(result, reason=reason)
    components = _components(is_case, scores)
    value = float(components[0].mean())
    clusters = _clusters(groups, len(is_case))
    if reason := _no_variance(is_case, clusters):
        return replace(result, value=value, reason=reason)
    std_error = float(np.sqrt(_covariance(is_case, clusters, *components)[0, 0]))
    half = _z() * std_error
    low, high = max(0.0, value - half), min(1.0, value + half)
    return replace(result, value=value, low=low, high=high, std_error=std_error)


def delong_paired(
    y: ArrayLike, first: ArrayLike, second: ArrayLike, groups: ArrayLike | None = None
) -> PairedTest:
    """Test whether two scores of the same records have the same AUROC.

    Args:
        y: (n,) bool or 0/1, True = case.
        first: (n,) float, higher = more likely a case.
        second: (n,) float, of the other model.
        groups: (n,) patient of each record, as in `delong`.
    Returns:
        `PairedTest` of first minus second; p is 1 when both rank alike.
    Raises:
        ShapeError: the lengths differ or a score is not finite.
    Source: DeLong et al. 1988; Obuchowski 1997 for clustered records.
    """
    is_case, scores = _checked(y, [first, second])
    clusters = _clusters(groups, len(is_case))
    if reason := _undefined(is_case) or _no_variance(is_case, clusters):
        return PairedTest(reason=reason)
    components = _components(is_case, scores)
    areas = components[0].mean(axis=1)
    covariance = _covariance(is_case, clusters, *components)
    contrast = np.array([1.0, -1.0])
    difference = float(areas[0] - areas[1])
    # Rounding can leave a variance of -1e-18 where the two scores rank alike.
    std_error = float(np.sqrt(max(0.0, contrast @ covariance @ contrast)))
    if std_error < 1e-12:
        p_value = 1.0 if abs(difference) < 1e-12 else 0.0
    else:
        p_value = float(2 * norm.sf(abs(difference) / std_error))
    half = _z() * std_error
    return PairedTest(
        difference=difference,
        low=max(-1.0, difference - half),
        high=min(1.0, difference + half),
        p_value=p_value,
    )


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
    is_case, scores = _checked(y, [score])
    if reason := _undefined(is_case):
        raise ShapeError(f"a ROC curve needs both classes, got {reason}; leave this cohort out")
    order = np.argsort(-scores[0], kind="stable")
    sorted_scores = scores[0][order]
    last_of_tie = np.append(np.flatnonzero(np.diff(sorted_scores)), len(order) - 1)
    true_positives = np.cumsum(is_case[order])[last_of_tie]
    false_positives = last_of_tie + 1 - true_positives
    return (
        np.append(0.0, false_positives / (~is_case).sum()),
        np.append(0.0, true_positives / is_case.sum()),
    )


def _checked(y: ArrayLike, scores: Sequence[ArrayLike]) -> tuple[NDArray[np.bool_], Floats]:
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


def _undefined(is_case: NDArray[np.bool_]) -> str:
    if not len(is_case):
        return "no labelled records"
    if is_case.all():
        return "no controls"
    return "" if is_case.any() else "no cases"


def _no_variance(is_case: NDArray[np.bool_], clusters: NDArray[np.intp]) -> str:
    if len(np.unique(clusters[is_case])) < 2:
        return "cases of a single patient"
    return "controls of a single patient" if len(np.unique(clusters[~is_case])) < 2 else ""


def _clusters(groups: ArrayLike | None, num_records: int) -> NDArray[np.intp]:
    if groups is None:
        return np.arange(num_records)
    labels = np.asarray(groups)
    if labels.shape != (num_records,):
        raise ShapeError(f"groups must have shape ({num_records},), got {labels.shape}")
    return np.unique(labels, return_inverse=True)[1]


def _components(is_case: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
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


def _covariance(
    is_case: NDArray[np.bool_],
    clusters: NDArray[np.intp],
    of_cases: Floats,
    of_controls: Floats,
) -> Floats:
    """(K, K) covariance of the areas; with one record per cluster this is DeLong's.

    Source: Obuchowski 1997, equations for S10, S01 and S11.
    """
    num_clusters = int(clusters.max()) + 1
    areas = of_cases.mean(axis=1, keepdims=True)  # the controls' mean is the same number
    case_sums = _sum_by_cluster(of_cases - areas, clusters[is_case], num_clusters)
    control_sums = _sum_by_cluster(of_controls - areas, clusters[~is_case], num_clusters)
    m, k = of_cases.shape[1], of_controls.shape[1]
    with_cases = len(np.unique(clusters[is_case]))
    with_controls = len(np.unique(clusters[~is_case]))
    s10 = case_sums @ case_sums.T * with_cases / ((with_cases - 1) * m)
    s01 = control_sums @ control_sums.T * with_controls / ((with_controls - 1) * k)
    s11 = case_sums @ control_sums.T * num_clusters / (num_clusters - 1)
    return np.asarray(s10 / m + s01 / k + (s11 + s11.T) / (m * k))


def _sum_by_cluster(values: Floats, clusters: NDArray[np.intp], num_clusters: int) -> Floats:
    return np.stack([np.bincount(clusters, weights=row, minlength=num_clusters) for row in values])


def _z() -> float:
    return float(norm.ppf(0.5 + CONFIDENCE / 2))
