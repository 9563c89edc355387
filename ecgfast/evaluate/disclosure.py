"""What a reader must know before the first number: unknown patients, copies, what was read."""

from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast.evaluate.results import Results
from ecgfast.evaluate.runs import LoadedRun
from ecgfast.labels.identities import one_ecg_each
from ecgfast.labels.splits import num_torn
from ecgfast.runs.register import Register
from ecgfast.runs.seen import seen
from ecgfast.store.patients import is_unnamed, patient_groups
from ecgfast.store.reader import StoreReader


def disclosures(
    store: StoreReader, runs: Sequence[LoadedRun], results: Results | None
) -> list[str]:
    """Sentences for the top of a report, the gravest first.

    Args:
        store: that was tested on.
        runs: all of the report.
        results: of the classifiers among them, None without any.
    """
    said = [_unnamed(store), _copies(store)]
    if results is not None:
        said += [_read(run, store, _tested(run, results)) for run in runs]
    return [sentence for sentence in said if sentence]


def _tested(run: LoadedRun, results: Results) -> NDArray[np.int64]:
    """Rows that test a classifier; of a pretraining run, those that test any of them."""
    tests = results.plan.cohorts.values()
    own = [rows for by_run in tests for name, rows in by_run.items() if name == run.name]
    if not run.target:
        own = [rows for by_run in tests for rows in by_run.values()]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *own]))


def _unnamed(store: StoreReader) -> str:
    count = int(is_unnamed(store.records).sum())
    if not count:
        return ""
    if one_ecg_each(store):
        what = "they count as one patient each, which nobody has checked"
    else:
        in_none = pc.is_null(store.records["split"]).to_numpy()
        without = int((is_unnamed(store.records) & in_none).sum())
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
    subject = f"{run.name}: its encoder" if run.target else f"{run.name}"
    register: Register | None = run.register
    if register is None or register.encoder == "unknown":
        return f"{subject} read ECGs of which nobody knows whose they are."
    known = seen(register, store)
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
