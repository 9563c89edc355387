"""Several targets of one model: a report of each, beside each other here, and their mean.

Shapes: N records of the store, n chosen ones, K outputs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.evaluate import charts, findings
from ecgfast.evaluate.discrimination import areas_of_scores, precision_influence
from ecgfast.evaluate.interval import (
    Interval,
    limits,
    mean_interval,
    no_variance,
    patients_of,
    spread,
)
from ecgfast.evaluate.planning import plan_tests
from ecgfast.evaluate.results import Results, compute
from ecgfast.evaluate.scores import scores_of
from ecgfast.evaluate.views import Table, View
from ecgfast.runs.column_task import Classes
from ecgfast.runs.loading import LoadedRun
from ecgfast.runs.outputs import run_of_output
from ecgfast.runs.roc import undefined
from ecgfast.runs.task import Task
from ecgfast.store.reader import StoreReader

FOLDER = "targets"
MEAN = "mean of the targets"
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """One run on one cohort, the mean over the targets that have cases and controls there.

    Attributes:
        auroc: macro-averaged, with its interval over patients; without one where all cases or all
            controls of a target are of a single patient, whose variance nobody knows.
        average_precision: likewise.
        num_targets: how many these are.
    """

    auroc: Interval
    average_precision: Interval
    num_targets: int


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """One run of exclusive classes on one cohort; it says the class of the highest probability.

    Attributes:
        accuracy: share of the records whose class it says, with its interval.
        counts: records of each class (rows) of which it says each class (columns).
    """

    accuracy: Interval
    counts: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Several:
    """Every number of a report on runs of several outputs.

    Attributes:
        task: of the runs.
        results: name of an output -> results of the runs, as if they had learned that alone.
        runs: name of an output -> such runs.
    """

    task: Task
    results: Mapping[str, Results]
    runs: Mapping[str, Sequence[LoadedRun]]

    @property
    def target(self) -> str:
        """What is tested, in one line."""
        return self.task.name

    def rows_of(self, run: str | None) -> Rows:
        """Rows, ascending, that test a run for any target; None: that test any run."""
        parts = [results.plan.rows_of(run) for results in self.results.values()]
        return np.unique(np.concatenate(parts))

    def means(self) -> dict[str, dict[str, Mean]]:
        """Cohort -> run's name -> its mean over the targets."""
        cohorts = dict.fromkeys(c for results in self.results.values() for c in results.cohorts)
        names = next(iter(self.results.values())).names
        found = {c: {n: _mean([*self.results.values()], c, n) for n in names} for c in cohorts}
        return {
            cohort: {name: mean for name, mean in by_run.items() if mean is not None}
            for cohort, by_run in found.items()
        }

    def confusions(self) -> dict[str, dict[str, Confusion]]:
        """Cohort -> run's name -> its classes beside the true ones; empty of other tasks."""
        if not isinstance(self.task, Classes):
            return {}
        each = list(self.results.values())
        plan, number = each[0].plan, range(len(each))
        truth_NK = np.stack([results.plan.is_case for results in each], axis=1)
        found: dict[str, dict[str, Confusion]] = {}
        for cohort, by_run in plan.cohorts.items():
            for name, rows in by_run.items():
                true = truth_NK[rows].argmax(axis=1)
                said = np.stack([results.scores[name][rows] for results in each], 1).argmax(axis=1)
                found.setdefault(cohort, {})[name] = Confusion(
                    accuracy=mean_interval(
                        true == said, plan.patients[rows], if_empty="no labelled records"
                    ),
                    counts=[
                        [int(((true == t) & (said == s)).sum()) for s in number] for t in number
                    ],
                )
        return found

    def to_json(self) -> dict[str, Any]:
        """The numbers alone, for ``metrics.json``."""
        return {
            "target": self.task.identity()["target"],
            "targets": {name: results.to_json() for name, results in self.results.items()},
            "mean": {
                cohort: {name: asdict(mean) for name, mean in by_run.items()}
                for cohort, by_run in self.means().items()
            },
            "confusion": {
                cohort: {name: asdict(found) for name, found in by_run.items()}
                for cohort, by_run in self.confusions().items()
            },
        }

    def score_table(self, store: StoreReader) -> pa.Table:
        """Rows of scores.parquet: those of each target, whose name is the first column."""
        tables = []
        for name, results in self.results.items():
            table = scores_of(store, results)
            column = pa.array([name] * len(table), pa.string())
            tables.append(table.add_column(0, pa.field("target", pa.string(), False), column))
        return pa.concat_tables(tables)

    def table(self) -> Table:
        """AUROC of every run (columns) on every cohort and target (rows)."""
        return self._table("AUROC", lambda result: result.auroc, digits=3)

    def view(self) -> View:
        """Tables of AUROC and average precision, and a figure of the main cohort."""
        first = next(iter(self.results.values()))
        main = first.plan.main_cohort
        areas = {
            name: {run: found.auroc for run, found in results.cohorts[main].items()}
            for name, results in self.results.items()
            if main in results.cohorts
        }
        defined = {
            name: {run: area for run, area in by_run.items() if area.value is not None}
            for name, by_run in areas.items()
        }
        defined = {name: by_run for name, by_run in defined.items() if by_run}
        return {
            "cohort": main,
            "table": self.table(),
            "precision": self._table("AUPRC", lambda result: result.average_precision, digits=3),
            "areas": charts.auroc_by_site(defined),
            "confusions": self._confusion_tables(main),
            "links": {
                name: f"{FOLDER}/{folder}/report.html" for name, folder in self.folders.items()
            },
        }

    @property
    def folders(self) -> dict[str, str]:
        """Name of an output -> the folder of its report below `FOLDER`."""
        plain = {name: re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] for name in self.results}
        return {name: f"{n:02d}-{text}" for n, (name, text) in enumerate(plain.items(), 1)}

    def _confusion_tables(self, cohort: str) -> list[View]:
        """Of each run: records of each class by the class that it says."""
        shown = []
        for name, found in self.confusions().get(cohort, {}).items():
            assert isinstance(self.task, Classes)
            rows = [
                (value, *map(str, counts), str(sum(counts)))
                for value, counts in zip(self.task.classes, found.counts, strict=True)
            ]
            header = ("true class", *(f"says {value}" for value in self.task.classes), "records")
            accuracy = findings.with_interval(found.accuracy, digits=3)
            shown.append(
                {"name": name, "accuracy": accuracy, "table": Table(header=header, rows=rows)}
            )
        return shown

    def _table(self, what: str, part: findings.Part, *, digits: int) -> Table:
        names = next(iter(self.results.values())).names
        rows: list[Sequence[str]] = []
        sums: list[int] = []
        for cohort, means in self.means().items():
            for target, results in self.results.items():
                by_run = results.cohorts.get(cohort, {})
                counts = dict.fromkeys(
                    f"{r.auroc.num_cases} / {r.auroc.num_controls}" for r in by_run.values()
                )
                cells = [
                    findings.with_interval(part(by_run[n]), digits=digits) if n in by_run else "-"
                    for n in names
                ]
                if by_run:
                    rows.append((cohort, target, "; ".join(counts), *cells))
            of_mean = [findings.with_interval(part(means[n]), digits=digits) if n in means else "-"
                       for n in names]  # fmt: skip
            numbers = dict.fromkeys(str(mean.num_targets) for mean in means.values())
            sums.append(len(rows))
            rows.append((cohort, f"{MEAN} ({', '.join(numbers) or 'none'})", "", *of_mean))
        header = (
            "cohort",
            "target",
            "cases / controls",
            *(f"{n}: {what} (95 % CI)" for n in names),
        )
        return Table(header=header, rows=rows, sums=sums)


