"""What learns the labels of real ECGs: a forest, probes of frozen encoders, a small network.

Each takes a cohort, what teaches, what is tested, which labels and a seed, and gives log odds. A
network learns all labels at once, one output for each: eight trainings would take eight times as
long. No setting was chosen by scores out of fold, but those of an earlier network and of the forest
were known when epochs were cut to fit the time; the strength of a probe's penalty is chosen by
patients of the training folds. Shapes: n records, L labels, D features.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hand_features import hand_features
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import binary_cross_entropy_with_logits

from ecgfast.config import Config, load_config
from ecgfast.data.loader import Loader, build_loader
from ecgfast.demo_plan import DemoPlan
from ecgfast.evaluate.baselines import median_beats
from ecgfast.labels.selection import Labelled
from ecgfast.labels.subset import label_subset
from ecgfast.model.build import build_classifier
from ecgfast.model.classifier import Classifier, encoder_state, layer_scale
from ecgfast.model.draws import Draws, augmented
from ecgfast.runs.inference import logits
from ecgfast.runs.loading import load_model
from ecgfast.store import StoreReader
from ecgfast.store.patients import patient_groups
from ecgfast.train.optim import learning_rate

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

LABELS = ("NORM", "MI", "STTC", "CD", "HYP", "AFIB", "LVH", "female")
NETWORK = "resnet1d_small"
TREES = 300
COMPONENTS = 100  # principal ones, that a regression sees
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # C of the logistic regression
PRETRAINING = (
    *DemoPlan().vit, *DemoPlan().pretraining,
    *("train.epochs=120", "train.val_fraction=0.0", "train.log_every=500"),
)  # fmt: skip
FINE_TUNING = (
    *PRETRAINING, "finetune.learning_rates=[1e-3]", "finetune.epochs=16",
    "finetune.batch_size=16", "finetune.warmup_epochs=1",
)  # fmt: skip
TRAINING = (
    *("finetune.learning_rates=[3e-3]", "finetune.epochs=24", "finetune.batch_size=32"),
    *("augment.shift_timesteps=500", "augment.noise=0.0", "data.normalise=none"),
)
FEWEST_UPDATES = 60  # of a network: few records have more epochs


@dataclass(frozen=True)
class Cohort:
    """The labelled records of a store, later copies of an ECG left out.

    Attributes:
        store: of all sources.
        rows: (n,) rows of the labelled records.
        is_case: (n, L) bool.
        fold: (n,) from 1.
        patient: (n,) numbers from 0.
    """

    store: StoreReader
    rows: Rows
    is_case: NDArray[np.bool_]
    fold: Rows
    patient: Rows

    @classmethod
    def of(cls, store: StoreReader) -> "Cohort":
        records = store.records
        known = np.array([value is not None for value in records["NORM"].to_pylist()])
        copy = np.array(["duplicate" in (text or "") for text in records["flags"].to_pylist()])
        rows = np.flatnonzero(known & ~copy)
        table = records.take(rows)
        columns = [np.array(table[name].to_pylist(), dtype=bool) for name in LABELS[:-1]]
        columns.append(np.array(table["sex"].to_pylist()) == LABELS[-1])
        return cls(
            store=store,
            rows=rows,
            is_case=np.stack(columns, axis=1),
            fold=np.array(table["fold"].to_pylist(), dtype=np.int64),
            patient=np.unique(patient_groups(records)[rows], return_inverse=True)[1],
        )

    def part(self, fold: int, fraction: float, seed: int) -> Rows:
        """Positions of the records that teach where a fold is held out, of a part of its patients.

        The part is drawn by NORM, is the same for every model, and the smaller within the larger.
        """
        train = np.flatnonzero(self.fold != fold)
        truth = np.zeros((len(self.store), 1))
        truth[self.rows, 0] = self.is_case[:, 0]
        everyone = Labelled(truth=truth, train=self.rows[train], valid=self.rows[:0], num_unknown=0)
        kept = label_subset(self.store.records, everyone, fraction=fraction, seed=seed).train
        return np.flatnonzero(np.isin(self.rows, kept))

    def in_order(self, rows: Rows, mode: str) -> Loader:
        """Batches of some rows of the store, normalised in a mode, as they come."""
        return build_loader(
            self.store, batch_size=64, engine="cpu", select=rows, shuffle=False,
            drop_last=False, normalise=mode,
        )  # fmt: skip

    @cached_property
    def hand_made(self) -> Floats:
        """(n, D) features of the forest."""
        store, rows = self.store, self.rows
        adc = store.read(rows).astype(np.float32) - store.offset_adc[rows][..., None]
        microvolt = adc * store.scale_uv[rows][..., None]
        return np.stack([hand_features(signal_uv) for signal_uv in microvolt])

    @cached_property
    def beats(self) -> Floats:
        """(n, D) median beats in microvolt; zeros where there are too few beats."""
        store, rows = self.store, self.rows
        return np.nan_to_num(median_beats(store.read(rows), store.scale_uv[rows])).astype(float)


def forest(cohort: Cohort, train: Rows, test: Rows, labels: Rows, seed: int) -> Floats:
    features, scores = cohort.hand_made, []
    for label in labels:
        model = RandomForestClassifier(TREES, min_samples_leaf=2, random_state=seed)
        model.fit(features[train], cohort.is_case[train, label])
        scores.append(model.predict_proba(features[test])[:, 1])
    least = 0.5 / TREES  # of a probability that is 0 in all trees
    return np.asarray(logit(np.clip(np.stack(scores, axis=1), least, 1 - least)))


def beat_regression(cohort: Cohort, train: Rows, test: Rows, labels: Rows, seed: int) -> Floats:
    """Logistic regression on the median beat, the baseline of every report."""
    return _regression(cohort.beats, cohort, train, test, labels)


def probe(
    mode: str, run: Path | None, cohort: Cohort, train: Rows, test: Rows, labels: Rows, seed: int
) -> Floats:
    """Logistic regression on a frozen encoder's features."""
    return _regression(encoded(cohort, mode, run, 0 if run else seed), cohort, train, test, labels)


