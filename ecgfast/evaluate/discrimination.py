"""How well a score ranks cases above controls: AUROC, average precision, and paired tests.

Records of one patient are taken together wherever variance is estimated.

Shapes: n records, m cases, k controls, K scores compared on the same records, P patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata, t

from ecgfast.errors import ShapeError
from ecgfast.evaluate.interval import Interval, limits, no_variance, patients_of, spread
from ecgfast.runs.roc import checked, components, undefined

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
DELONG_T = "patient-clustered DeLong t"
REPEATS_T = "t of patient-clustered DeLong and trainings"
PERMUTATION = "permutation of patients"
NUM_PERMUTATIONS = 999
_PERMUTATION_SEED = 20050801
_RANKS_AT_ONCE = 2**22  # permuted ranks held at a time, 32 MiB


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
        method: of the interval, `interval.LOGIT_T` or `interval.BINOMIAL`; empty without one.
        reason: why `value` or the interval is not defined; empty when both are.
    """

    num_cases: int
    num_controls: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    std_error: float | None = None
    method: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Difference of two AUROCs, or errors, on the same records, first minus second.

    Attributes:
        difference: of AUROCs in [-1, 1], or None where it is not defined.
        low: lower end of the 95 % interval, or None.
        high: upper end of the 95 % interval, or None.
        p_value: two-sided, of no difference, above 0, or None.
        std_error: of a difference of AUROCs, or None.
        method: of the p-value, `DELONG_T`, `REPEATS_T`, `PERMUTATION` or that of
            `error_differences`; empty without one.
        reason: why it is not defined; empty when it is.
    """

    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    std_error: float | None = None
    method: str = ""
    reason: str = ""


def delong(y: ArrayLike, score: ArrayLike, groups: ArrayLike | None = None) -> Auroc:
    """AUROC with its 95 % interval from DeLong's variance, by the rule of `interval`.

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
    return delong_mean(y, np.asarray(score, dtype=np.float64)[None], groups)[1]


def delong_mean(
    y: ArrayLike, scores: ArrayLike, groups: ArrayLike | None = None
) -> tuple[tuple[float, ...], Auroc]:
    """AUROC of each of some scores of the same records, and their mean with its interval.

    The interval is over patients, with the scores taken as given: a patient's influence on the mean
    is the mean of his influences on the areas. How the areas differ is not in it.

    Args:
        y: (n,) bool or 0/1, True = case.
        scores: (K, n) float, such as those of runs that differ in their seed.
        groups: (n,) patient of each record, as in `delong`.
    Returns:
        K areas, none where a class is missing; `Auroc` of their mean, as from `delong`.
    Raises:
        ShapeError: the lengths differ or a score is not finite.
    Source: as of `delong`; the mean of areas is linear in their components.
    """
    is_case, given = checked(y, list(np.asarray(scores)))
    patients = patients_of(groups, len(is_case))
    result = Auroc(num_cases=int(is_case.sum()), num_controls=int((~is_case).sum()))
    if reason := undefined(is_case):
        return (), replace(result, reason=reason)
    areas, influence = areas_of_scores(is_case, given)
    each, value = tuple(areas.tolist()), float(areas.mean())
    if reason := no_variance(is_case, patients):
        return each, replace(result, value=value, reason=reason)
    found = spread(influence.mean(axis=0), is_case, patients)
    low, high, method = limits(value, found)
    mean = replace(
        result, value=value, low=low, high=high, std_error=found.std_error, method=method
    )
    return each, mean


def delong_paired(
    y: ArrayLike, first: ArrayLike, second: ArrayLike, groups: ArrayLike | None = None
) -> PairedTest:
    """Test whether two scores of the same records have the same AUROC.

    Student's t with the degrees of freedom of `interval.spread`. Where the difference has no
    variance, such as 1 against 0, patients swap the ranks that the two scores gave them, and the
    interval joins those of the two areas as if they were independent.

    Args:
        y: (n,) bool or 0/1, True = case.
        first: (n,) float, higher = more likely a case.
        second: (n,) float, of the other model.
        groups: (n,) patient of each record, as in `delong`.
    Returns:
        `PairedTest` of first minus second; p is 1 when both rank alike.
    Raises:
        ShapeError: the lengths differ or a score is not finite.
    Source: DeLong et al. 1988; Obuchowski 1997 for clustered records; Bandos et al. 2005 for the
        permutation; Zou and Donner 2008 for the joined interval.
    """
    is_case, scores = checked(y, [first, second])
    patients = patients_of(groups, len(is_case))
    if reason := undefined(is_case) or no_variance(is_case, patients):
        return PairedTest(reason=reason)
    areas, influence = areas_of_scores(is_case, scores)
    difference = float(areas[0] - areas[1])
    found = spread(influence[0] - influence[1], is_case, patients)
    result = PairedTest(difference=difference, std_error=found.std_error)
    if found.std_error == 0.0:
        low, high = _joined(is_case, scores, areas, patients)
        p_value = permutation_p_value(is_case, scores, patients)
        return replace(result, low=low, high=high, p_value=p_value, method=PERMUTATION)
    half = found.quantile * found.std_error
    return replace(
        result,
        low=max(-1.0, difference - half),
        high=min(1.0, difference + half),
        p_value=float(2 * t.sf(abs(difference) / found.std_error, found.dof)),
        method=DELONG_T,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, so that a family errs as seldom as one test would.

    Args:
        p_values: of one family, such as every comparison of a report.
    Returns:
        Adjusted p-values in the same order, at most 1.
    Source: Holm 1979.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)
    adjusted = np.empty_like(values)
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in adjusted]