def several(
    store: StoreReader, classifiers: Sequence[LoadedRun], *, average: bool = False
) -> Several:
    """Score runs of several outputs, once, and test each output by itself.

    Args:
        store: an open store.
        classifiers: the runs; the first is the one that the others are tested against.
        average: take the windows of each recording together.
    Raises:
        ConfigError: the runs learned different things, or no record is left to test a target.
    """
    task = classifiers[0].meta.task
    if others := [run.name for run in classifiers if run.meta.task != task]:
        raise ConfigError(
            f"runs must share their targets, got others in {', '.join(others)} than in "
            f"{classifiers[0].name}; evaluate them apart"
        )
    outputs = range(len(task.outputs))
    nothing = {run.name: np.full((len(store), len(outputs)), np.nan) for run in classifiers}
    truth = task.truth(store.records)
    plans = [
        plan_tests(
            store,
            [run_of_output(run, number, nothing[run.name]) for run in classifiers],
            truth[:, number],
        )
        for number in outputs
    ]
    scores = nothing
    for run in classifiers:
        rows = np.unique(np.concatenate([plan.rows_of(run.name) for plan in plans]))
        scores[run.name][rows] = run.probabilities(store, rows)
    runs = {
        name: [run_of_output(run, number, scores[run.name]) for run in classifiers]
        for number, name in enumerate(task.outputs)
    }
    results = {
        name: compute(plan, own, store, average=average)
        for plan, (name, own) in zip(plans, runs.items(), strict=True)
    }
    return Several(task=task, results=results, runs=runs)


def _mean(by_output: Sequence[Results], cohort: str, run: str) -> Mean | None:
    """None where the cohort tests the run for no target."""
    tested = [each for each in by_output if run in each.cohorts.get(cohort, {})]
    rows = [results.plan.cohorts[cohort][run] for results in tested]
    found = [results.cohorts[cohort][run] for results in tested]
    defined = [n for n, result in enumerate(found) if not undefined(result.is_case)]
    if not defined:
        return None
    patients = tested[0].plan.patients
    lone = [no_variance(found[n].is_case, patients[rows[n]]) for n in defined]
    areas, precisions = [], []
    for n in defined:
        is_case, score = found[n].is_case, found[n].probability
        value, influence = areas_of_scores(is_case, score[None])
        areas.append((float(value[0]), rows[n], influence[0]))
        precisions.append((found[n].average_precision.value or 0.0, rows[n],
                           precision_influence(is_case, score)[1]))  # fmt: skip
    means = [mean_of(parts, patients) for parts in (areas, precisions)]
    if reason := next(filter(None, lone), ""):
        means = [Interval(value=mean.value, reason=reason) for mean in means]
    return Mean(auroc=means[0], average_precision=means[1], num_targets=len(defined))


def mean_of(parts: Sequence[tuple[float, Rows, Floats]], patients: NDArray[np.intp]) -> Interval:
    """Mean of numbers of different records, with the interval of `interval.limits`.

    A patient's influence on the mean is the sum of his influences on the numbers, by their count.

    Args:
        parts: of each number: its value in [0, 1], its (n,) rows, and their (n,) influences.
        patients: (N,) number of each record's patient.
    """
    value = float(np.mean([number for number, _, _ in parts]))
    influence, used = np.zeros(len(patients)), np.zeros(len(patients), bool)
    for _, rows, own in parts:
        influence[rows] += own / len(parts)
        used[rows] = True
    numbered = patients_of(patients[used], int(used.sum()))
    if not numbered.any():
        return Interval(value=value, reason="records of a single patient")
    one_class = np.ones(len(numbered), dtype=bool)
    low, high, method = limits(value, spread(influence[used], one_class, numbered))
    return Interval(value=value, low=low, high=high, method=method)
