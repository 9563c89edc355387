"""Models on real labels, out of fold, beside a random forest on hand-made features.

    python benchmarks/real_evidence.py ../shared/data --work evidence

Pretrains on the records of all folders without labels, then learns eight labels of the 500 ECGs of
`ptbxl500` in the five folds of the store: no patient and no copy of an ECG is in two of them. What
was scored stays in WORK, so that the command goes on where it was stopped (`--only` does one
model); rows go to benchmarks/evidence/DEVICE.jsonl, and `evidence_rows.py` makes tables of them.
"""

import argparse
import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from evidence_models import (
    LABELS,
    NETWORK,
    Cohort,
    Floats,
    Rows,
    encoder_settings,
    forest,
    network,
    probe,
)
from evidence_rows import FOREST, Evidence, on_all_labels, on_fewer_labels, write

from ecgfast import log
from ecgfast.bench.measuring import device_slug, make_rows
from ecgfast.convert import convert
from ecgfast.store import open_store
from ecgfast.train.pretrain import pretrain

Fit = Callable[[Cohort, Rows, Rows, Rows, int], Floats]

SOURCES = ("ptbxl500/records500", "ludb", "ptbxl/hr_gt", "cinc2020")
RANDOM, PRETRAINED = "ViT, random, frozen", "ViT, pretrained, frozen"
NORMALISATIONS = ("record_lead", "record", "none")
PRETRAINED_ON = "record"  # keeps relative amplitudes
FRACTIONS = (0.1, 0.3, 1.0)
FEWER = ("NORM", "STTC")  # labels of the curve


@dataclass(frozen=True)
class Model:
    """A row of the table.

    Attributes:
        name: of the row.
        seeds: trainings whose scores are averaged.
        fit: cohort, what teaches, what is tested, which labels, seed -> (tested, labels) scores.
        has_curve: whether it is trained on fewer labels too.
    """

    name: str
    seeds: int
    fit: Fit
    has_curve: bool = False


def models(work: Path) -> Iterator[Model]:
    yield Model(FOREST, 1, forest)
    run = work / f"pretrained-{PRETRAINED_ON}"
    yield Model(f"{PRETRAINED}, {PRETRAINED_ON}", 1, partial(probe, PRETRAINED_ON, run), True)
    for mode in NORMALISATIONS:
        is_curve = mode == PRETRAINED_ON
        yield Model(f"{RANDOM}, {mode}", 3 if is_curve else 1, partial(probe, mode, None), is_curve)
    for mode in NORMALISATIONS:
        is_curve = mode == "none"
        yield Model(f"{NETWORK}, {mode}", 3 if is_curve else 1, partial(network, mode), is_curve)


def scores_of(model: Model, cohort: Cohort, work: Path, fraction: float, seed: int) -> Floats:
    """(n, L) scores out of fold, kept in `work`."""
    path = work / "scores" / f"{model.name}-{fraction:g}-{seed}.npy"
    if not path.exists():
        labels = range(len(LABELS)) if fraction == 1 else [LABELS.index(name) for name in FEWER]
        scores = np.full(cohort.is_case.shape, np.nan)
        for fold in np.unique(cohort.fold).tolist():
            train, test = cohort.part(fold, fraction, seed), np.flatnonzero(cohort.fold == fold)
            scores[np.ix_(test, labels)] = model.fit(cohort, train, test, np.array(labels), seed)
        path.parent.mkdir(exist_ok=True)
        np.save(path, scores)
        log.info(f"{path.stem} is scored")
    return np.asarray(np.load(path), dtype=np.float64)


def evidence(cohort: Cohort, work: Path, only: Sequence[str] | None) -> Iterator[Evidence]:
    """Score what is missing, and make every row."""
    chosen = [m for m in models(work) if only is None or m.name in only]
    fractions = {m.name: FRACTIONS if m.has_curve else (1.0,) for m in chosen}
    found = {  # model and fraction -> scores of each seed
        (m.name, fraction): [
            scores_of(m, cohort, work, fraction, seed)
            for seed in range(m.seeds if fraction == 1 else 3)
        ]
        for m in chosen
        for fraction in fractions[m.name]
    }
    if only is not None:
        return
    counts = {"records": len(cohort.rows), "patients": len(np.unique(cohort.patient))}
    made = next(make_rows({("auroc", ""): [0.0]}, case="evidence", provider=""))
    common = {**counts, **{name: getattr(made, name) for name in ("device", "torch", "commit")}}
    common |= {"date": datetime.date.today().isoformat()}
    forest_scores = found[FOREST, 1.0][0]
    for m, (number, label) in ((m, each) for m in chosen for each in enumerate(LABELS)):
        y, score = cohort.is_case[:, number], np.mean(found[m.name, 1.0], axis=0)[:, number]
        numbers = on_all_labels(y, score, forest_scores[:, number], cohort.patient)
        what = {"model": m.name, "label": label, "fraction": 1.0, "seeds": m.seeds}
        what |= {
            "table": "labels",
            "cases": int(y.sum()),
            "other": (m.name != FOREST and FOREST) or "",
        }
        yield Evidence(**what, **numbers, **common)
    for m in (m for m in chosen if m.has_curve):
        other = m.name.replace(PRETRAINED, RANDOM) if PRETRAINED in m.name else ""
        for label, fraction in ((each, f) for each in FEWER for f in FRACTIONS):
            number = LABELS.index(label)
            ours = [s[:, number] for s in found[m.name, fraction]]
            theirs = [s[:, number] for s in found[other, fraction]] if other else None
            y = cohort.is_case[:, number]
            numbers = on_fewer_labels(y, ours, theirs, cohort.patient)
            what = {"model": m.name, "label": label, "fraction": fraction, "seeds": len(ours)}
            what |= {"table": "fewer labels", "cases": int(y.sum()), "other": other}
            yield Evidence(**what, **numbers, **common)


def prepare(data: Path, work: Path) -> Cohort:
    """Convert all folders into one store, and pretrain on it; what is finished stays."""
    labels = data / "ptbxl500" / "labels.csv"
    convert(
        [data / source for source in SOURCES], work / "cohort", labels=labels,
        columns=[*LABELS[:-1], "sex"], target="NORM=1", one_ecg_per_patient=True, workers=1,
    )  # fmt: skip
    out = work / f"pretrained-{PRETRAINED_ON}"
    if not (out / "model.safetensors").exists():
        settings = encoder_settings(PRETRAINED_ON)
        pretrain(settings, work / "cohort", out, include_test=True, resume=True)
    return Cohort.of(open_store(work / "cohort"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder with ptbxl500, ludb, ptbxl and cinc2020")
    parser.add_argument("--work", type=Path, required=True, help="folder for stores, runs, scores")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="score these models, no rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = list(evidence(prepare(args.data, args.work), args.work, args.only))
    if rows:
        write(Path(__file__).parent / "evidence" / f"{device_slug()}.jsonl", rows)


if __name__ == "__main__":
    main()
