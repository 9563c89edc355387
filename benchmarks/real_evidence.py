"""Models on real labels, out of fold, beside a random forest on hand-made features.

    python benchmarks/real_evidence.py ../shared/data --work evidence

Pretrains on the records of all folders without labels, then learns eight labels of the 500 ECGs of
`ptbxl500` in the five folds of the store: no patient and no copy of an ECG is in two of them. What
was scored stays in WORK, so that the command resumes where it stopped (`--only` does one
model); rows go to benchmarks/evidence/DEVICE.jsonl, and `evidence_rows.py` makes tables of them.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from evidence_models import (
    FINE_TUNING,
    LABELS,
    NETWORK,
    TRAINING,
    Cohort,
    Floats,
    Rows,
    beat_regression,
    encoder_settings,
    forest,
    probe,
    trained,
)
from evidence_rows import FOREST, Evidence, made_here, on_all_labels, on_fewer_labels, write

from ecgfast import log
from ecgfast.bench import device_slug
from ecgfast.convert import convert
from ecgfast.store import open_store
from ecgfast.train.pretrain import pretrain

# cohort, what teaches, what is tested, which labels, seed -> (tested, labels) scores
Fit = Callable[[Cohort, Rows, Rows, Rows, int], Floats]

SOURCES = ("ptbxl500/records500", "ludb", "ptbxl/hr_gt", "cinc2020")
RANDOM, PRETRAINED = "ViT, random", "ViT, pretrained"
PRETRAINED_ON = "record"  # normalisation that keeps relative amplitudes
FRACTIONS = (0.1, 0.3, 1.0)
FEWER = ("NORM", "STTC")  # labels of the curve
BEAT = "regression on the median beat"
AVERAGES = {  # of log odds
    f"{NETWORK} and the regression, averaged": (f"{NETWORK}, none", BEAT),
    f"forest and {NETWORK}, averaged": (FOREST, f"{NETWORK}, none"),
    "forest and ViT, pretrained, fine-tuned, averaged": (
        FOREST,
        f"{PRETRAINED}, fine-tuned, {PRETRAINED_ON}",
    ),
}
Scores = dict[tuple[str, float], list[Floats]]  # model and fraction -> (n, L) of each seed


class Model(NamedTuple):
    """A row of the table."""

    name: str
    seeds: int  # trainings whose scores are averaged; each draws another part of the patients
    fit: Fit
    has_curve: bool = False  # whether it is trained on fewer labels too


def models(work: Path) -> Iterator[Model]:
    yield Model(FOREST, 1, forest)
    yield Model(BEAT, 1, beat_regression)
    run = work / f"pretrained-{PRETRAINED_ON}"
    tuning = (*FINE_TUNING, f"data.normalise={PRETRAINED_ON}")
    for init, of in ((PRETRAINED, run), (RANDOM, None)):
        frozen, tuned = partial(probe, PRETRAINED_ON, of), partial(trained, "demo", tuning, of)
        yield Model(f"{init}, frozen, {PRETRAINED_ON}", 3, frozen, True)
        yield Model(f"{init}, fine-tuned, {PRETRAINED_ON}", 2, tuned, True)
    yield Model(f"{RANDOM}, frozen, record_lead", 1, partial(probe, "record_lead", None))
    yield Model(f"{NETWORK}, none", 2, partial(trained, NETWORK, TRAINING, None), True)


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
    """Score what is missing, and make every row; none where only some models are asked for."""
    chosen = [m for m in models(work) if only is None or m.name in only]
    found: Scores = {}
    for m in chosen:
        for fraction in FRACTIONS if m.has_curve else (1.0,):
            scores = [scores_of(m, cohort, work, fraction, seed) for seed in range(m.seeds)]
            found[m.name, fraction] = scores
    if only is not None:
        return
    patients = len(np.unique(cohort.patient))
    common = {**made_here(), "records": len(cohort.rows), "patients": patients}
    for name, parts in AVERAGES.items():
        means = [np.mean(found[part, 1.0], axis=0) for part in parts]
        found[name, 1.0] = [np.mean(means, axis=0)]
    yield from _on_all_labels(found, cohort, common)
    yield from _on_fewer_labels(found, cohort, common)


def _on_all_labels(found: Scores, cohort: Cohort, common: dict[str, Any]) -> Iterator[Evidence]:
    (forest_scores,) = found[FOREST, 1.0]
    for (model, _), scores in ((key, s) for key, s in found.items() if key[1] == 1):
        for number, label in enumerate(LABELS):
            y, score = cohort.is_case[:, number], np.mean(scores, axis=0)[:, number]
            numbers = on_all_labels(y, score, forest_scores[:, number], cohort.patient)
            what = {"table": "labels", "model": model, "label": label, "fraction": 1.0}
            what |= {"seeds": len(scores), "cases": int(y.sum())}
            yield Evidence(**what, other="" if model == FOREST else FOREST, **numbers, **common)


def _on_fewer_labels(found: Scores, cohort: Cohort, common: dict[str, Any]) -> Iterator[Evidence]:
    curves = {model for model, fraction in found if fraction < 1}
    for (model, fraction), scores in ((key, s) for key, s in found.items() if key[0] in curves):
        for other, (number, label) in itertools.product(
            _others(model), ((LABELS.index(each), each) for each in FEWER)
        ):
            y = cohort.is_case[:, number]
            theirs = [each[:, number] for each in found[other, fraction]] if other else None
            ours = [each[:, number] for each in scores]
            numbers = on_fewer_labels(y, ours, theirs, cohort.patient)
            what = {"table": "fewer labels", "model": model, "label": label, "fraction": fraction}
            what |= {"seeds": len(scores), "cases": int(y.sum()), "other": other}
            yield Evidence(**what, **numbers, **common)


def _others(model: str) -> tuple[str, ...]:
    """What a model is compared with: its twin of random weights, and the network."""
    if PRETRAINED not in model:
        return ("",)
    twin = model.replace(PRETRAINED, RANDOM)
    return (twin, f"{NETWORK}, none") if "fine-tuned" in model else (twin,)


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
        pretrain(work / "cohort", out, preset=settings, include_test=True, resume=True)
    return Cohort.of(open_store(work / "cohort"))


def main(
    data: Path, work: Annotated[Path, typer.Option()], only: list[str] | None = None
) -> None:  # fmt: skip
    """Score models on the folders of `data`, all and write rows or `--only` some and write none."""
    torch.set_num_threads(1)
    rows = list(evidence(prepare(data, work), work, only or None))
    if rows:
        write(Path(__file__).parent / "evidence" / f"{device_slug()}.jsonl", rows)


if __name__ == "__main__":
    typer.run(main)
