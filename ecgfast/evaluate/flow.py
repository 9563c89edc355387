"""Flow of inclusion, as in CONSORT's diagram: from files to the records that test each run.

Each step says how many went on, and what was left out there and why.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ecgfast.evaluate.cohort import SPLITS, natural_order, shown_name, text_column
from ecgfast.evaluate.results import Results
from ecgfast.labels.selection import target_labels
from ecgfast.runs.loading import LoadedRun
from ecgfast.runs.register import Register
from ecgfast.store.info import StoreInfo, describe, kinds_in_words
from ecgfast.store.reader import StoreReader

MOST_REASONS = 8  # of refusal; the others are summed up


@dataclass(frozen=True, kw_only=True)
class Step:
    """A box of the diagram.

    Attributes:
        name: what is counted.
        number: how many there are.
        left_out: what did not go on from here to the next box, and what is worth knowing here.
    """

    name: str
    number: int
    left_out: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Branch:
    """The last boxes: what some runs made of the records.

    Attributes:
        names: of the runs, all of the same numbers.
        lines: what they read, learned from and are tested on.
    """

    names: Sequence[str]
    lines: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Flow:
    """A diagram: boxes below each other, then branches beside each other."""

    steps: Sequence[Step]
    branches: Sequence[Branch]


def flow(store: StoreReader, runs: Sequence[LoadedRun], results: Results | None) -> Flow:
    """From files to tested records: what came in at each step, and what was left out.

    Args:
        store: that was tested on.
        runs: all of the report.
        results: of the classifiers among them, None without any.
    """
    info = describe(store)
    steps = _files(info)
    records = Step(
        name="records of ten seconds",
        number=info.num_records,
        left_out=[f"{info.num_duplicates:,} of them are copies"] if info.num_duplicates else [],
    )
    if results is None:
        return Flow(steps=[*steps, records], branches=_branches(runs, None))
    plan = results.plan
    is_known = target_labels(store.records, plan.target, plan.truth)[1]
    unknown = int((~is_known).sum())
    without = [f"{unknown:,} have no label of {plan.target}"] if unknown else []
    split = text_column(store.records, "split")[is_known]
    parts = [f"{(split == name).sum():,} {name}" for name in SPLITS]
    nowhere = int((~np.isin(split, SPLITS)).sum())
    labelled = Step(
        name="with a label",
        number=int(is_known.sum()),
        left_out=[
            f"split by patient: {', '.join(parts)}",
            *([f"{nowhere:,} are in no split"] if nowhere else []),
        ],
    )
    kept = Step(name=records.name, number=records.number, left_out=[*records.left_out, *without])
    return Flow(steps=[*steps, kept, labelled], branches=_branches(runs, results))


def _files(info: StoreInfo) -> list[Step]:
    passed_over = kinds_in_words(info.passed_over)
    by_count = sorted(info.reasons.items(), key=lambda item: -item[1])
    refused = [f"{count:,} refused: {reason}" for reason, count in by_count[:MOST_REASONS]]
    if others := sum(count for _, count in by_count[MOST_REASONS:]):
        refused.append(f"{others:,} refused for other reasons")
    recordings = Step(name="recordings", number=info.num_inputs, left_out=refused)
    if info.num_files is None:
        return [recordings]
    note = [f"no recordings: {passed_over}"] if passed_over else []
    return [Step(name="files below the sources", number=info.num_files, left_out=note), recordings]


def _branches(runs: Sequence[LoadedRun], results: Results | None) -> list[Branch]:
    """One for all runs of the same numbers."""
    names: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        lines = [*_read(run.register), *(_tested(run, results) if results else [])]
        names.setdefault(tuple(lines), []).append(run.name)
    return [Branch(names=named, lines=lines) for lines, named in names.items()]


def _read(register: Register | None) -> list[str]:
    if register is None:
        return ["whose ECGs it read is not known"]
    number = {
        role: len(register.select(role)) for role in ("pretrain", "heldout", "train", "valid")
    }
    words = {
        "pretrain": "read without labels",
        "heldout": "held out of that reading",
        "train": "trained on",
        "valid": "validated on",
    }
    lines = [f"{words[role]}: {count:,}" for role, count in number.items() if count]
    if sites := natural_order([shown_name(site) for site in register.sites]):
        lines.append(f"labels of: {'site' if len(sites) == 1 else 'sites'} {', '.join(sites)}")
    if register.encoder in ("unknown", "imagenet"):
        lines.insert(0, f"first weights: {register.encoder}")
    return lines


def _tested(run: LoadedRun, results: Results) -> list[str]:
    plan = results.plan
    if run.name not in results.names:
        return []
    rows = plan.rows_of(run.name)
    cases = int(plan.is_case[rows].sum())
    patients = len(np.unique(plan.patients[rows]))
    return [
        f"tested on: {len(rows):,} of {patients:,} patients, {cases:,} of them cases",
        "never tested on: patients that it learned from; at their sites, all but the test split",
    ]
