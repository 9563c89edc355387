"""Every number of a report: AUROC by cohort, paired tests, operating points, calibration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ecgfast.evaluate.discrimination import (
    Auroc,
    PairedTest,
    average_precision,
    delong,
    delong_paired,
)
from ecgfast.evaluate.interval import Interval
from ecgfast.evaluate.operating import (
    Calibration,
    OperatingPoint,
    calibration,
    operating_point,
)
from ecgfast.evaluate.planning import TestPlan
from ecgfast.runs.loading import LoadedRun
from ecgfast.store.reader import StoreReader

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CohortResult:
    """One run on one cohort; all intervals take the records of one patient together.

    Attributes:
        auroc: with its interval.
        average_precision: area under the precision-recall curve, with its interval.
        operating: at the threshold of the run's validation records, None without one.
        calibration: None without records.
        is_case: (n,) bool.
        probability: (n,) float64.
    """

    auroc: Auroc
    average_precision: Interval
    operating: OperatingPoint | None
    calibration: Calibration | None
    is_case: NDArray[np.bool_]
    probability: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Every number of a report on a set of classifiers.

    Attributes:
        plan: which records tested each run.
        cohorts: cohort -> run's name -> result.
        paired: cohort -> run's name -> first run minus this one.
        thresholds: run's name -> threshold with the highest Youden index on its own validation
            records.
        scores: run's name -> (N,) probabilities of the store's records, NaN where it is not tested.
    """

    plan: TestPlan
    cohorts: dict[str, dict[str, CohortResult]]
    paired: dict[str, dict[str, PairedTest]]
    thresholds: dict[str, float | None]
    scores: dict[str, NDArray[np.float64]]

    def each(self, part: Callable[[CohortResult], T]) -> dict[str, dict[str, T]]:
        """Return one part of every result: cohort -> run's name -> part."""
        return {
            cohort: {name: part(result) for name, result in by_run.items()}
            for cohort, by_run in self.cohorts.items()
        }

    def to_json(self) -> dict[str, Any]:
        """The numbers alone, for ``metrics.json``."""
        return {
            "target": self.plan.target,
            "notes": list(self.plan.notes),
            "thresholds": self.thresholds,
            "cohorts": self.each(_numbers),
            "first_run_minus": {
                cohort: {name: asdict(test) for name, test in tests.items()}
                for cohort, tests in self.paired.items()
            },
        }


def compute(plan: TestPlan, classifiers: Sequence[LoadedRun], store: StoreReader) -> Results:
    """Score every run on its cohorts of a plan.

    Args:
        plan: from `plan_tests`.
        classifiers: the runs; the first is the one that the others are tested against.
        store: an open store.
    """
    scores: dict[str, NDArray[np.float64]] = {}
    for run in classifiers:
        rows = plan.rows_of(run.name)
        scores[run.name] = np.full(len(store), np.nan)
        scores[run.name][rows] = run.probabilities(store, rows)
    return summarise(plan, scores, {run.name: run.meta.threshold for run in classifiers})


def summarise(
    plan: TestPlan,
    scores: Mapping[str, NDArray[np.float64]],
    thresholds: Mapping[str, float | None],
) -> Results:
    """Every number of a report from the scores.

    Args:
        plan: which records test each run.
        scores: run's name -> (N,) probabilities, NaN where it is not tested.
        thresholds: run's name -> its own, fixed on its own validation records.
    """
    cohorts = {
        cohort: {
            name: _result(plan, rows, scores[name][rows], thresholds[name])
            for name, rows in by_run.items()
        }
        for cohort, by_run in plan.cohorts.items()
    }
    first, *others = scores
    paired = {
        cohort: {
            name: _paired(plan, np.intersect1d(by_run[first], by_run[name]), scores, first, name)
            for name in others
            if name in by_run
        }
        for cohort, by_run in plan.cohorts.items()
        if first in by_run
    }
    return Results(
        plan=plan,
        cohorts=cohorts,
        paired=paired,
        thresholds=dict(thresholds),
        scores=dict(scores),
    )


def _paired(
    plan: TestPlan,
    rows: NDArray[np.int64],
    scores: Mapping[str, NDArray[np.float64]],
    first: str,
    second: str,
) -> PairedTest:
    """First minus second on the records that test both."""
    return delong_paired(
        plan.is_case[rows], scores[first][rows], scores[second][rows], plan.patients[rows]
    )


def _result(
    plan: TestPlan,
    rows: NDArray[np.int64],
    probability: NDArray[np.float64],
    threshold: float | None,
) -> CohortResult:
    is_case, patients = plan.is_case[rows], plan.patients[rows]
    return CohortResult(
        auroc=delong(is_case, probability, patients),
        average_precision=average_precision(is_case, probability, patients),
        operating=None
        if threshold is None
        else operating_point(is_case, probability, threshold, patients),
        calibration=calibration(is_case, probability, patients),
        is_case=is_case,
        probability=probability,
    )


def _numbers(result: CohortResult) -> dict[str, Any]:
    return {
        "auroc": asdict(result.auroc),
        "average_precision": asdict(result.average_precision),
        "operating_point": result.operating and asdict(result.operating),
        "calibration": result.calibration and asdict(result.calibration),
    }
