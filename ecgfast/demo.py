"""The whole way on this machine: synthetic hospitals -> store -> training -> report."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.convert import convert
from ecgfast.demo_plan import DemoPlan, Training, trainings
from ecgfast.evaluate.baselines import Fitted, median_beat
from ecgfast.evaluate.claim import Repeats, claim
from ecgfast.evaluate.label_efficiency import Point, label_efficiency
from ecgfast.evaluate.planning import TestPlan, plan_tests
from ecgfast.evaluate.report import write_report
from ecgfast.evaluate.results import compute
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.runs.column_task import task_of
from ecgfast.runs.loading import LoadedRun, load_run
from ecgfast.store.durable import write_durably
from ecgfast.store.format import key_beside
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.train.dataset import labelled_records
from ecgfast.train.finetune import finetune
from ecgfast.train.pretrain import pretrain

TARGET = "ejection_fraction<40"
# Pseudonyms decide the splits: one known key gives the same numbers on every machine. Real data get
# a random key from convert.
PSEUDONYM_KEY = "00" * 31 + "01"
TRAINING_SITE = "site=1"  # as in the study: one institution teaches, others test
MEDIAN_BEAT = "regression on the median beat"
Floats = NDArray[np.float64]


def demo(out: Path, plan: DemoPlan | None = None) -> Path:
    """Run every step on a synthetic cohort; an interrupted demo is resumed.

    Args:
        out: folder for the cohort, the store, the runs and the report.
        plan: how much to do.
    Returns:
        Path of the report.
    """
    plan, begin = plan or DemoPlan(), time.monotonic()
    store, runs = out / "synthetic", out / "runs"
    _log_step(begin, "1 of 5: synthetic hospitals")
    _write_cohort(out / "cohort", plan)
    _log_step(begin, "2 of 5: convert the files to a store")
    write_durably(key_beside(store), [f"{PSEUDONYM_KEY}\n".encode()], mode=0o600)
    convert([out / "cohort"], store, labels=out / "cohort" / "labels.csv")
    _log_step(begin, "3 of 5: pretrain a masked autoencoder, without labels")
    pretrained = pretrain(
        store, runs / "pretrained", preset="demo", settings=(*plan.vit, *plan.pretraining),
        select=plan.unlabelled, resume=True,
    )  # fmt: skip
    task = task_of(TARGET)
    found = labelled_records(open_store(store), task, TRAINING_SITE).records
    planned = list(trainings(plan, len(found.train)))
    _log_step(begin, f"4 of 5: {len(planned)} fine-tunings, from few labels to many")
    for number, training in enumerate(planned, 1):
        log.info(f"{number} of {len(planned)}: {training.name}")
        finetune(
            store, runs / training.name,
            init=pretrained if training.line.init == "pretrained" else "random",
            preset=training.line.preset, recipe="best_practice", settings=training.settings,
            target=TARGET, select=TRAINING_SITE, resume=True,
        )  # fmt: skip
    _log_step(begin, "5 of 5: test them on a hospital that they never saw")
    report = write_demo_report(plan, planned, store, runs, out / "report")
    _log_step(begin, f"done, SYNTHETIC data; the report: {report}")
    return report


def _write_cohort(cohort: Path, plan: DemoPlan) -> None:
    if (cohort / "labels.csv").exists():  # written last
        return
    with log.progress("synth", total=plan.num_records) as advance:
        write_cohort(
            cohort,
            num_records=plan.num_records,
            num_sites=plan.num_sites,
            seed=plan.seed,
            design=plan.design,
            progress=lambda done, total: advance(1),
        )


def _log_step(begin: float, text: str) -> None:
    log.info(f"[{time.monotonic() - begin:4.0f} s] {text}")


def write_demo_report(
    plan: DemoPlan, planned: Sequence[Training], store: Path, runs: Path, out: Path
) -> Path:
    """Test every fine-tuning where it did not learn, and write the report.

    Args:
        plan: of the demo.
        planned: its fine-tunings, all finished.
        store: path of the store.
        runs: folder of their folders, and of `pretrained`.
        out: folder of the report.
    Returns:
        Path of ``report.html``.
    """
    reader = open_store(store)
    loaded = {
        training.name: replace(load_run(runs / training.name, reader), name=training.name)
        for training in planned
    }
    tests = plan_tests(reader, list(loaded.values()))
    scores = {name: _scores(run, tests, reader) for name, run in loaded.items()}
    most, _ = plan.labels[-1]
    shown = [
        replace(loaded[training.name], name=training.line.name, scores=scores[training.name])
        for training in planned
        if training.num_labels == most and training.seed == 0
    ]
    results = compute(plan_tests(reader, shown), shown, reader)
    return write_report(
        out,
        reader,
        [*shown, load_run(runs / "pretrained", reader)],
        results,
        _curve(plan, _by_line(plan, planned, loaded), scores, tests, reader),
        _claim(plan, planned, scores, tests),
    )


def _scores(run: LoadedRun, tests: TestPlan, store: StoreReader) -> Floats:
    """(N,) probabilities, NaN where a run is not tested."""
    scores, rows = np.full(len(store), np.nan), tests.rows_of(run.name)
    scores[rows] = run.probabilities(store, rows)
    return scores


def _by_line(
    plan: DemoPlan, planned: Sequence[Training], loaded: Mapping[str, LoadedRun]
) -> dict[str, list[LoadedRun]]:
    return {
        line.name: [loaded[training.name] for training in planned if training.line == line]
        for line in plan.lines
    }


def _curve(
    plan: DemoPlan,
    lines: Mapping[str, Sequence[LoadedRun]],
    scores: Mapping[str, Floats],
    tests: TestPlan,
    store: StoreReader,
) -> list[Point]:
    """Points of the plan's lines, and of the regression on the median beat of the same patients."""
    beats = {
        name: found.probability
        for name, found in median_beat(tests, store).items()
        if isinstance(found, Fitted)
    }
    fitted = [run for run in lines[plan.lines[0].name] if run.name in beats]
    return [
        *label_efficiency(tests, store.records, lines, scores),
        *label_efficiency(tests, store.records, {MEDIAN_BEAT: fitted}, beats),
    ]


def _claim(
    plan: DemoPlan,
    planned: Sequence[Training],
    scores: Mapping[str, Floats],
    tests: TestPlan,
) -> list[str]:
    internal = next(cohort for cohort in tests.cohorts if cohort.endswith("test split"))

    def repeats(cohort: str) -> Repeats:
        rows = next(iter(tests.cohorts[cohort].values()))
        by_line = {
            line.name: [
                scores[training.name][rows]
                for training in planned
                if training.line == line and training.num_labels == plan.claim_at
            ]
            for line in plan.lines
        }
        return Repeats(is_case=tests.is_case[rows], patients=tests.patients[rows], scores=by_line)

    return claim(plan.claim_at, repeats(tests.main_cohort), repeats(internal))
