"""The sections of a report, each one piece of HTML."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.evaluate import page, plots
from ecgfast.evaluate.cohort import cohort_table
from ecgfast.evaluate.interval import Interval
from ecgfast.evaluate.reconstruct import draw, fill_in
from ecgfast.evaluate.results import CohortResult, Results
from ecgfast.evaluate.roc import Auroc
from ecgfast.evaluate.runs import LoadedRun
from ecgfast.evaluate.scores import POOLED
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.runs.seen import seen
from ecgfast.store.reader import StoreReader

NUM_RECONSTRUCTED = 64  # records whose error is measured; the middle one is drawn
_METHOD = (
    "Intervals take the records of one patient together (DeLong 1988, Obuchowski 1997) and are "
    "Student's t on the logit scale with Satterthwaite's degrees of freedom; where no patient "
    "differs, binomial over patients (Clopper and Pearson 1934)."
)


def result_section(results: Results) -> str:
    """AUROC of every run at every site: table, intervals and ROC curves."""
    names = list(results.thresholds)
    header = ("cohort", "cases / controls", *(f"{name}: AUROC (95 % CI)" for name in names))
    rows, reasons = [], []
    for cohort, by_run in results.cohorts.items():
        cells = [_area(by_run[name].auroc) if name in by_run else "-" for name in names]
        counts = {f"{r.auroc.num_cases} / {r.auroc.num_controls}": None for r in by_run.values()}
        rows.append((cohort, "; ".join(counts), *cells))
        whys = {_why(r.auroc): None for r in by_run.values() if r.auroc.reason}
        reasons += [page.text(f"{cohort}: {why}") for why in whys]
    areas = {c: {n: r.auroc for n, r in by.items()} for c, by in results.cohorts.items()}
    curves = {
        cohort: {name: (r.is_case, r.probability) for name, r in by_run.items()}
        for cohort, by_run in results.cohorts.items()
        if all(r.auroc.value is not None for r in by_run.values())
    }
    parts = [page.table(header, rows, sums=_sums(list(results.cohorts))), *reasons]
    parts += [page.text(note) for note in results.plan.notes]
    if curves:
        parts += [
            page.picture(
                plots.auroc_by_site(areas),
                f"AUROC and 95 % interval. {_METHOD} Dotted: chance.",
            ),
            page.picture(plots.roc_curves(curves), "ROC curve of each run at each site."),
        ]
    return page.section(f"Detection of {results.plan.target}", *parts)


def comparison_section(results: Results) -> str:
    """Paired tests of the first run against every other; empty with a single run."""
    first, *others = results.thresholds
    if not others:
        return ""
    header = ["cohort"]
    for name in others:
        header += [f"minus {name} (95 % CI)", "p"]
    rows = []
    for cohort, tests in results.paired.items():
        row = [cohort]
        for name in others:
            test = tests.get(name)
            if test is None:
                row += ["-", "-"]
                continue
            if test.p_value is None:
                row += ["not defined", "-"]
                continue
            row += [
                f"{test.difference:+.3f} ({test.low:+.3f} to {test.high:+.3f})",
                f"{test.p_value:.3f}" if test.p_value >= 0.001 else "< 0.001",
            ]
        rows.append(row)
    words = (
        f"Difference of AUROC, {first} minus the other, on the same records (paired DeLong test "
        "with Student's t, patient-clustered, two-sided, not corrected for the number of tests; a "
        "difference without variance: ranks swapped by patient, Bandos 2005)."
    )
    table = page.table(header, rows, sums=_sums(list(results.paired)))
    return page.section("Is the difference real?", page.text(words), table)


def cohort_section(store: StoreReader, target: str | None) -> str:
    """Cases, controls, prevalence and patients of each site and split."""
    rows, sums = [], []
    for number, row in enumerate(cohort_table(store.records, target)):
        share = "-" if row.prevalence is None else f"{100 * row.prevalence:.1f} %"
        counts = (row.num_records, row.num_patients, row.num_cases, row.num_controls)
        cells = (row.site, row.split, *(f"{n:,}" for n in counts), share, f"{row.num_unlabelled:,}")
        rows.append(cells)
        if row.split == "all":
            sums.append(number)
    header = (
        "site", "split", "records", "unique patients", "cases", "controls", "prevalence",
        "without label",
    )  # fmt: skip
    return page.section("Cohort", page.table(header, rows, sums=sums))


def loss_section(runs: Sequence[LoadedRun]) -> str:
    """Loss curves of every run."""
    parts = []
    for run in runs:
        curves = run.loss_curves()
        if curves:
            label = "cross-entropy" if run.target else "masked MSE (1.0 = each patch's mean)"
            parts.append(page.picture(plots.losses(curves, y_label=label), run.name))
    return page.section("Training", *parts)


def reconstruction_section(run: LoadedRun, store: StoreReader) -> tuple[str, float]:
    """Records as original, masked and reconstructed; returns the mean error as well.

    The record with the middle error is drawn, neither the best nor the worst.
    """
    assert isinstance(run.model, MaskedAutoencoder)
    pool, source = to_reconstruct(run, store)
    step = max(1, len(pool) // NUM_RECONSTRUCTED)
    rows = pool[::step][:NUM_RECONSTRUCTED]
    with log.progress(f"reconstruct with {run.name}", total=len(rows)) as advance:
        results = fill_in(run.model, run.config, run.cohort, store, rows)
        advance(len(rows))
    mean_error = float(np.mean([result.loss for result in results]))
    middle = sorted(results, key=lambda result: result.loss)[len(results) // 2]
    words = (
        f"Masked mean squared error of {len(rows)} records {source}: {mean_error:.3f} "
        "(1.0 = predicting each patch's mean). Below: the record with the middle error. Blue was "
        "predicted; each predicted patch is drawn with the mean and standard deviation of the "
        "original patch, as the model predicts shape alone. Each lead is drawn about its median."
    )
    two_leads, all_leads = draw(store, middle, ("II", "V5")), draw(store, middle)
    return page.section(
        f"Reconstruction: {run.name}",
        page.text(words),
        page.picture(two_leads, "Leads II and V5.", kind="png"),
        page.picture(all_leads, "All 12 leads: original, masked, reconstructed.", kind="png"),
    ), mean_error


def to_reconstruct(run: LoadedRun, store: StoreReader) -> tuple[NDArray[np.int64], str]:
    """Rows whose patients pretraining has not read, where there are any, and what they are."""
    everything = np.arange(len(store))
    if run.register is None:
        return everything, "of which nobody knows whether pretraining read them"
    known = seen(run.register, store)
    never = (
        "of patients whom pretraining never read"
        if known.by_patient
        else "of a store under another key or kind of patient ids, none of them an ECG that it read"
    )
    for rows, words in (
        (np.flatnonzero(~known.read & ~known.heldout), never),
        (np.flatnonzero(known.heldout & ~known.read), "that were held out of pretraining"),
    ):
        if len(rows):
            return rows, words
    return everything, "all of patients whom pretraining read"


def calibration_section(results: Results) -> str:
    """Sensitivity and specificity at the validation threshold, and calibration."""
    header = ("cohort", "run", "threshold", "sensitivity", "specificity", "AUPRC", "Brier score",
              "mean predicted / observed")  # fmt: skip
    rows = [
        (cohort, name, *_operating(result))
        for cohort, by_run in results.cohorts.items()
        for name, result in by_run.items()
        if result.calibration
    ]
    parts = [
        page.text(
            "Threshold: the highest sensitivity + specificity on the run's own validation records, "
            "then kept. Probabilities are as the network gives them, without recalibration. In "
            f"brackets: 95 % intervals, with the threshold taken as given. {_METHOD}"
        ),
        page.table(header, rows),
    ]
    last = POOLED if POOLED in results.cohorts else list(results.cohorts)[-1]
    curves = {n: r.calibration for n, r in results.cohorts[last].items() if r.calibration}
    if curves:
        caption = (
            f"Calibration, {last}: records in groups of equal size by probability, at most ten, of "
            "ten records or more where there are enough."
        )
        parts.append(page.picture(plots.reliability(curves), caption))
    return page.section("Operating point and calibration", *parts)


def origin_section(store: StoreReader, runs: Sequence[LoadedRun], results: Results | None) -> str:
    """Where the numbers come from: runs, settings, store."""
    header = ("run", "preset", "initial weights", "records", "normalisation", "seed")
    rows = [
        (run.name, Path(run.config.preset).name, run.init or "-", run.select or "all",
         run.config.data.normalise, str(run.config.train.seed))
        for run in runs
    ]  # fmt: skip
    words = f"Store {store.path.name}, identity {store.identity[:16]}, codec {store.codec}."
    if results:
        words += (
            " Each run is tested on the test split, or the fold that it held out, of the sites "
            "that it learned from, and on every labelled record of all other sites, without "
            "patients whom it learned from."
        )
    return page.section("Origin", page.table(header, rows), page.text(words))


def _area(area: Auroc) -> str:
    return _with_interval(area, digits=3) if area.value is not None else "not defined"


def _why(area: Auroc) -> str:
    what = "AUROC is not defined" if area.value is None else "its interval is not defined"
    return f"{what}: {area.reason}."


def _operating(result: CohortResult) -> tuple[str, ...]:
    point, calibration = result.operating, result.calibration
    assert calibration is not None
    return (
        "-" if point is None else f"{point.threshold:.2g}",
        "-" if point is None else _with_interval(point.sensitivity),
        "-" if point is None else _with_interval(point.specificity),
        _with_interval(result.average_precision),
        _with_interval(calibration.brier, digits=3),
        f"{100 * calibration.mean_predicted:.1f} % / {100 * calibration.observed:.1f} %",
    )


def _with_interval(share: Auroc | Interval, *, digits: int = 2) -> str:
    """Such as "0.83 (0.71 to 0.92)"; "-" where the value is not defined."""
    if share.value is None:
        return "-"
    if share.low is None or share.high is None:
        return f"{share.value:.{digits}f} (no interval)"
    return f"{share.value:.{digits}f} ({share.low:.{digits}f} to {share.high:.{digits}f})"


def _sums(cohorts: Sequence[str]) -> list[int]:
    return [number for number, name in enumerate(cohorts) if name == POOLED]
