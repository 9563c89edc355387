"""What each section of a report shows, as text, tables and figures; report.html.j2 lays it out.

`page` calls one function per section. Each returns the names that its block of the template uses.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast.evaluate import charts
from ecgfast.evaluate.cohort import cohort_table
from ecgfast.evaluate.discrimination import Auroc, PairedTest
from ecgfast.evaluate.interval import Interval
from ecgfast.evaluate.planning import POOLED
from ecgfast.evaluate.reconstruct import sample_of
from ecgfast.evaluate.results import CohortResult, Results
from ecgfast.labels.assign import one_ecg_each
from ecgfast.labels.splits import num_torn
from ecgfast.runs.ecg_paper import draw
from ecgfast.runs.loading import LoadedRun
from ecgfast.runs.register import seen
from ecgfast.store.patients import is_unnamed, patient_groups
from ecgfast.store.reader import StoreReader

View = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text cells.

    Attributes:
        header: names of the columns.
        rows: cells; every row as long as the header.
        sums: numbers of the rows that sum others up.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    sums: Collection[int] = ()


def page(store: StoreReader, runs: Sequence[LoadedRun], results: Results | None) -> View:
    """Everything that the template shows, by section.

    Args:
        store: that was tested on.
        runs: all of the report.
        results: of the classifiers among them, None without any.
    """
    return {
        "heading": heading(store, results),
        "disclosures": disclosures(store, runs, results),
        "detection": results and detection(results),
        "comparison": results and comparison(results),
        "cohort": cohort(store, results.plan.target if results else None),
        "training": training(runs),
        "reconstructions": [reconstruction(run, store) for run in runs if not run.meta.target],
        "operating": results and operating(results),
        "origin": origin(store, runs),
    }


def heading(store: StoreReader, results: Results | None) -> str:
    """Name the data: the page's title and first line."""
    sites = len(set(store.records["site"].to_pylist()))
    task = f", {results.plan.target}" if results else ""
    unnamed = int(is_unnamed(store.records).sum())
    doubt = f"; {unnamed:,} ECGs name no patient" if unnamed else ""
    return (
        f"data: {store.path.name}, {len(store):,} ECGs of {sites} "
        f"{'site' if sites == 1 else 'sites'}{task}{doubt}"
    )


def disclosures(
    store: StoreReader, runs: Sequence[LoadedRun], results: Results | None
) -> list[str]:
    """What a reader must know before the first number, the gravest first; for `page`'s arguments.

    Unknown patients, copies of ECGs, and what encoders had read of the tested records.
    """
    sentences = [_unnamed(store), _copies(store)]
    if results is not None:
        sentences += [
            _read(run, store, results.plan.rows_of(run.name if run.meta.target else None))
            for run in runs
        ]
    return [sentence for sentence in sentences if sentence]


def detection(results: Results) -> View:
    """AUROC of every run at every site: table, intervals and ROC curves."""
    names = results.names
    areas = results.each(lambda result: result.auroc)
    rows: list[Sequence[str]] = []
    notes: list[str] = []
    for cohort, by_run in areas.items():
        cells = [_area(by_run[name]) if name in by_run else "-" for name in names]
        counts = dict.fromkeys(f"{a.num_cases} / {a.num_controls}" for a in by_run.values())
        rows.append((cohort, "; ".join(counts), *cells))
        notes += dict.fromkeys(f"{cohort}: {_why(a)}" for a in by_run.values() if a.reason)
    curves = {
        cohort: by_run
        for cohort, by_run in results.each(lambda r: (r.is_case, r.probability)).items()
        if all(area.value is not None for area in areas[cohort].values())
    }
    header = ("cohort", "cases / controls", *(f"{name}: AUROC (95 % CI)" for name in names))
    return {
        "target": results.plan.target,
        "table": Table(header=header, rows=rows, sums=_sums(areas)),
        "notes": [*notes, *results.plan.notes],
        "areas": charts.auroc_by_site(areas) if curves else None,
        "curves": charts.roc_curves(curves) if curves else None,
    }


def comparison(results: Results) -> View | None:
    """Paired tests of the first run against every other; None with a single run."""
    first, *others = results.names
    if not others:
        return None
    header = ["cohort"]
    for name in others:
        header += [f"minus {name} (95 % CI)", "p"]
    rows = [
        (cohort, *(cell for name in others for cell in _difference(tests.get(name))))
        for cohort, tests in results.paired.items()
    ]
    table = Table(header=header, rows=rows, sums=_sums(results.paired))
    return {"first": first, "table": table}


def cohort(store: StoreReader, target: str | None) -> Table:
    """Cases, controls, prevalence and patients of each site and split."""
    counted = cohort_table(store.records, target)
    rows = [
        (
            row.site,
            row.split,
            f"{row.num_records:,}",
            f"{row.num_patients:,}",
            f"{row.num_cases:,}",
            f"{row.num_controls:,}",
            "-" if row.prevalence is None else f"{100 * row.prevalence:.1f} %",
            f"{row.num_unlabelled:,}",
        )
        for row in counted
    ]
    header = (
        "site", "split", "records", "unique patients", "cases", "controls", "prevalence",
        "without label",
    )  # fmt: skip
    sums = [number for number, row in enumerate(counted) if row.split == "all"]
    return Table(header=header, rows=rows, sums=sums)


