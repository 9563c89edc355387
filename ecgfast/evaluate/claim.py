"""Whether pretraining saved labels, in sentences that follow from the numbers alone.

Shapes: n records, S trainings of each model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t

from ecgfast.errors import ShapeError
from ecgfast.evaluate.discrimination import REPEATS_T, PairedTest, areas_of_scores, delong
from ecgfast.evaluate.interval import CONFIDENCE, no_variance, patients_of, spread
from ecgfast.runs.roc import checked, undefined


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Models on the records of a cohort, each trained several times.

    Attributes:
        is_case: (n,) bool.
        patients: (n,) patient of each record.
        scores: model -> (n,) probabilities of each training; those of one number share a seed.
    """

    is_case: NDArray[np.bool_]
    patients: NDArray[np.intp]
    scores: Mapping[str, Sequence[NDArray[np.float64]]]

    def mean_area(self, model: str) -> float:
        """Mean AUROC of the trainings of a model; NaN where it is not defined."""
        areas = [delong(self.is_case, each).value for each in self.scores[model]]
        return float(np.mean([np.nan if area is None else area for area in areas]))


def claim(num_labels: int, external: Repeats, internal: Repeats) -> list[str]:
    """Say whether the first model is better than every other one where nobody learned.

    Args:
        num_labels: that taught all of them.
        external: at hospitals that taught no model; the first model is that of the claim.
        internal: the same trainings on the test patients of the hospital that taught them.
    Returns:
        The verdict first, then each difference, then what was lost on the way out.
    """
    first, *others = external.scores
    tests = {
        other: delong_of_repeats(
            external.is_case, external.scores[first], external.scores[other], external.patients
        )
        for other in others
    }
    wins = [test.low is not None and test.low > 0 for test in tests.values()]
    with_labels = f"With {num_labels} labelled ECGs"
    if all(wins):
        verdict = (
            f"{with_labels} {first} is better than {_listed(others)} at hospitals that taught no "
            "model: pretraining saved labels."
        )
    else:
        lost = [other for other, won in zip(others, wins, strict=True) if not won]
        verdict = (
            f"This shows the machinery and not the claim: {_sentence_start(with_labels)} {first} "
            f"is not shown to be better than {_listed(lost)} at hospitals that taught no model."
        )
    differences = "; ".join(f"{first} minus {other}: {_words(tests[other])}" for other in others)
    falls = "; ".join(
        f"{model} from {internal.mean_area(model):.3f} to {external.mean_area(model):.3f}"
        for model in external.scores
    )
    return [
        verdict,
        f"Difference of mean AUROC over {len(external.scores[first])} trainings: {differences}.",
        f"Why: AUROC on the test patients of the hospital that taught, and elsewhere: {falls}. "
        "What a model loses on the way is what it learned of that hospital alone; what it lacks "
        "in both places it has not learned from so few labels.",
    ]


def _sentence_start(text: str) -> str:
    return text[:1].lower() + text[1:]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)


def _words(test: PairedTest) -> str:
    if test.difference is None or test.low is None or test.high is None:
        return f"no interval, {test.reason}"
    return f"{test.difference:+.3f} ({test.low:+.3f} to {test.high:+.3f})"


def delong_of_repeats(
    y: ArrayLike,
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    groups: ArrayLike | None = None,
) -> PairedTest:
    """Test whether two ways of training have the same mean AUROC, from several trainings of each.

    The variance of the mean difference is that of DeLong, of records that could have been others,
    plus that of the trainings' differences, of seeds that could have been others; Student's t has
    the degrees of freedom of the sum.

    Args:
        y: (n,) bool or 0/1, True = case.
        first: S scores of one way, each (n,), higher = more likely a case.
        second: S scores of the other way; number s has the seed of number s of the first.
        groups: (n,) patient of each record, as in `delong`.
    Returns:
        `PairedTest` of first minus second.
    Raises:
        ShapeError: the lengths differ, a score is not finite, or fewer than two trainings.
    Source: DeLong et al. 1988; Obuchowski 1997; Satterthwaite 1946.
    """
    repeats = len(first)
    if repeats != len(second) or repeats < 2:
        raise ShapeError(
            f"both ways need the same number of trainings, 2 or more, got {repeats} and "
            f"{len(second)}"
        )
    is_case, scores = checked(y, [*first, *second])
    patients = patients_of(groups, len(is_case))
    if reason := undefined(is_case) or no_variance(is_case, patients):
        return PairedTest(reason=reason)
    areas, influence = areas_of_scores(is_case, scores)
    differences = areas[:repeats] - areas[repeats:]
    of_records = spread((influence[:repeats] - influence[repeats:]).mean(axis=0), is_case, patients)
    variances = np.array([of_records.std_error**2, differences.var(ddof=1) / repeats])
    difference, std_error = float(differences.mean()), float(np.sqrt(variances.sum()))
    if std_error == 0.0:
        return PairedTest(difference=difference, reason="neither records nor trainings differ")
    dofs = np.array([of_records.dof, repeats - 1])
    dof = float(variances.sum() ** 2 / (variances**2 / dofs).sum())
    half = float(t.ppf(0.5 + CONFIDENCE / 2, dof)) * std_error
    return PairedTest(
        difference=difference,
        low=max(-1.0, difference - half),
        high=min(1.0, difference + half),
        p_value=float(2 * t.sf(abs(difference) / std_error, dof)),
        std_error=std_error,
        method=REPEATS_T,
    )
