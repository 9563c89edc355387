"""What training of a classifier begins with, where it stands, and the files that it ends in."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.config import Config
from ecgfast.data.loader import selected_rows
from ecgfast.data.normalise import Normalisation, cohort_statistics
from ecgfast.model.build import build_classifier
from ecgfast.runs.column_task import task_of
from ecgfast.runs.digests import METRICS, RUN_FILES, Facts, entries, read_weights, sealed
from ecgfast.runs.export import MODEL_CARD, model_card
from ecgfast.runs.inference import score_rows
from ecgfast.runs.initial import (
    Initial,
    initial_name,
    read_initial,
    require_same_preprocessing,
)
from ecgfast.runs.loading import RESULT, WEIGHTS
from ecgfast.runs.meta import Preprocessing, RunMeta, flat
from ecgfast.runs.outputs import with_outputs
from ecgfast.runs.register import FILE as REGISTER
from ecgfast.runs.register import (
    Register,
    with_encoder,
    with_validation,
    write_register,
)
from ecgfast.store.durable import RESUME, write_durably
from ecgfast.store.reader import StoreReader
from ecgfast.train.dataset import Lesson, labelled_records


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a classifier is to learn, beside its settings.

    Attributes:
        init_option: what errors call `init`.
    """

    init: str
    init_option: str = "--init"
    target: str | Sequence[str]
    classes: Sequence[str] = ()
    select: str | None
    fold: int | None


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the training of a classifier begins with.

    Attributes:
        lesson: what it learns, and from which records.
        initial: its first weights.
        meta: what the run says about itself.
        register: whose ECGs teach it.
    """

    lesson: Lesson
    initial: Initial
    meta: RunMeta
    register: Register


def begin(asked: Asked, config: Config, store: StoreReader) -> Start:
    """Find what a classifier learns from; all that does not fit is refused."""
    rows = selected_rows(store, asked.select)
    lesson = labelled_records(
        store,
        task_of(asked.target, store.records.take(pa.array(rows)), asked.classes),
        asked.select,
        asked.fold,
        settings=config.finetune,
        seed=config.train.seed,
    )
    records = lesson.records
    initial = read_initial(asked.init, config, option=asked.init_option)
    preprocessing = Preprocessing.of(store, _normalisation(config, store, lesson, initial))
    require_same_preprocessing(initial, preprocessing, asked.init)
    identity = {
        **flat(config),
        "init": initial_name(asked.init),
        **lesson.task.identity(),
        "select": asked.select,
        "fold": asked.fold,
        "model": config.model.kind,
        "store": store.identity,
        "labels": records.digest,
    }
    taught = Register.of(store, {"train": records.train, "valid": records.valid})
    return Start(
        lesson=lesson,
        initial=initial,
        meta=RunMeta(kind="finetune", identity=identity, preprocessing=preprocessing),
        register=with_encoder(taught, initial.register, initial.origin),
    )


def _normalisation(
    config: Config, store: StoreReader, lesson: Lesson, initial: Initial
) -> Normalisation:
    """With the statistics of the pretraining, where there was one: the weights know no others."""
    data = config.data
    if data.normalise != "cohort_lead":
        return Normalisation(mode=data.normalise, leads=data.leads)
    kept = None if initial.preprocessing is None else initial.preprocessing.normalisation.cohort
    cohort = kept or cohort_statistics(store, lesson.records.train)
    return Normalisation(mode=data.normalise, cohort=cohort, leads=data.leads)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a sweep stands after an epoch; what its checkpoints keep.

    Attributes:
        trial: index of the learning rate.
        epoch: epochs done in this trial.
        step: updates done in all trials.
        best_loss: lowest validation loss so far, over all trials; None before the first.
        best_trial: the trial that had it.
        best_epoch: the epoch of that trial, from 1.
        best_auroc: validation AUROC of the same weights.
        trial_loss: lowest validation loss of this stage of this trial.
        stale: epochs of this trial since then.
    """

    trial: int = 0
    epoch: int = 0
    step: int = 0
    best_loss: float | None = None
    best_trial: int = 0
    best_epoch: int = 0
    best_auroc: float | None = None
    trial_loss: float | None = None
    stale: int = 0

    def after_epoch(self, *, steps: int, loss: float, auroc: float | None) -> "Progress":
        """Account for an epoch and its validation."""
        if math.isnan(loss):  # of weights that overflow; no later loss would be lower than NaN
            loss = math.inf
        better = self.trial_loss is None or loss < self.trial_loss
        done = replace(
            self,
            epoch=self.epoch + 1,
            step=self.step + steps,
            trial_loss=loss if better else self.trial_loss,
            stale=0 if better else self.stale + 1,
        )
        if self.best_loss is not None and not loss < self.best_loss:
            return done
        return replace(
            done,
            best_loss=loss,
            best_trial=self.trial,
            best_epoch=done.epoch,
            best_auroc=auroc,
        )

    def next_stage(self) -> "Progress":
        """Begin to count anew what patience waits for."""
        return replace(self, trial_loss=None, stale=0)

    def next_trial(self) -> "Progress":
        """Begin the next learning rate."""
        return replace(self.next_stage(), trial=self.trial + 1, epoch=0)

    @property
    def improved(self) -> bool:
        """Whether the last epoch has the lowest loss of all."""
        return self.best_trial == self.trial and self.best_epoch == self.epoch > 0

    def as_meta(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)


def write_result(
    out: Path, config: Config, store: StoreReader, start: Start, chosen: Facts
) -> None:
    """Score the validation records with the kept weights, as any later test will.

    Args:
        out: folder of the run, which has its weights.
        config: its settings.
        store: that it learned from.
        start: what it began with.
        chosen: how the weights were chosen, with their "val_loss" and "val_auroc".
    """
    lesson, meta = start.lesson, start.meta
    task, valid = lesson.task, lesson.records.valid
    model = build_classifier(config, num_outputs=len(task.outputs))
    model.load_state_dict(read_weights(out / WEIGHTS))
    scores = score_rows(
        model,
        store,
        valid,
        meta.preprocessing.normalisation,
        meaning=task.predictions,
        name="validation",
    )
    truth = lesson.records.truth[valid]
    if task.is_single:
        register = with_validation(start.register, (truth[:, 0] > 0).tolist(), scores)
    else:
        register = with_outputs(start.register, truth, scores.reshape(truth.shape))
    write_register(out, register)
    result = {
        **meta.as_facts(),
        **chosen,
        "counts": lesson.counts,
        "initial_tensors": dict(start.initial.tensors),
        **_validated(lesson, truth, scores.reshape(truth.shape)),
    }
    card = model_card(meta, result, sum(each.numel() for each in model.parameters()))
    write_durably(out / MODEL_CARD, [card.encode()], again=RESUME)
    files = entries(out, (WEIGHTS, REGISTER, METRICS))
    write_durably(out / RESULT, [sealed({**result, RUN_FILES: files})], again=RESUME)


def _validated(
    lesson: Lesson, truth_RK: NDArray[np.float64], scores_RK: NDArray[np.float64]
) -> dict[str, Any]:
    """What the validation records say: thresholds of a single target, or a table of each output."""
    found = []
    for truth, scores in zip(truth_RK.T, scores_RK.T, strict=True):
        known = ~np.isnan(truth)
        found.append(lesson.task.on_validation(truth[known], scores[known]))
    if lesson.task.is_single:
        return {"thresholds": found[0]["thresholds"]}
    outputs = lesson.outputs.items()
    return {
        "outputs": {n: {**counts, **own} for (n, counts), own in zip(outputs, found, strict=True)}
    }
