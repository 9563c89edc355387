"""Numbers that runs predict beside those that were measured: errors, bias, limits of agreement.

Shapes: N records of the store, n chosen ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.evaluate import views
from ecgfast.evaluate.agreement_charts import bland_altman, observed_predicted
from ecgfast.evaluate.error_differences import (
    ErrorDifferences,
    error_differences,
    mean,
    mean_absolute,
    root_mean_square,
)
from ecgfast.evaluate.findings import with_interval
from ecgfast.evaluate.interval import Interval, patients_of, plain_interval
from ecgfast.evaluate.planning import TestPlan, plan_tests
from ecgfast.evaluate.recordings import averaged
from ecgfast.evaluate.scores import values_table
from ecgfast.evaluate.views import Table, View
from ecgfast.runs.column_task import Number
from ecgfast.runs.loading import LoadedRun
from ecgfast.runs.outputs import run_at_threshold, threshold_of
from ecgfast.store.reader import StoreReader

WITHIN = 1.96  # standard deviations: 95 % of normal differences
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One run on one cohort; differences are predicted minus measured, in the label's unit.

    Intervals take the records of one patient together and are Student's t on the plain scale.

    Attributes:
        num_patients: of the records.
        mae: mean absolute error.
        rmse: root mean squared error.
        r2: share of the variance of the measured numbers that is explained; below 0 is worse than
            their mean.
        bias: mean difference.
        lower: bias less 1.96 standard deviations of the differences: the lower limit of agreement.
        upper: the upper one.
        measured: (n,) float64.
        predicted: (n,) float64.
    """

    num_patients: int
    mae: Interval
    rmse: Interval
    r2: Interval
    bias: Interval
    lower: Interval
    upper: Interval
    measured: Floats
    predicted: Floats

    def to_json(self) -> dict[str, Any]:
        """The numbers alone."""
        parts = ("mae", "rmse", "r2", "bias", "lower", "upper")
        return {
            "num_records": len(self.measured),
            "num_patients": self.num_patients,
            **{name: vars(getattr(self, name)) for name in parts},
        }


