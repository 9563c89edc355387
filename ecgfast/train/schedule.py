"""Learning rates over time: of a run, of the stages of a fine-tuning, and where that stands."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from ecgfast.settings import FinetuneConfig
from ecgfast.vocabulary import Schedule


def learning_rate(
    step: float,
    *,
    peak: float,
    warmup_epochs: float,
    epochs: float,
    steps_per_epoch: int,
    schedule: Schedule = "cosine",
    min_lr: float = 0.0,
) -> float:
    """Linear warm-up, then half a cosine or a constant, in fractions of epochs.

    Args:
        step: updates done before this one.
        peak: the highest rate.
        warmup_epochs: of the rise from 0.
        epochs: length of the schedule.
        steps_per_epoch: updates of one epoch.
        schedule: what follows the rise.
        min_lr: rate at the end of the cosine.
    Source: He et al. 2022, appendix A.1.
    """
    epoch = step / steps_per_epoch
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    if schedule == "constant":
        return peak
    share = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
    return min_lr + (peak - min_lr) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Epochs of a trial that train the same weights.

    Attributes:
        begin: epochs of the trial before it.
        end: epochs of the trial after it.
        peak: its highest learning rate.
        schedule: of the rate.
        warmup_epochs: of the rate.
        frozen: whether the head learns alone.
        patience: epochs without a lower validation loss that end it.
    """

    begin: int
    end: int
    peak: float
    schedule: Schedule
    warmup_epochs: float
    frozen: bool
    patience: int

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Rate of the step after so many updates of this stage."""
        return learning_rate(
            step,
            peak=self.peak,
            warmup_epochs=self.warmup_epochs,
            epochs=self.end - self.begin,
            steps_per_epoch=steps_per_epoch,
            schedule=self.schedule,
        )


def stages(config: FinetuneConfig, rate: float) -> list[Stage]:
    """Stages of the trial of a learning rate: a probe where `probe_epochs` ask for it, the rest.

    Source: Kumar et al. 2022, section 4, for the head first: fine-tuning from a head at random
    distorts features that pretraining has made.
    """
    probe = Stage(
        begin=0,
        end=config.probe_epochs,
        peak=config.probe_lr,
        schedule="constant",
        warmup_epochs=0,
        frozen=True,
        patience=config.probe_epochs,
    )
    rest = Stage(
        begin=probe.end,
        end=probe.end + config.epochs,
        peak=rate,
        schedule=config.schedule,
        warmup_epochs=config.warmup_epochs,
        frozen=config.frozen,
        patience=config.patience,
    )
    return [probe, rest] if probe.end else [rest]


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
