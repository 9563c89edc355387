"""Every number of a report: discrimination, operating points, calibration, net benefit, groups."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.evaluate.baselines import (
    Baseline,
    Fitted,
    against,
    age_and_sex,
    median_beat,
    once_per_training,
)
from ecgfast.evaluate.cohort import FEWEST, subgroups
from ecgfast.evaluate.discrimination import (
    Auroc,
    PairedTest,
    average_precision,
    delong,
    delong_paired,
    holm,
)
from ecgfast.evaluate.interval import Interval
from ecgfast.evaluate.operating import (
    Calibration,
    Fixed,
    NetBenefit,
    OperatingPoint,
    calibration,
    net_benefit,
    operating_point,
    recalibration,
)
from ecgfast.evaluate.planning import TestPlan
from ecgfast.evaluate.recordings import Windows, averaged
from ecgfast.runs.loading import LoadedRun
from ecgfast.store.reader import StoreReader

T = TypeVar("T")
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CohortResult:
    """One run on one cohort; all intervals take the records of one patient together.

    Attributes:
        auroc: with its interval.
        average_precision: area under the precision-recall curve, with its interval.
        points: name of a threshold of the run's validation records -> what it does here.
        calibration: None without records.
        recalibrated: the same of the recalibrated probabilities; None where there are none.
        net_benefit: of the probabilities as the network gives them; None without cases.
        net_benefit_recalibrated: of the recalibrated ones; None where there are none.
        is_case: (n,) bool.
        probability: (n,) float64.
    """

    auroc: Auroc
    average_precision: Interval
    points: Mapping[str, OperatingPoint]
    calibration: Calibration | None
    recalibrated: Calibration | None
    net_benefit: NetBenefit | None
    net_benefit_recalibrated: NetBenefit | None
    is_case: NDArray[np.bool_]
    probability: Floats

    @property
    def operating(self) -> OperatingPoint | None:
        """At the threshold with the highest Youden index."""
        return self.points.get("youden")


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """One run on a part of a cohort.

    Attributes:
        auroc: not defined, with a reason, below `FEWEST` cases or controls.
        operating: at the Youden threshold; None without one, or below `FEWEST`.
    """

    auroc: Auroc
    operating: OperatingPoint | None


@dataclass(frozen=True, kw_only=True)
class Results:
    """Every number of a report on a set of classifiers.

    Attributes:
        plan: which records tested each run.
        cohorts: cohort -> run's name -> result.
        paired: cohort -> run's name -> first run minus this one.
        fixed: run's name -> what its validation records fixed.
        scores: run's name -> (N,) probabilities of the store's records, NaN where it is not tested.
        groups: column -> group -> run's name -> result in the plan's main cohort.
        age_and_sex: what a model of these reaches.
        median_beat: what a logistic regression on the median beat reaches.
        windows: run's name -> those of each recording, where they are averaged.
    """

    plan: TestPlan
    cohorts: dict[str, dict[str, CohortResult]]
    paired: dict[str, dict[str, PairedTest]]
    fixed: dict[str, Fixed]
    scores: dict[str, Floats]
    groups: dict[str, dict[str, dict[str, Subgroup]]] = field(default_factory=dict)
    age_and_sex: Baseline = field(default_factory=Baseline)
    median_beat: Baseline = field(default_factory=Baseline)
    windows: Mapping[str, Windows] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """What is tested, in one line."""
        return self.plan.target

    def rows_of(self, run: str | None) -> Rows:
        """Rows that test a run; see `TestPlan.rows_of`."""
        return self.plan.rows_of(run)

    @property
    def names(self) -> list[str]:
        """Names of the runs, the first one first."""
        return list(self.fixed)

    @property
    def baselines(self) -> dict[str, Baseline]:
        """Simple models, by what a reader calls them."""
        return {"age and sex": self.age_and_sex, "median beat": self.median_beat}

    @property
    def p_holm(self) -> dict[str, dict[str, float]]:
        """P-values of `paired`, corrected for the number of all of them."""
        found = [
            (cohort, name, test.p_value)
            for cohort, tests in self.paired.items()
            for name, test in tests.items()
            if test.p_value is not None
        ]
        adjusted: dict[str, dict[str, float]] = {}
        for (cohort, name, _), p_value in zip(found, holm([p for *_, p in found]), strict=True):
            adjusted.setdefault(cohort, {})[name] = p_value
        return adjusted

    def each(self, part: Callable[[CohortResult], T]) -> dict[str, dict[str, T]]:
        """Return one part of every result: cohort -> run's name -> part."""
        return _each(self.cohorts, part)

    def to_json(self) -> dict[str, Any]:
        """The numbers alone, for ``metrics.json``."""
        return {
            "target": self.plan.target,
            "notes": list(self.plan.notes),
            "thresholds": {name: fixed.youden for name, fixed in self.fixed.items()},
            "cohorts": self.each(_numbers),
            "first_run_minus": _each(self.paired, asdict),
            "p_holm": self.p_holm,
            "fixed_on_validation": {name: asdict(fixed) for name, fixed in self.fixed.items()},
            "subgroups": {
                "cohort": self.plan.main_cohort,
                **{column: _each(groups, asdict) for column, groups in self.groups.items()},
            },
            "age_and_sex": self.age_and_sex.to_json(),
            "median_beat": self.median_beat.to_json(),
        }