def training(runs: Sequence[LoadedRun]) -> list[View]:
    """Loss curves of every run that has any."""
    shown = []
    for run in runs:
        if curves := run.loss_curves():
            label = "cross-entropy" if run.meta.target else "masked MSE (1.0 = each patch's mean)"
            shown.append({"name": run.name, "losses": charts.losses(curves, y_label=label)})
    return shown


def reconstruction(run: LoadedRun, store: StoreReader) -> View:
    """What a pretraining run fills in: the mean error of some records, and a picture of one."""
    sample = sample_of(run, store)
    return {
        "name": run.name,
        "num_records": sample.num_records,
        "source": sample.source,
        "error": sample.error,
        "two_leads": draw(store, sample.middle, ("II", "V5")),
        "all_leads": draw(store, sample.middle),
    }


def operating(results: Results) -> View:
    """Sensitivity and specificity at the validation threshold, and calibration."""
    header = ("cohort", "run", "threshold", "sensitivity", "specificity", "AUPRC", "Brier score",
              "mean predicted / observed")  # fmt: skip
    rows = [
        (cohort, name, *_operating(result))
        for cohort, by_run in results.cohorts.items()
        for name, result in by_run.items()
        if result.calibration
    ]
    last = POOLED if POOLED in results.cohorts else list(results.cohorts)[-1]
    curves = {n: r.calibration for n, r in results.cohorts[last].items() if r.calibration}
    return {
        "table": Table(header=header, rows=rows),
        "cohort": last,
        "curves": charts.reliability(curves) if curves else None,
    }


def origin(store: StoreReader, runs: Sequence[LoadedRun]) -> View:
    """Where the numbers come from: runs, settings, store."""
    header = ("run", "preset", "initial weights", "records", "normalisation", "seed")
    rows = [
        (run.name, Path(run.config.preset).name, run.meta.init or "-", run.meta.select or "all",
         run.config.data.normalise, str(run.config.train.seed))
        for run in runs
    ]  # fmt: skip
    return {
        "table": Table(header=header, rows=rows),
        "store": store.path.name,
        "identity": store.identity[:16],
        "codec": store.codec,
    }


def _unnamed(store: StoreReader) -> str:
    unnamed = is_unnamed(store.records)
    count = int(unnamed.sum())
    if not count:
        return ""
    if one_ecg_each(store):
        what = "they count as one patient each, which nobody has checked"
    else:
        without = int((unnamed & pc.is_null(store.records["split"]).to_numpy()).sum())
        what = (
            "nobody knows which belong together, and intervals count each as a patient; "
            f"{without:,} of them are in no split"
        )
    return f"{count:,} of {len(store):,} ECGs name no patient: {what}."


def _copies(store: StoreReader) -> str:
    if "duplicate_of" not in store.records.column_names:
        return ""
    count = store.records.num_rows - int(store.records["duplicate_of"].null_count)
    if not count:
        return ""
    groups = patient_groups(store.records).tolist()
    torn = num_torn(groups, store.records["split"].to_pylist())
    where = (
        f"and the given splits put {torn:,} patients with copies into more than one split; no run "
        "is tested on a copy of what it learned"
        if torn
        else "and stand in the same split as these"
    )
    return f"{count:,} ECGs are copies of others, {where}."


def _read(run: LoadedRun, store: StoreReader, tested: NDArray[np.int64]) -> str:
    """What a run, or the encoder that it starts from, had read of the tested records."""
    subject = f"{run.name}: its encoder" if run.meta.target else run.name
    if run.register is None or run.register.encoder == "unknown":
        return f"{subject} read ECGs of which nobody knows whose they are."
    known = seen(run.register, store)
    count = int(known.read[tested].sum())
    if not known.encoder_by_patient:
        return (
            f"{subject} read, without labels, ECGs of a store under another pseudonym key or kind "
            f"of patient ids: {count:,} of the {len(tested):,} tested records are of patients "
            "with an ECG that it read; whether it read others of the same patients is not known."
        )
    if not count:
        return ""
    return (
        f"{subject} read, without labels, ECGs of the patients of {count:,} of the "
        f"{len(tested):,} tested records."
    )


def _area(area: Auroc) -> str:
    return _with_interval(area, digits=3) if area.value is not None else "not defined"


def _why(area: Auroc) -> str:
    what = "AUROC is not defined" if area.value is None else "its interval is not defined"
    return f"{what}: {area.reason}."


def _difference(test: PairedTest | None) -> tuple[str, str]:
    """The difference with its interval, and its p-value."""
    if test is None:
        return "-", "-"
    if test.p_value is None:
        return "not defined", "-"
    return (
        f"{test.difference:+.3f} ({test.low:+.3f} to {test.high:+.3f})",
        f"{test.p_value:.3f}" if test.p_value >= 0.001 else "< 0.001",
    )


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


def _sums(cohorts: Collection[str]) -> list[int]:
    return [number for number, name in enumerate(cohorts) if name == POOLED]
