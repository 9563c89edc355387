"""The training step, and the loop around it: log, validate, save, stop, recover."""

import gc
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ecgfast import log
from ecgfast.data.batch import Batch
from ecgfast.data.loader import Loader
from ecgfast.runs.checkpoint_reader import Checkpoint, newest
from ecgfast.runs.digests import Facts
from ecgfast.runs.meta import RunMeta
from ecgfast.settings import TrainConfig
from ecgfast.train.checkpoint import CheckpointWriter, Slot, State, load, training_state
from ecgfast.train.distributed import Ranks, accumulate
from ecgfast.train.guards import (
    Meter,
    NonFiniteGuard,
    StarvationGuard,
    StopSignals,
    console_line,
    frozen_garbage_collector,
)
from ecgfast.train.microbatch import MicrobatchGraph, split
from ecgfast.train.optim import MasterAdamW, StepReport
from ecgfast.train.run_folder import open_metrics
from ecgfast.train.validation import Probe, Validation

LossOf = Callable[[Batch], Tensor]


def train_step(
    model: nn.Module,
    optimizer: MasterAdamW,
    loss_of: LossOf,
    batch: Batch,
    *,
    microbatch: int,
    learning_rate: float,
    graph: MicrobatchGraph | None = None,
) -> StepReport:
    """One update from this rank's share of a global batch; never waits for the device.

    Args:
        model: spread over the ranks.
        optimizer: of this model.
        loss_of: mean loss of some records, as a scalar.
        batch: this rank's records.
        microbatch: records per forward pass; divides the batch.
        learning_rate: of this step.
        graph: replays forward and backward instead of `loss_of`; None runs them.
    """
    pieces = list(split(batch, microbatch))
    total = torch.zeros((), device=batch.patches.device)
    for number, piece in enumerate(pieces, start=1):
        accumulate(model, last=number == len(pieces))
        if graph is None:
            loss = loss_of(piece) / len(pieces)
            loss.backward()
            total += loss.detach()
        else:
            total += graph(piece)
        optimizer.collect(num_microbatches=len(pieces))
    return optimizer.step(total, learning_rate=learning_rate)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What some steps were like, read from the device.

    Attributes:
        loss: of the last step, mean over the ranks.
        mean_loss: over the steps.
        grad_norm: of the last step.
        rates: from `Meter.read`.
        skipped: steps of the whole run that were not finite.
        in_a_row: the same, consecutive ones, ending at the last step.
    """

    loss: float
    mean_loss: float
    grad_norm: float
    rates: dict[str, float | None]
    skipped: float
    in_a_row: float


@dataclass(kw_only=True)
class Loop:
    """Training of one model: steps, and what watches them.

    `run_to_end` is a pretraining run. Fine-tuning has one loop for each learning rate and calls
    `take_steps`, `read`, `recover`, `measure_anew` and `save` once an epoch.

    Attributes:
        ranks: who shares the run.
        run: its folder.
        train: intervals, and what to keep.
        model: spread over the ranks.
        optimizer: of this model.
        loader: this rank's batches.
        loss_of: mean loss of a microbatch.
        learning_rate_at: learning rate as a function of completed updates.
        microbatch: records per forward pass.
        steps_per_epoch: updates of one epoch.
        num_steps: where the run ends.
        meta: what the run says about itself, in every checkpoint.
        flops_per_record: for MFU, None where no formula holds.
        validation: of held-out records, None without any.
        probe: AUROC of a linear probe of the model, every `probe_every` steps; None without one.
        engine: where records come from, for messages.
        graph: of `loss_of` and its gradients, on GPUs.
        is_trial: whether this is one learning rate of a sweep: then lost weights do not end it (its
            patience does), and its checkpoints keep no count of skipped steps.
    """

    ranks: Ranks
    run: Path
    train: TrainConfig
    model: nn.Module
    optimizer: MasterAdamW
    loader: Loader
    loss_of: LossOf
    learning_rate_at: Callable[[int], float]
    microbatch: int
    steps_per_epoch: int
    num_steps: int
    meta: RunMeta
    flops_per_record: float | None = None
    validation: Validation | None = None
    probe: Probe | None = None
    engine: str = "auto"
    graph: MicrobatchGraph | None = None
    is_trial: bool = False

    def __post_init__(self) -> None:
        self.step = 0
        self._saved_at: int | None = None
        self._batches = self._endless_batches()
        self._losses: list[Tensor] = []  # of the steps since the last reading
        self._last: StepReport | None = None
        self._starving = StarvationGuard()
        self._guard = NonFiniteGuard(self.ranks.device, is_trial=self.is_trial)
        self._meter = Meter(self.ranks.device, self.ranks.world_size, self.flops_per_record)
        self._state: State = training_state(self.model, self.optimizer)
        if not self.is_trial:
            for name in ("skipped", "in_a_row"):
                counter = getattr(self._guard, name)
                self._state[f"guard.{name}"] = Slot(live=counter, source=counter)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue exactly where a checkpoint of pretraining was taken."""
        self.load(checkpoint)
        self._guard.resumed()
        self.loader.load_state_dict(checkpoint.facts["loader"])
        log.info(f"resumed from {checkpoint.path}")

    def load(self, checkpoint: Checkpoint) -> None:
        """Take the weights, moments and step of a checkpoint."""
        load(checkpoint, self._state, self.ranks, self.optimizer)
        self.step = self._saved_at = checkpoint.step

    def run_to_end(self, stop: StopSignals) -> bool:
        """Train until `num_steps` or an agreed stop; True when it reached the end."""
        config, finished = self.train, True
        keep, milestones = config.checkpoint_keep, config.milestone_every
        with (
            CheckpointWriter(self.run, self.ranks, keep=keep, milestone_every=milestones) as writer,
            open_metrics(self.run, self.ranks, resume_step=self.step) as metrics,
            frozen_garbage_collector(),
            closing(self),
        ):
            while finished and self.step < self.num_steps:
                finished = self.take_steps(self._steps_to_next_event(), stop)
                self._log_if_due(metrics, writer)
                if not finished or (self._is_due(config.checkpoint_every) and self._is_healthy()):
                    self.save(writer, metrics, {"loader": self.loader.state_dict()})
        return finished

    def take_steps(
        self, num_steps: int, stop: StopSignals, *, advance: Callable[[int], None] | None = None
    ) -> bool:
        """Take some steps; False when the ranks agreed to stop after one of them.

        Args:
            num_steps: at most this many.
            stop: asked after every step.
            advance: called with 1 after each step, to show progress.
        """
        for _ in range(num_steps):
            with self._meter.waiting():
                batch = next(self._batches)
            self._last = train_step(
                self.model,
                self.optimizer,
                self.loss_of,
                batch,
                microbatch=self.microbatch,
                learning_rate=self.learning_rate_at(self.step),
                graph=self.graph,
            )
            self._guard.count(self._last.skipped)
            self._losses.append(self._last.loss)
            self.step += 1
            self._meter.count_step(len(batch.record_index) * self.ranks.world_size)
            if advance is not None:
                advance(1)
            if stop.agreed():
                return False
        return True

    def read(self) -> Reading:
        """Losses and rates of the steps since the last reading."""
        assert self._last is not None
        guard, losses = self._guard, torch.stack(self._losses)
        # The one place where the host waits for the device.
        loss, mean_loss, grad_norm, skipped, in_a_row = torch.stack(
            [losses[-1], losses.mean(), self._last.grad_norm, guard.skipped, guard.in_a_row]
        ).tolist()
        self._losses.clear()
        rates = self._meter.read(steps_left=self.num_steps - self.step)
        self._starving.check(rates["data_wait_pct"] or 0.0, engine=self.engine)
        return Reading(
            loss=loss,
            mean_loss=mean_loss,
            grad_norm=grad_norm,
            rates=rates,
            skipped=skipped,
            in_a_row=in_a_row,
        )

    def recover(self, reading: Reading, writer: CheckpointWriter) -> None:
        """Return to the last checkpoint where the weights are lost.

        Raises:
            EcgfastError: returning did not help.
        """
        if self._guard.wants_rollback(reading.skipped, reading.in_a_row, step=self.step):
            self._roll_back(writer)
        if self.is_trial:
            self._guard.in_a_row.zero_()  # a resumed trial begins with none

    def measure_anew(self) -> None:
        """Begin the rates of the next reading, after what is no step: validation, a rollback."""
        gc.collect(1)
        self._meter.restart()

    def save(
        self, writer: CheckpointWriter, metrics: log.MetricsWriter | None, position: Facts
    ) -> None:
        """Begin to write a checkpoint, unless there is one of this step.

        Args:
            writer: of the run.
            metrics: of the run, on the main rank; its rows are on the disk first.
            position: where training stands, beside the step.
        """
        if self._saved_at == self.step:
            return
        if metrics is not None:
            metrics.sync()
        writer.save(self._state, step=self.step, facts={**self.meta.as_facts(), **position})
        self._saved_at = self.step

    def close(self) -> None:
        """Stop the threads that make batches ahead; no step is taken afterwards."""
        self._batches.close()

    def _endless_batches(self) -> Generator[Batch, None, None]:
        while True:
            yield from self.loader

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.num_steps

    def _steps_to_next_event(self) -> int:
        """Steps until something is due: a log line, a validation, a checkpoint or the end."""
        config = self.train
        intervals = [config.log_every, config.val_every, config.checkpoint_every]
        intervals += [config.probe_every] if self.probe is not None else []
        return min(self.num_steps - self.step, *(every - self.step % every for every in intervals))

    def _is_healthy(self) -> bool:
        """Weights that give no finite loss are not what a rollback should find."""
        return self.step == self.num_steps or self._guard.in_a_row.item() == 0

    def _log_if_due(self, metrics: log.MetricsWriter | None, writer: CheckpointWriter) -> None:
        validation = self.validation if self._is_due(self.train.val_every) else None
        probe = self.probe if self._is_due(self.train.probe_every) else None
        is_reading = validation is not None or self._is_due(self.train.log_every)
        if not is_reading and probe is None:
            return
        reading = self.read()
        row: dict[str, float | None] = {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "loss": reading.loss,
            "lr": self.learning_rate_at(self.step - 1),
            "grad_norm": reading.grad_norm,
            **reading.rates,
        }
        if validation is not None:
            row["val_loss"] = validation.loss()
        if probe is not None:
            row["probe_auroc"] = probe()
        if metrics is not None:
            metrics.write(row)
            log.info(console_line(row, total_steps=self.num_steps))
            if validation is not None:
                validation.draw(self.run, metrics, step=self.step)
        if is_reading:  # what a probe adds changes nothing of the training
            self.recover(reading, writer)
        self.measure_anew()

    def _roll_back(self, writer: CheckpointWriter) -> None:
        writer.wait()
        self.ranks.barrier()
        checkpoint = self.ranks.ask_main(lambda: newest(self.run))
        if checkpoint is None or self._saved_at is None:
            return  # nothing to return to yet: the guard ends the run the fourth time
        weights = {n: s for n, s in self._state.items() if not n.startswith("guard.")}
        load(checkpoint, weights, self.ranks, self.optimizer)
        log.warning(f"step {self.step}: weights and moments are those of {checkpoint.path} again")
