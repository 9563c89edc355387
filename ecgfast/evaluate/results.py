"""Every number of a report: AUROC by cohort, paired tests, operating points, calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfast.evaluate.interval import Interval
from ecgfast.evaluate.operating import (
    Calibration,
    OperatingPoint,
    calibration,
    operating_point,
    youden_threshold,
)
from ecgfast.evaluate.precision import average_precision
from ecgfast.evaluate.roc import Auroc, PairedTest, delong, delong_paired
from ecgfast.evaluate.runs import LoadedRun
from ecgfast.evaluate.scores import TestPlan, probabilities
from ecgfast.store.reader import StoreReader


@dataclass(frozen=True, kw_only=True)
class CohortResult:
    """One run on one cohort; all intervals take the records of one patient together.

    Attributes:
        auroc: with its interval.
        average_precision: area under the precision-recall curve, with its interval.
        operating: at the threshold of the validation split, None without one.
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
    """Everything a report tells about a set of classifiers.

    Attributes:
        plan: who was tested on what.
        cohorts: cohort -> run's name -> result.
        paired: cohort -> run's name -> first run minus this one.
        thresholds: run's name -> threshold with the highest Youden index on validation.
    """

    plan: TestPlan
    cohorts: dict[str, dict[str, CohortResult]]
    paired: dict[str, dict[str, PairedTest]]
    thresholds: dict[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """The numbers alone, for ``metrics.json``."""
        cohorts = {
            cohort: {name: _numbers(result) for name, result in by_run.items()}
            for cohort, by_run in self.cohorts.items()
        }
        paired = {
            cohort: {name: asdict(test) for name, test in tests.items()}
            for cohort, tests in self.paired.items()
        }
        return {
            "target": self.plan.target,
            "notes": list(self.plan.notes),
            "thresholds": self.thresholds,
            "cohorts": cohorts,
            "first_run_minus": paired,
        }


def compute(plan: TestPlan, classifiers: Sequence[LoadedRun], store: StoreReader) -> Results:
    """Score every run on every cohort of a plan.

    Args:
        plan: from `plan_tests`.
        classifiers: the runs; the first is the one that the others are tested against.
        store: an open store.
    """
    rows = np.unique(np.concatenate([plan.valid, *plan.cohorts.values()]))
    scores: dict[str, NDArray[np.float64]] = {}
    for run in classifiers:
        full = np.full(len(store), np.nan)
        full[rows] = probabilities(run, store, rows)
        scores[run.name] = full
    return summarise(plan, scores)


def summarise(plan: TestPlan, scores: Mapping[str, NDArray[np.float64]]) -> Results:
    """Every number of a report from probabilities that are already there.

    Args:
        plan: who is tested on what.
        scores: run's name -> (N,) float64 probabilities of the store's records, NaN where the plan
            does not ask for one; the first run is the one that the others are tested against.
    """
    thresholds = {
        name: youden_threshold(plan.is_case[plan.valid], full[plan.valid])
        for name, full in scores.items()
    }
    cohorts = {
        cohort: {
            name: _result(plan, chosen, full[chosen], thresholds[name])
            for name, full in scores.items()
        }
        for cohort, chosen in plan.cohorts.items()
    }
    first, *others = scores
    paired = {
        cohort: {
            name: delong_paired(
                plan.is_case[chosen],
                scores[first][chosen],
                scores[name][chosen],
                plan.patients[chosen],
            )
            for name in others
        }
        for cohort, chosen in plan.cohorts.items()
    }
    return Results(plan=plan, cohorts=cohorts, paired=paired, thresholds=thresholds)


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