def _regression(features: Floats, cohort: Cohort, train: Rows, test: Rows, labels: Rows) -> Floats:
    """Logistic regression on principal components of (n, D) features."""
    reduce = make_pipeline(
        StandardScaler(), PCA(min(COMPONENTS, len(train) - 1), svd_solver="full")
    )
    reduce.fit(features[train])
    x_train, x_test = reduce.transform(features[train]), reduce.transform(features[test])
    scores = []
    for label in labels:
        y = cohort.is_case[train, label]
        penalty = _best_penalty(x_train, y, cohort.patient[train])
        model = LogisticRegression(C=penalty, max_iter=300).fit(x_train, y)
        scores.append(model.decision_function(x_test))
    return np.stack(scores, axis=1)


def _best_penalty(x: Floats, y: NDArray[np.bool_], patient: Rows) -> float:
    """Of `PENALTIES` the one with the lowest loss on patients that it did not learn from."""
    folds = StratifiedGroupKFold(min(4, int(y.sum()), int((~y).sum())))

    def loss(penalty: float) -> float:
        model = LogisticRegression(C=penalty, max_iter=300)
        held = cross_val_predict(model, x, y, groups=patient, cv=folds, method="predict_proba")
        return float(log_loss(y, held))

    return min(PENALTIES, key=loss)


@cache
def encoder_settings(mode: str) -> Config:
    return load_config("demo", [f"data.normalise={mode}", *PRETRAINING], recipe="best_practice")


_ENCODED: dict[Any, Floats] = {}


@torch.no_grad()
def encoded(cohort: Cohort, mode: str, run: Path | None, seed: int) -> Floats:
    """(n, D) mean and maximum of each lead's tokens; without a run, of random weights."""
    key = (mode, run, seed)
    if key not in _ENCODED:
        config = encoder_settings(mode)
        config = replace(config, train=replace(config.train, seed=seed))
        model = _model(config, run).eval()
        batches = cohort.in_order(cohort.rows, mode)
        parts = [model.features(batch.patches.float()) for batch in batches]
        _ENCODED[key] = torch.cat(parts).double().numpy()
    return _ENCODED[key]


def _model(config: Config, run: Path | None, num_outputs: int = 1) -> Classifier:
    """A classifier with the encoder of a pretraining; without one, of random weights."""
    model = build_classifier(config, num_outputs=num_outputs)
    if run is not None:
        model.encoder.load_state_dict(encoder_state(load_model(run)[0].state_dict()))
    return model


def trained(
    preset: str, sets: Sequence[str], run: Path | None,
    cohort: Cohort, train: Rows, test: Rows, labels: Rows, seed: int,
) -> Floats:  # fmt: skip
    """A model of which all weights learn, with an output for each label, for all of its epochs."""
    config = load_config(preset, [*sets, f"train.seed={seed}"], recipe="best_practice")
    model = _model(config, run, len(labels))
    y = torch.from_numpy(cohort.is_case[:, labels]).float()
    model.begin_at(torch.logit(y[train].mean(0), eps=1e-3))
    of_row = torch.zeros(len(cohort.store), len(labels))
    of_row[cohort.rows] = y
    _train(model, cohort, train, of_row, config)
    tested = cohort.in_order(cohort.rows[test], config.data.normalise)
    with torch.no_grad():
        scores = list(logits(model, (batch.patches.float() for batch in tested)))
    return torch.cat(scores).double().numpy()


def _train(
    model: Classifier, cohort: Cohort, train: Rows, of_row: torch.Tensor, config: Config
) -> None:
    settings, seed = config.finetune, config.train.seed
    (peak,) = settings.learning_rates
    torch.manual_seed(seed)
    depth = config.model.encoder_depth if config.model.kind == "vit" else 0
    scales = [layer_scale(name, depth, settings) for name, _ in model.named_parameters()]
    groups = [{"params": [weights]} for weights in model.parameters()]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    loader = build_loader(
        cohort.store, batch_size=min(settings.batch_size, len(train)), seed=seed, engine="cpu",
        select=cohort.rows[train], normalise=config.data.normalise,
    )  # fmt: skip
    epochs = max(settings.epochs, -(-FEWEST_UPDATES // len(loader)))
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    model.train()
    for step in range(epochs * len(loader)):
        batch = next(batches)
        draws = Draws(seed=seed, record_index=batch.record_index, epoch=batch.epoch)
        patches = augmented(batch.patches, draws, config.augment, num_leads=12)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(patches.float(), draws)
        loss = binary_cross_entropy_with_logits(outputs.float(), of_row[batch.record_index])
        optimizer.zero_grad()
        loss.backward()
        rate = learning_rate(
            step, peak=peak, warmup_epochs=settings.warmup_epochs, epochs=epochs,
            steps_per_epoch=len(loader),
        )  # fmt: skip
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        optimizer.step()
