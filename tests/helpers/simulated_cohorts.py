"""Simulated cohorts whose true AUROC, average precision and shares are known in closed form.

A patient has 1 to 6 ECGs. The score of a record is shift * case + patient effect + record noise,
both normal, with variances `alike` and 1 - alike. Cases are 20 % of the patients, or 20 % of the
records when labels may change between the ECGs of a patient. Truths are those of the population's
records: a random case against a random control of another patient.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Floats = NDArray[np.float64]
PREVALENCE = 0.2


class Cohort(NamedTuple):
    """(n,) labels, (n,) patients and two (n,) scores that are equally good."""

    is_case: NDArray[np.bool_]
    patient: NDArray[np.intp]
    score: Floats
    other: Floats


def draw(
    rng: np.random.Generator, patients: int, shift: float, alike: float, *, changing: bool = False
) -> Cohort:
    """One cohort with at least two patients who are cases."""
    while True:
        patient = np.repeat(np.arange(patients), rng.integers(1, 7, patients))
        n = len(patient)
        if changing:
            liability = 0.7**0.5 * rng.normal(size=patients)[patient]
            is_case = liability + 0.3**0.5 * rng.normal(size=n) > norm.isf(PREVALENCE)
        else:
            is_case = (rng.random(patients) < PREVALENCE)[patient]
        if len(np.unique(patient[is_case])) > 1:
            break
    effect = rng.normal(size=patients)
    effects = (effect, 0.7 * effect + 0.51**0.5 * rng.normal(size=patients))
    score, other = (
        shift * is_case + alike**0.5 * e[patient] + (1 - alike) ** 0.5 * rng.normal(size=n)
        for e in effects
    )
    return Cohort(is_case, patient, score, other)


def true_auroc(shift: float) -> float:
    """Chance that N(shift, 1) exceeds N(0, 1)."""
    return float(norm.cdf(shift / 2**0.5))


def true_average_precision(shift: float) -> float:
    """Mean over the cases' scores of the precision at that score."""
    at = np.linspace(-8, shift + 8, 100_001)
    found, false = PREVALENCE * norm.sf(at - shift), (1 - PREVALENCE) * norm.sf(at)
    return float(np.trapezoid(norm.pdf(at - shift) * found / (found + false), at))
