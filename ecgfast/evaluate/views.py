"""What a report says of its data and runs: one function per section, which returns text and tables.

report.html.j2 lays them out; what it says of the numbers is in findings.py.
"""

import datetime
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast.evaluate import charts
from ecgfast.evaluate.cohort import cohort_table
from ecgfast.evaluate.results import Results
from ecgfast.labels.assign import one_ecg_each
from ecgfast.labels.splits import num_torn
from ecgfast.runs.loading import LoadedRun
from ecgfast.runs.register import Register, seen
from ecgfast.store.patients import is_unnamed, patient_groups
from ecgfast.store.reader import StoreReader

if TYPE_CHECKING:
    from ecgfast.evaluate.agreement import Agreements
    from ecgfast.evaluate.several import Several

View = dict[str, Any]
_LIBRARIES = ("ecgfast", "torch", "numpy", "scipy", "scikit-learn")


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


def heading(store: StoreReader, results: "Results | Several | Agreements | None") -> str:
    """Name the data: the page's title and first line."""
    sites = len(set(store.records["site"].to_pylist()))
    task = f", {results.target}" if results else ""
    unnamed = int(is_unnamed(store.records).sum())
    doubt = f"; {unnamed:,} ECGs name no patient" if unnamed else ""
    return (
        f"data: {store.path.name}, {len(store):,} ECGs of {sites} "
        f"{'site' if sites == 1 else 'sites'}{task}{doubt}"
    )


def made_with() -> View:
    """Date, versions, and the commit where the package is run from a checkout."""
    package = str(Path(__file__).parents[1])
    last = ("git", "-C", package, "log", "-1", "--format=%h", "--", ".")  # empty in site-packages
    try:
        commit = subprocess.run(last, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        commit = ""
    versions = {name: version(name) for name in _LIBRARIES}
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "versions": {**versions, "Python": python_version()},
    }


def disclosures(
    store: StoreReader, runs: Sequence[LoadedRun], results: "Results | Several | Agreements | None"
) -> list[str]:
    """What a reader must know before the first number, the gravest first; for `page`'s arguments.

    Unknown patients, copies of ECGs, and what encoders had read of the tested records.
    """
    sentences = [_unnamed(store), _copies(store)]
    if results is not None:
        sentences += [
            _read(run, store, results.rows_of(run.name if run.meta.target else None))
            for run in runs
        ]
    return [sentence for sentence in sentences if sentence]


def cohort(
    store: StoreReader, target: str | None, truth: NDArray[np.float64] | None = None
) -> Table:
    """Cases, controls, prevalence, patients, age and sex of each site and split.

    Arguments as for `cohort_table`.
    """
    counted = cohort_table(store.records, target, truth)
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
            "-" if row.ages is None else "{1:.0f} ({0:.0f} to {2:.0f})".format(*row.ages),
            "-" if row.female is None else f"{100 * row.female:.0f} %",
        )
        for row in counted
    ]
    header = (
        "site", "split", "records", "unique patients", "cases", "controls", "prevalence",
        "without label", "age, median (quartiles)", "female",
    )  # fmt: skip
    sums = [number for number, row in enumerate(counted) if row.split == "all"]
    return Table(header=header, rows=rows, sums=sums)


def training(runs: Sequence[LoadedRun]) -> list[View]:
    """Loss curves of every run that has any."""
    shown = []
    for run in runs:
        if not run.leads and (curves := run.loss_curves()):  # a run on fewer leads is there twice
            masked = "masked MSE (1.0 = each patch's mean)"
            label = run.meta.task.loss_name if run.meta.target else masked
            shown.append({"name": run.name, "losses": charts.losses(curves, y_label=label)})
    return shown


def origin(store: StoreReader, runs: Sequence[LoadedRun]) -> View:
    """Where the numbers come from: runs, what they saw, settings, store."""
    header = ("run", "preset", "initial weights", "selected", "trained on", "validated on",
              "encoder read", "normalisation", "seed")  # fmt: skip
    rows = [
        (run.name, Path(run.config.preset).name, run.meta.init or "-", run.meta.select or "all",
         *_saw(run.register), run.config.data.normalise, str(run.config.train.seed))
        for run in runs
    ]  # fmt: skip
    return {
        "table": Table(header=header, rows=rows),
        "store": store.path.name,
        "identity": store.identity[:16],
        "codec": store.codec,
    }


def _saw(register: Register | None) -> tuple[str, str, str]:
    """ECGs that taught a run, chose its weights, and were read without labels."""
    if register is None:
        return "unknown", "unknown", "unknown"
    parts = [register.select(*roles) for roles in (("train",), ("valid",), ("pretrain",))]
    trained, validated, read = (f"{len(part):,}" if len(part) else "-" for part in parts)
    return trained, validated, "unknown" if register.encoder == "unknown" else read


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
            "nobody knows which belong together, and intervals count each as a patient"
            f"{f'; {without:,} of them in no split' if without else ''}"
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
