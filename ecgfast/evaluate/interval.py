"""95 % intervals, records of one patient taken together.

One rule for all shares and areas in [0, 1]. Each statistic is written as a sum of influences of
its records; the influences of one patient are added, and their squares give the variance
(Obuchowski 1997). The interval is symmetric on the logit scale, with Student's t: the degrees of
freedom are Satterthwaite's, from the fourth moment of the patients' sums, because near 1 few
patients carry most of the variance. Without any variance, the binomial interval over patients takes
its place. Numbers without bounds, such as a slope, have this variance and t on their own scale.

Shapes: n records, P patients.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, t

from ecgfast.errors import ShapeError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Groups = NDArray[np.intp]

CONFIDENCE = 0.95
LOGIT_T = "patient-clustered logit t"
BINOMIAL = "binomial over patients"
PLAIN_T = "patient-clustered t"
_NO_VARIANCE = 1e-12  # standard errors below are rounding


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number with its 95 % interval.

    Attributes:
        value: a share or an area in [0, 1], a slope or an intercept; None where not defined.
        low: lower end, or None.
        high: upper end, or None.
        method: `LOGIT_T`, `BINOMIAL` or `PLAIN_T`; empty without an interval.
        reason: why `value` or the interval is not defined; empty when both are.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    method: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Standard error of a statistic, and its degrees of freedom.

    Attributes:
        std_error: of the statistic; 0 where no patient differs from another.
        dof: degrees of freedom of `std_error`, at least 1.
        num_patients: in the smaller class.
    """

    std_error: float
    dof: float
    num_patients: int

    @property
    def quantile(self) -> float:
        """Half width of the interval in standard errors."""
        return float(t.ppf(0.5 + CONFIDENCE / 2, self.dof))


def patients_of(groups: ArrayLike | None, num_records: int) -> Groups:
    """Number the patients of records from 0.

    Args:
        groups: (n,) patient of each record, of any type; None: every record is its own patient.
        num_records: n.
    Returns:
        (n,) numbers below P, each of them in use.
    Raises:
        ShapeError: `groups` has another length.
    """
    if groups is None:
        return np.arange(num_records)
    labels = np.asarray(groups)
    if labels.shape != (num_records,):
        raise ShapeError(
            f"groups must have shape ({num_records},), got {labels.shape}; give one patient per "
            "record"
        )
    return np.unique(labels, return_inverse=True)[1]


def spread(influence: Floats, is_case: Flags, patients: Groups) -> Spread:
    """Standard error of a statistic from the influences of its records.

    Args:
        influence: (n,) what each record adds to statistic minus truth, to first order.
        is_case: (n,) bool. Where both classes occur, each needs two patients or more.
        patients: (n,) from `patients_of`, two patients or more.
    Source: Obuchowski 1997, S10, S01 and S11; Satterthwaite 1946 for the degrees of freedom, once
        with the patients of either class and of both (Welch) and once with the observed fourth
        moment: the smaller number counts.
    """
    total = int(patients.max()) + 1
    classes = [chosen for chosen in (is_case, ~is_case) if chosen.any()]
    sums = np.stack([np.bincount(patients[c], influence[c], minlength=total) for c in classes])
    counts = np.array([_num_different(patients[c]) for c in classes])
    variances = (sums**2).sum(axis=1) * counts / (counts - 1)
    by_patient = sums.sum(axis=0)
    square = float(by_patient @ by_patient)
    variance = float(variances.sum())
    if len(sums) == 2:
        variance += float(2 * sums[0] @ sums[1]) * total / (total - 1)
    std_error = float(np.sqrt(max(0.0, variance)))
    smaller = int(counts.min())
    if std_error < _NO_VARIANCE or square < _NO_VARIANCE**2:
        return Spread(std_error=0.0, dof=1.0, num_patients=smaller)
    # Patients with cases, with controls and with both: three independent parts of the variance.
    has = [np.bincount(patients[c], minlength=total) > 0 for c in (is_case, ~is_case)]
    kind = has[0] + 2 * has[1]
    number = np.maximum(np.bincount(kind), 2)
    parts = np.bincount(kind, by_patient**2) * number / (number - 1)
    welch = float(parts.sum() ** 2 / (parts**2 / (number - 1)).sum())
    excess = float((by_patient**4).sum()) / square**2 - 1 / total  # 0 where all are alike
    moment = 2 / max(excess, 1e-9)
    return Spread(std_error=std_error, dof=min(welch, moment), num_patients=smaller)


