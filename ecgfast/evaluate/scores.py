"""Which records test a set of runs, and the probabilities that the runs give them.

Shapes: N records of the store, n chosen ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.data.loader import build_loader
from ecgfast.errors import ConfigError
from ecgfast.evaluate.cohort import natural_order, text_column
from ecgfast.evaluate.runs import LoadedRun
from ecgfast.labels import Labelled, labelled, parse_target
from ecgfast.labels.patients import patient_groups
from ecgfast.store.reader import StoreReader

_BATCH = 64
POOLED = "all external sites"

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TestPlan:
    """Who is tested on what.

    Attributes:
        target: what a case is.
        is_case: (N,) bool, meaningful where the label is known.
        patients: (N,) number of each record's patient.
        valid: rows that fix thresholds: the validation split of the training sites.
        cohorts: name -> rows with known labels that no fine-tuning has seen.
        notes: what was left out, for the report.
    """

    target: str
    is_case: NDArray[np.bool_]
    patients: NDArray[np.intp]
    valid: Rows
    cohorts: dict[str, Rows]
    notes: tuple[str, ...]


def plan_tests(store: StoreReader, classifiers: Sequence[LoadedRun]) -> TestPlan:
    """Choose test records that no compared run was fine-tuned on.

    Sites that fine-tuning used are tested on their test split, every other site on all its
    labelled records except those of patients who were fine-tuned on elsewhere.

    Args:
        store: an open store.
        classifiers: the runs to compare, all of one target.
    Raises:
        ConfigError: the runs have different targets, learned from other splits or labels than the
            store has now, or no record is left to test on.
    """
    targets = sorted({run.target for run in classifiers})
    if len(targets) != 1:
        raise ConfigError(
            f"runs must share one target, got {', '.join(targets) or 'none'}; evaluate them apart"
        )
    is_case, is_known = parse_target(targets[0]).labels(store.records)
    site, split = text_column(store.records, "site"), text_column(store.records, "split")
    patients = patient_groups(store.records)
    chosen, trained, valid = (np.zeros(len(store), dtype=bool) for _ in range(3))
    for run in classifiers:
        if run.store_identity == store.identity:
            taught = _taught(run, store)
            chosen[run.rows(store)] = True
            trained[taught.train] = trained[taught.valid] = valid[taught.valid] = True
    free = is_known & ~np.isin(patients, patients[trained])
    notes = []
    if others := sorted({run.name for run in classifiers if run.store_identity != store.identity}):
        notes.append(
            f"{', '.join(others)}: trained on another store, so patients of both cannot be told"
        )
    cohorts: dict[str, Rows] = {}
    external = np.zeros(len(store), dtype=bool)
    for name in natural_order(np.unique(site).tolist()):
        here, called = site == name, "no site" if name == "-" else f"site {name}"
        if (here & chosen).any():
            cohorts[f"{called}, test split"] = np.flatnonzero(here & free & (split == "test"))
            continue
        external |= here & free
        cohorts[f"{called}, external"] = np.flatnonzero(here & free)
        if shared := int((here & is_known & ~free).sum()):
            notes.append(f"{called}: {shared} records of patients in training left out")
    if sum(", external" in name for name in cohorts) > 1:
        cohorts[POOLED] = np.flatnonzero(external)
    if not any(len(rows) for rows in cohorts.values()):
        raise ConfigError(
            f"no record of {store.path} is left to test {targets[0]}: labels missing, or all in "
            "training; join labels and splits with ecgfast label"
        )
    if unknown := int((~is_known).sum()):
        notes.append(f"{unknown} records have no label for {targets[0]} and count nowhere")
    return TestPlan(
        target=targets[0],
        is_case=is_case & is_known,
        patients=patients,
        valid=np.flatnonzero(valid),
        cohorts=cohorts,
        notes=tuple(notes),
    )


def _taught(run: LoadedRun, store: StoreReader) -> Labelled:
    """The records that a run learned from, as long as the store still says so."""
    if run.labels_digest is None:
        raise ConfigError(
            f"run {run.path} was fine-tuned by a version that did not record which labels it "
            "learned from; evaluate it with that version, or fine-tune again"
        )
    now = labelled(store.records, run.rows(store), run.target)
    if now.digest != run.labels_digest:
        raise ConfigError(
            f"run {run.path} was fine-tuned with other splits or labels than {store.path} has now "
            f"(digest {run.labels_digest} then, {now.digest} now): patients that it learned from "
            "could be tested; run ecgfast label with the CSV of then, or fine-tune again"
        )
    return now


def probabilities(run: LoadedRun, store: StoreReader, rows: Rows) -> NDArray[np.float64]:
    """Score records with a fine-tuned run.

    Args:
        run: a classifier.
        store: an open store.
        rows: (n,) int64 rows.
    Returns:
        (n,) float64 in [0, 1].
    """
    if not len(rows):
        return np.zeros(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = run.model.to(device).eval()
    loader = build_loader(
        store,
        batch_size=_BATCH,
        engine="cpu",
        device=device,
        select=rows,
        drop_last=False,
        shuffle=False,
        normalise=run.config.data.normalise,
        cohort=run.cohort,
    )
    parts = []
    with torch.inference_mode(), log.progress(f"score {run.name}", total=len(rows)) as advance:
        for batch in loader:
            logits = model(batch.patches.float())
            parts.append(torch.sigmoid(logits.double()).cpu().numpy())
            advance(len(logits))
    return np.concatenate(parts)