def permutation_p_value(is_case: Flags, scores: Floats, patients: ArrayLike) -> float:
    """Two-sided p-value of equal areas, by swapping the two scores' ranks of whole patients.

    Args:
        is_case: (n,) bool, both classes present.
        scores: (2, n) float.
        patients: (n,) patient of each record.
    Returns:
        (1 + permutations with at least the observed difference) / (1 + `NUM_PERMUTATIONS`), the
        same for the same input: the permutations are drawn with a fixed seed.
    Source: Bandos et al. 2005; Phipson and Smyth 2010 for the 1 in both counts.
    """
    ranks = rankdata(scores, axis=1)
    own = patients_of(patients, len(is_case))
    areas = components(is_case, ranks)[0].mean(axis=1)
    observed = abs(areas[0] - areas[1]) - 1e-12  # rounding is no difference
    if observed <= 0:
        return 1.0  # every permutation is as extreme
    rng = np.random.default_rng(_PERMUTATION_SEED)
    at_once = max(1, min(NUM_PERMUTATIONS, _RANKS_AT_ONCE // len(is_case)))
    as_extreme = 0
    for start in range(0, NUM_PERMUTATIONS, at_once):
        number = min(at_once, NUM_PERMUTATIONS - start)
        swap = rng.random((number, int(own.max()) + 1))[:, own] < 0.5
        one = components(is_case, np.where(swap, ranks[1], ranks[0]))[0].mean(axis=1)
        other = components(is_case, np.where(swap, ranks[0], ranks[1]))[0].mean(axis=1)
        as_extreme += int((abs(one - other) >= observed).sum())
    return (1 + as_extreme) / (1 + NUM_PERMUTATIONS)


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
        infinitesimal jackknife, see `precision_influence`.
    """
    if is_case.shape != score.shape:
        raise ShapeError(
            f"labels and scores must have one length, got {is_case.shape} and {score.shape}; give "
            "one score per record"
        )
    patients = patients_of(groups, len(is_case))
    if reason := undefined(is_case):
        return Interval(reason=reason)
    value, influence = precision_influence(is_case, score)
    if reason := no_variance(is_case, patients):
        return Interval(value=value, reason=reason)
    low, high, method = limits(value, spread(influence, is_case, patients))
    return Interval(value=value, low=low, high=high, method=method)


def areas_of_scores(is_case: Flags, scores: Floats) -> tuple[Floats, Floats]:
    """(K,) areas, and the (K, n) influence of each record on them."""
    of_cases, of_controls = components(is_case, scores)
    areas = of_cases.mean(axis=1)
    influence = np.empty_like(scores)
    influence[:, is_case] = (of_cases - areas[:, None]) / of_cases.shape[1]
    influence[:, ~is_case] = (of_controls - areas[:, None]) / of_controls.shape[1]
    return areas, influence


def _joined(
    is_case: Flags, scores: Floats, areas: Floats, patients: NDArray[np.intp]
) -> tuple[float, float]:
    """Ends of the difference's interval from those of two areas: MOVER without correlation."""
    ranks = rankdata(scores, axis=1)
    difference = float(areas[0] - areas[1])
    if np.array_equal(ranks[0], ranks[1]):
        return difference, difference  # two scores that rank alike are one
    ends = [
        limits(float(a), spread(i, is_case, patients))
        for a, i in zip(*areas_of_scores(is_case, scores), strict=True)
    ]
    (low_1, high_1, _), (low_2, high_2, _) = ends
    below = np.hypot(areas[0] - low_1, high_2 - areas[1])
    above = np.hypot(high_1 - areas[0], areas[1] - low_2)
    return max(-1.0, difference - float(below)), min(1.0, difference + float(above))


def precision_influence(is_case: Flags, score: Floats) -> tuple[float, Floats]:
    """Average precision, and the (n,) derivative by the weight of each record at equal weights.

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
