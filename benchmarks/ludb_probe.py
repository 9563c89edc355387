"""LUDB: linear probes of a pretrained and of a random encoder, beside 40 simple features.

    python benchmarks/ludb_probe.py ../shared/data --run evidence/pretrained-record --work ludb

Left ventricular hypertrophy of 200 patients, one ECG each, out of fold: `ecgfast probe` holds out
one of the five folds of the store and chooses C on the next one; the regression on simple features
is fitted by the same function on the same records. Rows go to benchmarks/evidence.
"""

import csv
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ecgfast_kernels.codec.signals import NO_BEAT, fingerprints
from evidence_rows import LUDB, Evidence, made_here, on_all_labels, write
from numpy.typing import NDArray
from scipy.special import logit

from ecgfast.bench import device_slug
from ecgfast.convert import convert
from ecgfast.convert.measures import LEAST_TIMESTEPS
from ecgfast.records import LEADS
from ecgfast.runs.column_task import task_of
from ecgfast.runs.loading import load_run
from ecgfast.settings import FinetuneConfig
from ecgfast.store import StoreReader, open_store
from ecgfast.store.patients import patient_groups
from ecgfast.train.dataset import labelled_records
from ecgfast.train.linear import chosen_layer
from ecgfast.train.probe import probe

Floats = NDArray[np.float64]

SIMPLE = "40 simple features"
PRETRAINED, RANDOM = "ViT, pretrained, probe", "ViT, random init, probe"
TARGET, WHAT = "lvh=1", "Left ventricular hypertrophy"
FOLDS = range(1, 6)


def prepare(data: Path, work: Path) -> StoreReader:
    """The store of LUDB with the label; what is finished stays."""
    labels = work / "labels.csv"
    work.mkdir(parents=True, exist_ok=True)
    with (data / "ludb" / "ludb.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["ID"], int(WHAT in row["Hypertrophies"])) for row in csv.DictReader(file)]
    lines = [f"{name},{is_case}\n" for name, is_case in rows]
    labels.write_text("".join(["record_id,lvh\n", *lines]), encoding="utf-8")
    convert(
        [data / "ludb" / "data"], work / "store", labels=labels, columns=["lvh"], target=TARGET,
        one_ecg_per_patient=True, workers=1,
    )  # fmt: skip
    return open_store(work / "store")


def simple_features(store: StoreReader) -> Floats:
    """(N, 40): height, depth and scatter of each lead, rate, its scatter, two voltage criteria.

    In units of the converter, 1,000 a millivolt: the gains of the headers are made equal by lead.
    """
    signal_NCT = store.read(np.arange(len(store)))
    beats = fingerprints(signal_NCT, least_timesteps=LEAST_TIMESTEPS).beats
    millivolt = (signal_NCT - np.median(signal_NCT, axis=2, keepdims=True)) / 1000
    low, high = np.percentile(millivolt, (0.5, 99.5), axis=2)  # (N, 12) each
    at = {name: LEADS.index(name) for name in LEADS}
    sokolow_lyon = high[:, [at["V5"], at["V6"]]].max(axis=1) - low[:, at["V1"]]
    cornell = high[:, at["aVL"]] - low[:, at["V3"]]
    rhythm = []
    for times in beats:
        intervals = np.diff(times[times != NO_BEAT].astype(float)) / 1000  # seconds
        rhythm.append((60 / intervals.mean(), intervals.std()) if len(intervals) else (0.0, 0.0))
    voltages = np.stack([sokolow_lyon, cornell], axis=1)
    return np.concatenate([high, low, millivolt.std(axis=2), np.array(rhythm), voltages], axis=1)


def of_simple_features(store: StoreReader, fold_N: NDArray[np.int64]) -> Floats:
    """(N,) log odds out of fold."""
    features, task = simple_features(store), task_of([TARGET])
    scores = np.full(len(store), np.nan)
    for fold in FOLDS:
        records = labelled_records(store, task, None, fold).records
        parts = [(features[rows], records.truth[rows]) for rows in (records.train, records.valid)]
        layer = chosen_layer(task, parts[0], parts[1], FinetuneConfig().probe_c)
        scores[fold_N == fold] = layer.logits(features[fold_N == fold])[:, 0]
    return scores


def of_encoder(init: Path | str, preset: Path, work: Path, store: StoreReader) -> Floats:
    """(N,) log odds out of fold of a probe; probes that are finished stay."""
    scores, folds = np.full(len(store), np.nan), np.array(store.records["fold"].to_pylist())
    for fold in FOLDS:
        out = work / f"{'random' if init == 'random' else 'pretrained'}-{fold}"
        if not (out / "result.json").exists():
            probe(init, store.path, out, target=TARGET, pool="mean", preset=preset, fold=fold)
        rows = np.flatnonzero(folds == fold)
        scores[rows] = logit(load_run(out, store).probabilities(store, rows))
    return scores


def main(
    data: Path, run: Annotated[Path, typer.Option()], work: Annotated[Path, typer.Option()]
) -> None:
    """Probe the encoder of the pretraining `run` on ludb, a folder of `data`."""
    store, preset = prepare(data, work), run / "config.toml"
    fold_N = np.array(store.records["fold"].to_pylist(), dtype=np.int64)
    is_case = np.array(store.records["lvh"].to_pylist(), dtype=np.int64) == 1
    patient = np.unique(patient_groups(store.records), return_inverse=True)[1]
    scores = {
        SIMPLE: of_simple_features(store, fold_N),
        PRETRAINED: of_encoder(run, preset, work, store),
        RANDOM: of_encoder("random", preset, work, store),
    }
    others = {SIMPLE: [""], PRETRAINED: [SIMPLE, RANDOM], RANDOM: [SIMPLE]}
    rows = [
        Evidence(
            table=LUDB, label=WHAT, model=name, fraction=1.0, seeds=1, records=len(store),
            patients=int(patient.max()) + 1, cases=int(is_case.sum()), other=other,
            **on_all_labels(is_case, score, scores[other or name], patient), **made_here(),
        )
        for name, score in scores.items()
        for other in others[name]
    ]  # fmt: skip
    write(Path(__file__).parent / "evidence" / f"ludb-{device_slug()}.jsonl", rows)


if __name__ == "__main__":
    typer.run(main)
