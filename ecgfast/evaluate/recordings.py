"""Windows of one recording taken together: the mean of their probabilities, and their spread.

Shapes: N records of the store, n rows that test a run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.evaluate.planning import TestPlan
from ecgfast.store.table import recordings_of

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """What the windows of each recording have in common, at the row of its first one; else NaN.

    Attributes:
        count: (N,) how many were averaged.
        sd: (N,) standard deviation of their probabilities (n - 1), NaN of a single window.
        lowest: (N,) probability.
        highest: (N,) probability.
    """

    count: Floats
    sd: Floats
    lowest: Floats
    highest: Floats


def averaged(
    plan: TestPlan, scores: Mapping[str, Floats], records: pa.Table, *, what: str = "probability"
) -> tuple[TestPlan, dict[str, Floats], dict[str, Windows]]:
    """Take the windows of each recording together, those of one label.

    Args:
        plan: which windows test each run.
        scores: run's name -> (N,) probabilities of them.
        records: of the store, which say what recording a window is of.
        what: the scores are, for notes.
    Returns:
        the plan with one row for each recording, that of its first window which tests a run; the
        mean probabilities at these rows; and the spread of each run's windows.
    """
    names = np.array(recordings_of(records), dtype=object)
    label_N = plan.is_case if plan.truth is None else plan.truth
    labelled = [*zip(names.tolist(), label_N.tolist(), strict=True)]
    numbers: dict[tuple[str, float], int] = {}
    recording_N = np.array([numbers.setdefault(each, len(numbers)) for each in labelled], int)
    tested = plan.rows_of(None)
    _, first, inverse = np.unique(recording_N[tested], return_index=True, return_inverse=True)
    shown_N = np.full(len(recording_N), -1)  # of each tested window, the first of its recording
    shown_N[tested] = tested[first][inverse]
    means, windows, notes = {}, {}, []
    for run, probability in scores.items():
        rows = plan.rows_of(run)
        shown, inverse, count = np.unique(shown_N[rows], return_inverse=True, return_counts=True)
        found = _of_groups(probability[rows], inverse, count)
        blank = np.full(len(recording_N), np.nan)
        means[run], *parts = (blank.copy() for _ in range(5))
        for column, values in zip((means[run], *parts), found, strict=True):
            column[shown] = values
        windows[run] = Windows(count=parts[0], sd=parts[1], lowest=parts[2], highest=parts[3])
        notes.append(_note(run, what, len(rows), count, found[2]))
    cohorts = {
        cohort: {run: np.unique(shown_N[rows]) for run, rows in by_run.items()}
        for cohort, by_run in plan.cohorts.items()
    }
    return replace(plan, cohorts=cohorts, notes=(*plan.notes, *notes)), means, windows


def _of_groups(
    probability_n: Floats, group_n: NDArray[np.intp], count: NDArray[np.intp]
) -> tuple[Floats, ...]:
    """Mean, count, standard deviation, lowest and highest of each group."""
    mean = np.bincount(group_n, probability_n) / count
    squares = np.bincount(group_n, (probability_n - mean[group_n]) ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        sd = np.sqrt(squares / (count - 1))
    lowest, highest = np.full(len(count), np.inf), np.full(len(count), -np.inf)
    np.minimum.at(lowest, group_n, probability_n)
    np.maximum.at(highest, group_n, probability_n)
    return mean, count.astype(float), np.where(count > 1, sd, np.nan), lowest, highest


def _note(run: str, what: str, num_windows: int, count: NDArray[np.intp], sd: Floats) -> str:
    words = f"{run}: {num_windows:,} windows averaged in {len(count):,} recordings"
    several = sd[count > 1]
    if not several.size:
        return f"{words}, none of which has several"
    return (
        f"{words}; between the windows of one, the standard deviation of the {what} is "
        f"{np.median(several):.3f} in the middle and at most {several.max():.3f}"
    )
