"""One fine-tuning trial: epochs at one learning rate, stopped when validation stops improving."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ecgfast import log
from ecgfast.data.batch import Batch
from ecgfast.data.loader import Loader
from ecgfast.model.classifier import Classifier
from ecgfast.train.loop import train_step
from ecgfast.train.optim import MasterAdamW
from ecgfast.train.signals import StopSignals


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
        trial_loss: lowest validation loss of this trial.
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

    def next_trial(self) -> "Progress":
        """Begin the next learning rate."""
        return replace(self, trial=self.trial + 1, epoch=0, trial_loss=None, stale=0)

    @property
    def improved(self) -> bool:
        """Whether the last epoch has the lowest loss of all."""
        return self.best_trial == self.trial and self.best_epoch == self.epoch > 0

    def as_meta(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)


def classification_loss(model: Classifier, is_case_R: Tensor) -> Callable[[Batch], Tensor]:
    """Return the mean binary cross-entropy of some records.

    Args:
        model: gives logits.
        is_case_R: (R,) fp32 on the model's device, one value per row of the store.
    """

    def loss_of(batch: Batch) -> Tensor:
        logits = model(batch.patches).float()
        return binary_cross_entropy_with_logits(logits, is_case_R[batch.record_index])

    return loss_of


def train_epoch(
    model: Classifier,
    optimizer: MasterAdamW,
    loader: Loader,
    is_case_R: Tensor,
    *,
    microbatch: int,
    learning_rate: float,
    what: str,
    stop: StopSignals,
) -> float | None:
    """Train over one epoch of the loader; return the mean training loss, None when stopped."""
    loss_of = classification_loss(model, is_case_R)
    losses: list[Tensor] = []
    with log.progress(what, total=len(loader), unit="steps") as advance:
        for batch in loader:
            report = train_step(
                model,
                optimizer,
                loss_of,
                batch,
                microbatch=microbatch,
                learning_rate=learning_rate,
            )
            losses.append(report.loss)
            advance(1)
            if stop.agreed():
                return None
    return float(torch.stack(losses).mean())


def cross_entropy(logits_R: NDArray[np.float64], is_case_R: NDArray[np.bool_]) -> float:
    """Mean binary cross-entropy in fp64."""
    return float(np.mean(np.logaddexp(0.0, logits_R) - logits_R * is_case_R))
