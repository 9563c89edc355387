"""What a probability is worth: operating points, calibration, and net benefit.

Thresholds and recalibration are fixed on validation and taken as given in the intervals.

Shapes: n labelled records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit

from ecgfast.evaluate.interval import (
    Interval,
    binomial_limits,
    mean_interval,
    no_variance,
    patients_of,
    plain_interval,
)
from ecgfast.runs.roc import undefined

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
NET_BENEFIT_AT = np.arange(1, 51) / 100  # risks at which somebody might act


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """What a threshold does to one cohort.

    Attributes:
        threshold: a probability at or above it is a finding; taken as given in the intervals.
        sensitivity: share of the cases that are found; its value is None without cases.
        specificity: share of the controls that are not; its value is None without controls.
        ppv: share of cases among the findings, at the prevalence of this cohort; its value is None
            without findings.
        npv: share of controls among all others; its value is None without any.
    """

    threshold: float
    sensitivity: Interval
    specificity: Interval
    ppv: Interval
    npv: Interval


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Agreement of predicted probabilities with outcomes.

    Attributes:
        brier: mean squared difference of probability and outcome; lower is better. With its
            interval.
        mean_predicted: average probability of all records.
        observed: share of cases.
        bin_predicted: average probability of each bin, ascending; at most ten bins of equal size.
        bin_observed: share of cases in each bin.
        bin_low: lower end of its interval, binomial with the bin's patients as trials: few of a
            bin are cases, too few for their variance.
        bin_high: upper end of its interval.
        expected_calibration_error: mean distance of a bin's share and average probability, each
            bin weighted by its records. Chance alone makes it positive.
        slope: of a logistic regression of the outcome on the log odds that the probability stands
            for; 1 is right, below 1 the probabilities are too extreme.
        intercept: what these log odds lack with the slope held at 1; 0 is right, above 0 the
            probabilities are too low.
    """

    brier: Interval
    mean_predicted: float
    observed: float
    bin_predicted: tuple[float, ...]
    bin_observed: tuple[float, ...]
    bin_low: tuple[float, ...]
    bin_high: tuple[float, ...]
    expected_calibration_error: float
    slope: Interval
    intercept: Interval


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """Probabilities corrected on validation: log odds become intercept + slope * log odds.

    Attributes:
        num_cases: validation records with the label.
        num_controls: validation records without it.
        intercept: None where it could not be fitted.
        slope: above 0, so that no record changes its rank; None where it could not be fitted.
        reason: why not; empty when it was.
    """

    num_cases: int
    num_controls: int
    intercept: float | None = None
    slope: float | None = None
    reason: str = ""

    def of(self, probability: Floats) -> Floats | None:
        """(n,) corrected probabilities; None where nothing could be fitted."""
        if self.intercept is None or self.slope is None:
            return None
        corrected: Floats = expit(self.intercept + self.slope * _log_odds(probability))
        return corrected


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """What was fixed on the validation records of a run, before any test.

    Attributes:
        thresholds: name, such as "youden", -> threshold; None without cases or controls.
        recalibration: of its probabilities.
    """

    thresholds: Mapping[str, float | None]
    recalibration: Recalibration

    @property
    def youden(self) -> float | None:
        """Threshold with the highest Youden index; None where there is none."""
        return self.thresholds.get("youden")


@dataclass(frozen=True, kw_only=True)
class NetBenefit:
    """Found cases per record, less what the false findings cost (a decision curve).

    Attributes:
        threshold: `NET_BENEFIT_AT`, the risks at and above which one would act.
        model: net benefit of acting on the model.
        everyone: net benefit of acting on every record; on nobody it is 0.
    """

    threshold: tuple[float, ...]
    model: tuple[float, ...]
    everyone: tuple[float, ...]


def operating_point(
    is_case: Flags, probability: Floats, threshold: float, groups: ArrayLike | None = None
) -> OperatingPoint:
    """Apply a threshold, a probability at or above it being a finding.

    Args:
        is_case: (n,) bool.
        probability: (n,) float.
        threshold: fixed elsewhere, on validation.
        groups: (n,) patient of each record; None: every record is its own patient.
    Raises:
        ShapeError: the lengths differ.
    """
    found, patients = probability >= threshold, patients_of(groups, len(is_case))

    def share(right: Flags, among: Flags, if_empty: str) -> Interval:
        return mean_interval(right[among], patients[among], if_empty=if_empty)

    return OperatingPoint(
        threshold=threshold,
        sensitivity=share(found, is_case, "no cases"),
        specificity=share(~found, ~is_case, "no controls"),
        ppv=share(is_case, found, "no findings"),
        npv=share(~is_case, ~found, "nothing but findings"),
    )


