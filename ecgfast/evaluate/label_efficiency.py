"""How many labels a model needs: AUROC against the number of patients who taught it.

A model is a line, a fraction of the labels is a point: the mean of runs that differ in their seed,
hence in the patients who taught them. Its two sources of variance stand apart: the interval is over
the patients who test, the standard deviation is between seeds.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.evaluate import charts
from ecgfast.evaluate.cohort import text_column
from ecgfast.evaluate.discrimination import Auroc, delong_mean
from ecgfast.evaluate.planning import TestPlan, listed
from ecgfast.evaluate.views import Table, View
from ecgfast.runs.loading import LoadedRun
from ecgfast.runs.register import Register
from ecgfast.settings import free_on_resume

FILE = "label_efficiency.csv"
_NOT_OF_A_LINE = {
    *("finetune.label_fraction", "finetune.labels_per_class"),
    *("train.seed", "labels", "attention_kernels"),
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """Runs of one model on one fraction of the labels, and how well they do together.

    Attributes:
        cohort: that tests them; the same records for all lines of a cohort.
        line: name of the model.
        fraction: of the patients with labels.
        per_class: patients of each class instead; None: the fraction.
        train_patients: who taught, mean over the runs.
        train_records: mean over the runs.
        train_cases: records, mean over the runs; None where a run does not say.
        valid_patients: who chose rate and epoch, mean over the runs.
        num_runs: that differ in their seed.
        by_run: AUROC of each run; empty where it is not defined.
        mean: of these, with its interval over the patients who test; the seeds are taken as given.
        seed_sd: standard deviation of `by_run`; None of a single one.
    """

    cohort: str
    line: str
    fraction: float
    per_class: int | None
    train_patients: float
    train_records: float
    train_cases: float | None
    valid_patients: float
    num_runs: int
    by_run: tuple[float, ...]
    mean: Auroc
    seed_sd: float | None


def lines_of(runs: Sequence[LoadedRun]) -> dict[str, list[LoadedRun]]:
    """Runs that differ in nothing but fraction and seed, by the name of their line.

    Epochs may go with the fraction, as few labels are seen more often: these runs are one line.

    Args:
        runs: classifiers.
    """
    ignored = free_on_resume("finetune") | _NOT_OF_A_LINE
    parts: list[list[LoadedRun]] = []
    for found in _alike(runs, ignored | {"finetune.epochs"}):
        pairs = {(_part(run), run.config.finetune.epochs) for run in found}
        is_line = len(pairs) == len({part for part, _ in pairs})
        parts += [found] if is_line else _alike(found, ignored)
    lines: dict[str, list[LoadedRun]] = {}
    names = [found[0].meta.name for found in parts]
    for name, found in zip(names, parts, strict=True):
        largest = max(found, key=_part)
        lines[name if names.count(name) == 1 else f"{name} ({largest.path.name})"] = found
    return lines


def _alike(runs: Sequence[LoadedRun], ignored: Set[str]) -> list[list[LoadedRun]]:
    """Runs whose identities differ in nothing else."""
    alike: dict[str, list[LoadedRun]] = defaultdict(list)
    for run in runs:
        shared = {k: v for k, v in run.meta.identity.items() if k not in ignored}
        alike[json.dumps(shared, sort_keys=True)].append(run)
    return list(alike.values())


def label_efficiency(
    plan: TestPlan,
    records: pa.Table,
    lines: Mapping[str, Sequence[LoadedRun]],
    scores: Mapping[str, NDArray[np.float64]],
) -> list[Point]:
    """Every point of every line; none where all runs learned from one fraction of the labels.

    Lines that learned from the same sites are tested on the same records: of these sites, what none
    of their runs learned from and each held out; of all others, what none of them learned from.

    Args:
        plan: which records test each run.
        records: of the store, N rows.
        lines: name -> its runs.
        scores: run's name -> (N,) probabilities of the records that test it.
    """
    if len({_part(run) for runs in lines.values() for run in runs}) < 2:
        return []
    site = text_column(records, "site")
    at_sites: dict[frozenset[str], dict[str, Sequence[LoadedRun]]] = defaultdict(dict)
    for line, runs in lines.items():
        at_sites[frozenset().union(*(plan.sites[run.name] for run in runs))][line] = runs
    points: list[Point] = []
    for sites, here in at_sites.items():
        tested = [plan.rows_of(run.name) for runs in here.values() for run in runs]
        common = reduce(np.intersect1d, tested)
        own = np.isin(site[common], sorted(sites))
        others = frozenset(site[common[~own]].tolist())
        for cohort, rows in (
            (f"external test, {listed(others)}", common[~own]),
            (f"internal test, {listed(sites)}", common[own]),
        ):
            if len(rows):
                points += _points(cohort, rows, plan, here, scores)
    return points


def _points(
    cohort: str,
    rows: NDArray[np.int64],
    plan: TestPlan,
    lines: Mapping[str, Sequence[LoadedRun]],
    scores: Mapping[str, NDArray[np.float64]],
) -> Iterator[Point]:
    is_case, patients = plan.is_case[rows], plan.patients[rows]
    for line, runs in lines.items():
        for part in sorted({_part(run) for run in runs}):
            alike = [run for run in runs if _part(run) == part]
            given = np.stack([scores[run.name][rows] for run in alike])
            areas, mean = delong_mean(is_case, given, patients)
            taught = [_taught(run) for run in alike]
            cases = [run.meta.counts.get("train_cases") for run in alike]
            yield Point(
                cohort=cohort,
                line=line,
                fraction=part[1],
                per_class=alike[0].config.finetune.labels_per_class,
                train_patients=_mean([each[0] for each in taught]),
                train_records=_mean([each[1] for each in taught]),
                train_cases=None if None in cases else _mean([each or 0 for each in cases]),
                valid_patients=_mean([each[2] for each in taught]),
                num_runs=len(alike),
                by_run=areas,
                mean=mean,
                seed_sd=float(np.std(areas, ddof=1)) if len(areas) > 1 else None,
            )


def _part(run: LoadedRun) -> tuple[float, float]:
    """What part of the labels taught a run: smaller ones first, as tuples sort."""
    settings = run.config.finetune
    return settings.labels_per_class or math.inf, settings.label_fraction


def _taught(run: LoadedRun) -> tuple[int, int, int]:
    """Patients of training, its records, and patients of validation."""
    assert run.register is not None  # load_run refuses classifiers without
    register: Register = run.register
    train, valid = register.select("train"), register.select("valid")
    return len(train["patient"].unique()), len(train), len(valid["patient"].unique())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def section(points: Sequence[Point], claim: Sequence[str] = ()) -> View | None:
    """Sentences on what the points show, chart and table; None without points."""
    if not points:
        return None
    header = (
        "cohort", "model", "fraction", "patients taught", "records", "cases",
        "patients of validation", "runs", "AUROC, mean (95 % CI)", "SD between seeds",
    )  # fmt: skip
    rows = [
        (
            point.cohort,
            point.line,
            f"{point.fraction:g}" if point.per_class is None else f"{point.per_class} per class",
            _count(point.train_patients),
            _count(point.train_records),
            _count(point.train_cases),
            _count(point.valid_patients),
            str(point.num_runs),
            _area(point.mean),
            _number(point.seed_sd),
        )
        for point in points
    ]
    return {
        "claim": list(claim),
        "table": Table(header=header, rows=rows),
        "curves": charts.label_efficiency(drawn) if (drawn := _drawn(points)) else None,
    }


def numbers(points: Sequence[Point]) -> Table:
    """What `FILE` holds: a number in each cell, empty where there is none."""
    header = (
        "cohort", "model", "fraction", "labels_per_class", "train_patients", "train_records",
        "train_cases", "valid_patients", "test_cases", "test_controls", "auroc_mean", "low", "high",
        "num_runs", "sd_between_seeds", "auroc_of_runs",
    )  # fmt: skip
    rows = []
    for point in points:
        mean = point.mean
        counts = (point.train_patients, point.train_records, point.train_cases)
        values = (mean.value, mean.low, mean.high)
        rows.append(
            (
                point.cohort,
                point.line,
                repr(point.fraction) if point.per_class is None else "",
                str(point.per_class or ""),
                *(_count(count, missing="") for count in (*counts, point.valid_patients)),
                str(mean.num_cases),
                str(mean.num_controls),
                *(_number(value, missing="") for value in values),
                str(point.num_runs),
                _number(point.seed_sd, missing=""),
                " ".join(map(_number, point.by_run)),
            )
        )
    return Table(header=header, rows=rows)


def _drawn(points: Sequence[Point]) -> dict[str, dict[str, list[charts.Efficiency]]]:
    """Cohort -> line -> what its chart needs, of points with an AUROC."""
    drawn: dict[str, dict[str, list[charts.Efficiency]]] = {}
    for point in points:
        if point.mean.value is not None:
            one = (point.train_patients, point.mean, point.by_run)
            drawn.setdefault(point.cohort, {}).setdefault(point.line, []).append(one)
    return drawn


def _count(value: float | None, *, missing: str = "-") -> str:
    return missing if value is None else f"{value:.1f}".removesuffix(".0")


def _number(value: float | None, *, missing: str = "-") -> str:
    return missing if value is None else f"{value:.4f}"


def _area(area: Auroc) -> str:
    if area.value is None:
        return "not defined"
    if area.low is None or area.high is None:
        return f"{area.value:.3f} (no interval)"
    return f"{area.value:.3f} ({area.low:.3f} to {area.high:.3f})"