def compute(
    plan: TestPlan, classifiers: Sequence[LoadedRun], store: StoreReader, *, average: bool = False
) -> Results:
    """Score every run on its cohorts of a plan.

    Args:
        plan: from `plan_tests`.
        classifiers: the runs; the first is the one that the others are tested against.
        store: an open store.
        average: take the windows of each recording together.
    """
    scores: dict[str, Floats] = {}
    fixed = {}
    for run in classifiers:
        rows = plan.rows_of(run.name)
        scores[run.name] = np.full(len(store), np.nan)
        scores[run.name][rows] = run.probabilities(store, rows)
        assert run.register is not None  # load_run refuses classifiers without
        fixed[run.name] = Fixed(
            thresholds=run.meta.thresholds, recalibration=recalibration(*run.register.validation)
        )
    windows: dict[str, Windows] = {}
    if average:
        plan, scores, windows = averaged(plan, scores, store.records)
    found = summarise(plan, scores, fixed, store.records, median_beat(plan, store))
    return replace(found, windows=windows)


def summarise(
    plan: TestPlan,
    scores: Mapping[str, Floats],
    fixed: Mapping[str, Fixed],
    records: pa.Table,
    median_beats: Mapping[str, Fitted | str] | None = None,
) -> Results:
    """Every number of a report from the scores.

    Args:
        plan: which records test each run.
        scores: run's name -> (N,) probabilities, NaN where it is not tested.
        fixed: run's name -> what its own validation records fixed.
        records: of the store, N rows with age, sex, site and device where they are known.
        median_beats: run's name -> its regression on the median beat, or why there is none;
            None: of no run.
    """
    cohorts = {
        cohort: {
            name: _result(plan, rows, scores[name][rows], fixed[name])
            for name, rows in by_run.items()
        }
        for cohort, by_run in plan.cohorts.items()
    }
    first, *others = scores
    paired = {
        cohort: {
            name: _paired(plan, both, scores[first], scores[name])
            for name in others
            if name in by_run
            for both in [np.intersect1d(by_run[first], by_run[name])]
        }
        for cohort, by_run in plan.cohorts.items()
        if first in by_run
    }
    of_age_and_sex = once_per_training(
        plan, lambda name: age_and_sex(records, plan.is_case, plan.training[name])
    )
    return Results(
        plan=plan,
        cohorts=cohorts,
        paired=paired,
        fixed=dict(fixed),
        scores=dict(scores),
        groups=_groups(plan, scores, fixed, records),
        age_and_sex=against(plan, scores, of_age_and_sex),
        median_beat=against(plan, scores, median_beats or {}),
    )


def _paired(plan: TestPlan, rows: Rows, first: Floats, second: Floats) -> PairedTest:
    """First minus second of (N,) scores on some rows."""
    return delong_paired(plan.is_case[rows], first[rows], second[rows], plan.patients[rows])


def _result(plan: TestPlan, rows: Rows, probability: Floats, fixed: Fixed) -> CohortResult:
    is_case, patients = plan.is_case[rows], plan.patients[rows]
    corrected = fixed.recalibration.of(probability)
    return CohortResult(
        auroc=delong(is_case, probability, patients),
        average_precision=average_precision(is_case, probability, patients),
        points={
            name: operating_point(is_case, probability, threshold, patients)
            for name, threshold in fixed.thresholds.items()
            if threshold is not None
        },
        calibration=calibration(is_case, probability, patients),
        recalibrated=None if corrected is None else calibration(is_case, corrected, patients),
        net_benefit=net_benefit(is_case, probability),
        net_benefit_recalibrated=None if corrected is None else net_benefit(is_case, corrected),
        is_case=is_case,
        probability=probability,
    )


def _groups(
    plan: TestPlan,
    scores: Mapping[str, Floats],
    fixed: Mapping[str, Fixed],
    records: pa.Table,
) -> dict[str, dict[str, dict[str, Subgroup]]]:
    """Every subgroup of the main cohort that has a tested record."""
    found: dict[str, dict[str, dict[str, Subgroup]]] = {}
    divided = subgroups(records)
    for name, rows in plan.cohorts[plan.main_cohort].items():
        for column, groups in divided.items():
            for group, chosen in groups.items():
                if len(part := rows[chosen[rows]]):
                    by_run = found.setdefault(column, {}).setdefault(group, {})
                    by_run[name] = _subgroup(plan, part, scores[name][part], fixed[name].youden)
    return found


def _subgroup(plan: TestPlan, rows: Rows, probability: Floats, threshold: float | None) -> Subgroup:
    is_case, patients = plan.is_case[rows], plan.patients[rows]
    num_cases, num_controls = int(is_case.sum()), int((~is_case).sum())
    if min(num_cases, num_controls) < FEWEST:
        reason = f"fewer than {FEWEST} cases or controls"
        few = Auroc(num_cases=num_cases, num_controls=num_controls, reason=reason)
        return Subgroup(auroc=few, operating=None)
    area = delong(is_case, probability, patients)
    if threshold is None:
        return Subgroup(auroc=area, operating=None)
    point = operating_point(is_case, probability, threshold, patients)
    return Subgroup(auroc=area, operating=point)


def _each(
    table: Mapping[str, Mapping[str, Any]], part: Callable[[Any], T]
) -> dict[str, dict[str, T]]:
    """Apply a function to the values of a table of tables."""
    return {
        row: {name: part(value) for name, value in by_name.items()}
        for row, by_name in table.items()
    }


def _numbers(result: CohortResult) -> dict[str, Any]:
    numbers = {**vars(result), "operating_point": result.operating}
    del numbers["is_case"], numbers["probability"]
    points = {name: asdict(point) for name, point in numbers.pop("points").items()}
    return {name: part and asdict(part) for name, part in numbers.items()} | {
        "operating_points": points
    }
