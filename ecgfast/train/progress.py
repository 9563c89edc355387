"""Where a sweep of learning rates stands."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any


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