def agreement(measured: Floats, predicted: Floats, groups: NDArray[np.intp]) -> Agreement:
    """Agreement of n records.

    Args:
        measured: (n,) labels.
        predicted: (n,) of a run.
        groups: (n,) patient of each record.
    Source: Bland and Altman 1986, with the standard deviation of the differences of all records:
        where patients have several, it holds the differences within and between them (Bland and
        Altman 2007, section 3).
    """
    number, patients = len(measured), patients_of(groups, len(measured))
    difference = predicted - measured

    def interval(value: float, influence: Floats, reason: str = "") -> Interval:
        """`influence` of each record, n times what it adds to value minus truth."""
        if number < 2 or reason or not np.isfinite(value):
            return Interval(reason=reason or "fewer than two labelled records")
        if not patients.any():
            return Interval(value=value, reason="records of a single patient")
        return plain_interval(value, influence / number, patients)

    def limit(factor: float) -> Interval:
        influence = difference - bias
        if sd:
            influence = influence + factor * (np.square(difference - bias) - sd**2) / (2 * sd)
        return interval(bias + factor * sd, influence)

    with np.errstate(invalid="ignore", divide="ignore"):
        square = np.square(difference)
        mse, bias = mean(square), mean(difference)
        sd = float(difference.std(ddof=1)) if number > 1 else float("nan")
        spread = np.square(measured - mean(measured))
        variance = mean(spread)
        of_r2 = (mse * (spread - variance) / variance - (square - mse)) / variance
        return Agreement(
            num_patients=len(np.unique(patients)),
            mae=interval(*mean_absolute(difference)),
            rmse=interval(*root_mean_square(difference)),
            r2=interval(1 - mse / variance if variance else 0.0, of_r2,
                        "" if variance else "all measured numbers are alike"),
            bias=interval(bias, difference - bias),
            lower=limit(-WITHIN),
            upper=limit(WITHIN),
            measured=measured,
            predicted=predicted,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Agreements:
    """Every number of a report on runs that learned the number of one column.

    Attributes:
        plan: which records tested each run.
        measured: (N,) labels, NaN where unknown.
        cohorts: cohort -> run's name -> result.
        values: run's name -> (N,) predicted numbers, NaN where it is not tested.
        differences: of the first run from the others.
    """

    plan: TestPlan
    measured: Floats
    cohorts: Mapping[str, Mapping[str, Agreement]]
    values: Mapping[str, Floats]
    differences: ErrorDifferences

    @property
    def target(self) -> str:
        """What is tested, in one line."""
        return self.plan.target

    def rows_of(self, run: str | None) -> NDArray[np.int64]:
        """Rows that test a run; see `TestPlan.rows_of`."""
        return self.plan.rows_of(run)

    def to_json(self) -> dict[str, Any]:
        """The numbers alone, for ``metrics.json``."""
        return {
            "target": self.target,
            "notes": list(self.plan.notes),
            "cohorts": {
                cohort: {name: found.to_json() for name, found in by_run.items()}
                for cohort, by_run in self.cohorts.items()
            },
            **self.differences.to_json(),
        }

    def cohort(self, store: StoreReader) -> Table:
        """Records of each site and split, and how many have a label."""
        table = views.cohort(store, None, np.where(np.isnan(self.measured), np.nan, 0.0))
        kept = [n for n, name in enumerate(table.header) if name not in ("cases", "prevalence")]
        header, *rows = ([row[n] for n in kept] for row in (table.header, *table.rows))
        names = ["with a label" if name == "controls" else name for name in header]
        return replace(table, header=names, rows=rows)

    def value_table(self, store: StoreReader) -> pa.Table:
        """Rows of values.parquet."""
        return values_table(store, self.plan, self.measured, self.values)

    def table(self) -> Table:
        """Every number of every run on every cohort."""
        header = (
            "cohort", "run", "records / patients", "MAE (95 % CI)", "RMSE (95 % CI)",
            "R2 (95 % CI)", "bias (95 % CI)", "lower limit of agreement (95 % CI)",
            "upper limit of agreement (95 % CI)",
        )  # fmt: skip
        rows = [
            (
                cohort,
                name,
                f"{len(found.measured):,} / {found.num_patients:,}",
                *(with_interval(each) for each in (
                    found.mae, found.rmse, found.r2, found.bias, found.lower, found.upper
                )),
            )
            for cohort, by_run in self.cohorts.items()
            for name, found in by_run.items()
        ]  # fmt: skip
        return Table(header=header, rows=rows)

    def key_finding(self) -> list[str]:
        """What the first run reaches on the main cohort, in a sentence."""
        (name, *_), cohort = self.values, self.plan.main_cohort
        found = self.cohorts[cohort].get(name)
        if found is None:
            return [f"{name} is not tested on {cohort}."]
        return [
            f"{self.target.replace('_', ' ').capitalize()}, {cohort}: mean absolute error of "
            f"{name} {with_interval(found.mae)}, bias {with_interval(found.bias)}, limits of "
            f"agreement {with_interval(found.lower)} and {with_interval(found.upper)}.",
            *self.differences.sentences(cohort),
        ]

    def view(self) -> View:
        """Table, notes, and figures of the main cohort."""
        shown = {
            name: (found.measured, found.predicted, (found.bias, found.lower, found.upper))
            for name, found in self.cohorts[self.plan.main_cohort].items()
            if found.bias.value is not None
        }
        return {
            "target": self.target,
            "table": self.table(),
            "notes": list(self.plan.notes),
            "differences": self.differences.tests and self.differences.table(),
            "first": self.differences.first,
            "cohort": self.plan.main_cohort,
            "observed": observed_predicted(shown, self.target) if shown else None,
            "bland_altman": bland_altman(shown, self.target) if shown else None,
        }


def agreements(
    runs: Sequence[LoadedRun], plan: TestPlan, store: StoreReader, *, average: bool
) -> Agreements:
    """Test runs of one column.

    Args:
        runs: with the numbers that they gave the records of a store, from `with_values`.
        plan: of the runs.
        store: that they are tested on.
        average: take the windows of each recording together.
    """
    assert plan.truth is not None
    measured, values = plan.truth, {}
    for run in runs:
        assert run.scores is not None
        values[run.name] = run.scores
    if average:
        plan, values, _ = averaged(plan, values, store.records, what="number")
    cohorts = {
        cohort: {
            name: agreement(measured[rows], values[name][rows], plan.patients[rows])
            for name, rows in by_run.items()
        }
        for cohort, by_run in plan.cohorts.items()
    }
    return Agreements(
        plan=plan,
        measured=measured,
        cohorts=cohorts,
        values=values,
        differences=error_differences(plan, measured, values),
    )


def with_values(
    store: StoreReader, runs: Sequence[LoadedRun], plan: TestPlan, target: str | None
) -> list[LoadedRun]:
    """The runs with what they give the records that test them, scored once.

    Args:
        store: an open store.
        runs: that learned numbers.
        plan: of the runs.
        target: of a threshold, whose records are scored too; None: of none.
    """
    nothing, plans = np.full(len(store), np.nan), [plan]
    if target is not None:
        at = [run_at_threshold(replace(run, scores=nothing), target) for run in runs]
        plans.append(plan_tests(store, at))
    found = []
    for run in runs:
        rows = np.unique(np.concatenate([each.rows_of(run.name) for each in plans]))
        scores = nothing.copy()
        scores[rows] = run.probabilities(store, rows)
        found.append(replace(run, scores=scores))
    return found


def plan_of(store: StoreReader, runs: Sequence[LoadedRun]) -> TestPlan:
    """Which records test runs of one column."""
    return plan_tests(store, runs, runs[0].meta.task.truth(store.records)[:, 0])


def target_beside(runs: Sequence[LoadedRun], asked: str | None) -> str | None:
    """The yes or no at which runs of numbers are tested beside classifiers; None for none.

    Args:
        runs: of a report, in part of numbers.
        asked: of `evaluate`; None takes that of the classifiers.
    Raises:
        ConfigError: it compares another column, or no run learned a number.
    """
    numbers = [run for run in runs if isinstance(run.meta.task, Number)]
    others = list(dict.fromkeys(run.meta.target for run in runs if run not in numbers))
    if not numbers:
        if asked is not None:
            raise ConfigError(
                f"--target {asked} is for runs that learned a number, got none; leave it out"
            )
        return None
    targets = list(dict.fromkeys([*([asked] if asked is not None else []), *others]))
    columns = list(dict.fromkeys(run.meta.target for run in numbers))
    if len(columns) > 1 or len(targets) > 1:
        raise ConfigError(
            f"runs must share one target, got {', '.join([*columns, *targets])}; evaluate them "
            "apart"
        )
    if targets:
        threshold_of(targets[0], columns[0])
    return targets[0] if targets else None
