"""Operating points fixed on validation, and calibration.

Shapes: n labelled records.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfast.evaluate.interval import Interval, mean_interval, patients_of

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """What a threshold does to one cohort.

    Attributes:
        threshold: a probability at or above it is a finding; taken as given in the intervals.
        sensitivity: share of the cases that are found; its value is None without cases.
        specificity: share of the controls that are not; its value is None without controls.
    """

    threshold: float
    sensitivity: Interval
    specificity: Interval


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
    """

    brier: Interval
    mean_predicted: float
    observed: float
    bin_predicted: tuple[float, ...]
    bin_observed: tuple[float, ...]


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
    return OperatingPoint(
        threshold=threshold,
        sensitivity=mean_interval(found[is_case], patients[is_case], if_empty="no cases"),
        specificity=mean_interval(~found[~is_case], patients[~is_case], if_empty="no controls"),
    )


def calibration(
    is_case: Flags,
    probability: Floats,
    groups: ArrayLike | None = None,
    *,
    num_bins: int = 10,
) -> Calibration | None:
    """Compare predicted and observed frequencies in bins of equal size; None without records.

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
    order = np.argsort(probability, kind="stable")
    bins = np.array_split(order, max(1, min(num_bins, len(order) // 10)))
    return Calibration(
        # its interval needs each record's part; scikit-learn's mean differs in the last bit
        brier=mean_interval((probability - is_case) ** 2, groups, if_empty="no labelled records"),
        mean_predicted=float(probability.mean()),
        observed=float(is_case.mean()),
        bin_predicted=tuple(float(probability[rows].mean()) for rows in bins),
        bin_observed=tuple(float(is_case[rows].mean()) for rows in bins),
    )