def limits(value: float, of: Spread) -> tuple[float, float, str]:
    """Ends of the 95 % interval of a value in [0, 1], and which method gave them.

    Args:
        value: the statistic.
        of: from `spread`.
    Source: DeLong's variance on the logit scale: Pepe 2003. Without variance:
        Clopper and Pearson 1934 with the patients of the smaller class as trials. So many pairs
        of a case and a control share no patient, so for an area of 1 the bound is exact; it is
        the "rule of three" of Hanley and Lippman-Hand 1983 at 97.5 %.
    """
    inside = value * (1 - value)
    if of.std_error == 0.0 or inside < _NO_VARIANCE:
        return *binomial_limits(value, of.num_patients), BINOMIAL
    centre, half = np.log(value / (1 - value)), of.quantile * of.std_error / inside
    # tanh instead of exp: no overflow, however wide the interval is
    low, high = (float(0.5 + 0.5 * np.tanh((centre + s * half) / 2)) for s in (-1, 1))
    return low, high, LOGIT_T


def binomial_limits(share: float, trials: int) -> tuple[float, float]:
    """Ends of the 95 % interval of a share of so many independent trials.

    Source: Clopper and Pearson 1934.
    """
    hits, tail = share * trials, (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if share > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, trials - hits)) if share < 1 else 1.0
    return low, high


def mean_interval(values: ArrayLike, groups: ArrayLike | None, *, if_empty: str) -> Interval:
    """Mean of numbers in [0, 1] with its interval: shares of yes and no, or squared errors.

    Args:
        values: (n,) bool, or float in [0, 1].
        groups: (n,) patient of each record; None: every record is its own patient.
        if_empty: reason to give where n is 0.
    Returns:
        `Interval`; without low and high when all records are of one patient.
    Raises:
        ShapeError: the lengths differ.
    """
    numbers = np.asarray(values, dtype=np.float64)
    patients = patients_of(groups, len(numbers))
    if not len(numbers):
        return Interval(reason=if_empty)
    mean = float(numbers.mean())
    if not patients.any():
        return Interval(value=mean, reason="records of a single patient")
    one_class = np.ones(len(numbers), dtype=bool)
    low, high, method = limits(mean, spread((numbers - mean) / len(numbers), one_class, patients))
    return Interval(value=mean, low=low, high=high, method=method)


def plain_interval(value: float, influence: Floats, patients: Groups) -> Interval:
    """Interval of a number without bounds, symmetric about it.

    Args:
        value: the statistic.
        influence: (n,) what each record adds to statistic minus truth, to first order.
        patients: (n,) from `patients_of`, two patients or more.
    """
    found = spread(influence, np.ones(len(influence), dtype=bool), patients)
    half = found.quantile * found.std_error
    return Interval(value=value, low=value - half, high=value + half, method=PLAIN_T)


def no_variance(is_case: Flags, patients: Groups) -> str:
    """Why numbers of (n,) records, both classes present, have no interval; empty when they have."""
    if _num_different(patients[is_case]) < 2:
        return "cases of a single patient"
    return "controls of a single patient" if _num_different(patients[~is_case]) < 2 else ""


def _num_different(patients: Groups) -> int:
    """How many patients (n,) numbers are of; np.unique takes ten times as long."""
    return int(np.count_nonzero(np.bincount(patients)))