def calibration(
    is_case: Flags,
    probability: Floats,
    groups: ArrayLike | None = None,
    *,
    num_bins: int = 10,
) -> Calibration | None:
    """Compare predicted and observed frequencies; None without records.

    Args:
        is_case: (n,) bool.
        probability: (n,) float in [0, 1].
        groups: (n,) patient of each record; None: every record is its own patient.
        num_bins: at most this many bins, each of ten records or more where there are enough.
    Raises:
        ShapeError: the lengths differ.
    """
    if not len(is_case):
        return None
    patients = patients_of(groups, len(is_case))
    order = np.argsort(probability, kind="stable")
    bins = np.array_split(order, max(1, min(num_bins, len(order) // 10)))
    predicted = [float(probability[rows].mean()) for rows in bins]
    shares = [float(is_case[rows].mean()) for rows in bins]
    ends = [
        binomial_limits(share, len(np.unique(patients[rows])))
        for share, rows in zip(shares, bins, strict=True)
    ]
    gaps = np.abs(np.subtract(shares, predicted))
    slope, intercept = _slope_and_intercept(is_case, probability, patients)
    return Calibration(
        # its interval needs each record's part; scikit-learn's mean differs in the last bit
        brier=mean_interval((probability - is_case) ** 2, groups, if_empty="no labelled records"),
        mean_predicted=float(probability.mean()),
        observed=float(is_case.mean()),
        bin_predicted=tuple(predicted),
        bin_observed=tuple(shares),
        bin_low=tuple(low for low, _ in ends),
        bin_high=tuple(high for _, high in ends),
        expected_calibration_error=float(np.average(gaps, weights=[len(rows) for rows in bins])),
        slope=slope,
        intercept=intercept,
    )


def recalibration(is_case: Flags, probability: Floats) -> Recalibration:
    """Fit a logistic recalibration, to correct the probabilities of other records.

    Args:
        is_case: (n,) bool, of validation records.
        probability: (n,) float in [0, 1].
    Source: Cox 1958; Platt 1999, without his smoothed targets.
    """
    counts = Recalibration(num_cases=int(is_case.sum()), num_controls=int((~is_case).sum()))
    if reason := _not_estimable(is_case, probability):
        return replace(counts, reason=reason)
    intercept, slope = _logistic(is_case, _log_odds(probability))
    if slope <= 0:
        reason = "the share of cases does not rise with the probability"
        return replace(counts, reason=reason)
    return replace(counts, intercept=intercept, slope=slope)


def net_benefit(is_case: Flags, probability: Floats) -> NetBenefit | None:
    """Weigh found cases against false findings at each of `NET_BENEFIT_AT`; None without cases.

    Args:
        is_case: (n,) bool.
        probability: (n,) float in [0, 1], calibrated: acting at a risk of 10 % means that one
            accepts nine false findings for a case.
    Source: Vickers and Elkin 2006.
    """
    if not is_case.any():
        return None
    odds = NET_BENEFIT_AT / (1 - NET_BENEFIT_AT)

    def benefit(score: Floats) -> tuple[float, ...]:
        # records at or above each threshold, from sorted scores
        cases, controls = (
            len(part) - np.searchsorted(np.sort(part), NET_BENEFIT_AT)
            for part in (score[is_case], score[~is_case])
        )
        return tuple(((cases - controls * odds) / len(score)).tolist())

    return NetBenefit(
        threshold=tuple(NET_BENEFIT_AT.tolist()),
        model=benefit(probability),
        everyone=benefit(np.ones(len(is_case))),
    )


def _log_odds(probability: Floats) -> Floats:
    """Log odds, finite: a network's 0 and 1 are rounded."""
    smallest = np.finfo(np.float64).eps
    odds: Floats = logit(np.clip(probability, smallest, 1 - smallest))
    return odds


def _not_estimable(is_case: Flags, probability: Floats) -> str:
    """Why no logistic regression on the probability has a finite slope; empty where one has."""
    if reason := undefined(is_case):
        return reason
    if np.ptp(probability) == 0:
        return "one probability for all records"
    cases, controls = probability[is_case], probability[~is_case]
    if cases.min() >= controls.max() or controls.min() >= cases.max():
        return "probabilities of cases and controls do not overlap"
    return ""


def _logistic(is_case: Flags, log_odds: Floats) -> tuple[float, float]:
    """Intercept and slope with the highest likelihood."""
    from sklearn.linear_model import LogisticRegression  # takes a second

    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8)
    model.fit(log_odds[:, None], is_case)
    return float(model.intercept_[0]), float(model.coef_[0, 0])


def _slope_and_intercept(
    is_case: Flags, probability: Floats, patients: NDArray[np.intp]
) -> tuple[Interval, Interval]:
    """Calibration slope, and calibration in the large, with sandwich variances by patient.

    Source: Cox 1958; Steyerberg 2019, chapter 15; the influence of a record is its score times
        the inverse information (White 1982).
    """
    reason = _not_estimable(is_case, probability) or no_variance(is_case, patients)
    if reason:
        return Interval(reason=reason), Interval(reason=reason)
    x = _log_odds(probability)
    design = np.stack([np.ones(len(x)), x])

    def interval(coefficients: Sequence[float], free: slice) -> Interval:
        expected = expit(np.asarray(coefficients) @ design)
        part = design[free]
        information = (part * expected * (1 - expected)) @ part.T
        influence = np.linalg.solve(information, part * (is_case - expected))
        return plain_interval(float(coefficients[free][-1]), influence[-1], patients)

    shift = brentq(lambda a: expit(a + x).sum() - is_case.sum(), -80, 80, xtol=1e-12)
    return interval(_logistic(is_case, x), slice(None)), interval((shift, 1.0), slice(1))
