"""The training step, and the loop around it: log, validate, save, stop."""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ecgfast import log
from ecgfast.config import TrainConfig
from ecgfast.data.batch import Batch
from ecgfast.data.loader import Loader
from ecgfast.runs.checkpoint import Checkpoint, newest
from ecgfast.runs.meta import RunMeta
from ecgfast.train.checkpoint import CheckpointWriter, Slot, State, load, training_state
from ecgfast.train.distributed import Ranks, accumulate
from ecgfast.train.graph import MicrobatchGraph
from ecgfast.train.guards import NonFiniteGuard, StarvationGuard
from ecgfast.train.metrics import Meter, console_line
from ecgfast.train.microbatch import split
from ecgfast.train.optim import MasterAdamW, StepReport
from ecgfast.train.signals import StopSignals
from ecgfast.train.validation import Validation

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
        optimizer.collect(num_passes=len(pieces))
    return optimizer.step(total, learning_rate=learning_rate)


@dataclass(kw_only=True)
class Loop:
    """A run in one process of its ranks.

    Attributes:
        ranks: who shares the run.
        run: its folder.
        train: intervals, and what to keep.
        model: spread over the ranks.
        optimizer: of this model.
        loader: this rank's batches.
        loss_of: mean loss of a microbatch.
        rate_of: learning rate of the step after so many updates.
        microbatch: records per forward pass.
        steps_per_epoch: updates of one epoch.
        num_steps: where the run ends.
        meta: what the run says about itself, in every checkpoint.
        flops_per_record: for MFU, None where no formula holds.
        validation: of held-out records, None without any.
        engine: where records come from, for messages.
        graph: of `loss_of` and its gradients, on one GPU.
    """

    ranks: Ranks
    run: Path
    train: TrainConfig
    model: nn.Module
    optimizer: MasterAdamW
    loader: Loader
    loss_of: LossOf
    rate_of: Callable[[int], float]
    microbatch: int
    steps_per_epoch: int
    num_steps: int
    meta: RunMeta
    flops_per_record: float | None = None
    validation: Validation | None = None
    engine: str = "auto"
    graph: MicrobatchGraph | None = None

    def __post_init__(self) -> None:
        self._step = 0
        self._saved_at: int | None = None
        self._starving = StarvationGuard()
        self._guard = NonFiniteGuard(self.ranks.device)
        self._meter = Meter(self.ranks.device, self.ranks.world_size, self.flops_per_record)
        self._state: State = training_state(self.model, self.optimizer)
        for name in ("skipped", "in_a_row"):
            counter = getattr(self._guard, name)
            self._state[f"guard.{name}"] = Slot(live=counter, source=counter)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Resume exactly where a checkpoint was taken."""
        load(checkpoint, self._state, self.ranks, self.optimizer)
        self._guard.resumed()
        self._step = self._saved_at = checkpoint.step
        self.loader.load_state_dict(checkpoint.facts["loader"])
        log.info(f"resumed from {checkpoint.path}")

    def run_to_end(self, stop: StopSignals) -> bool:
        """Train until `num_steps` or an agreed stop; True when it reached the end."""
        train = self.train
        stopped = False
        with (
            self._open_checkpoints() as writer,
            self._open_metrics() as metrics,
            _frozen_garbage_collector(),
        ):
            for batch in self._batches():
                report = train_step(
                    self.model,
                    self.optimizer,
                    self.loss_of,
                    batch,
                    microbatch=self.microbatch,
                    learning_rate=self.rate_of(self._step),
                    graph=self.graph,
                )
                self._guard.count(report.skipped)
                self._step += 1
                self._meter.count_step(len(batch.record_index) * self.ranks.world_size)
                self._log_if_due(report, metrics, writer)
                stopped = stop.agreed()
                if stopped or (self._is_due(train.checkpoint_every) and self._is_healthy()):
                    self._save(writer, metrics)
                if stopped:
                    break
        return not stopped

    def _batches(self) -> Iterator[Batch]:
        while self._step < self.num_steps:
            epoch = iter(self.loader)
            while self._step < self.num_steps:
                with self._meter.waiting():
                    batch = next(epoch, None)
                if batch is None:
                    break
                yield batch

    def _is_due(self, every: int) -> bool:
        return self._step % every == 0 or self._step == self.num_steps

    def _is_healthy(self) -> bool:
        """Weights that give no finite loss are not what a rollback should find."""
        return self._step == self.num_steps or self._guard.in_a_row.item() == 0

    def _log_if_due(
        self, report: StepReport, metrics: log.MetricsWriter | None, writer: CheckpointWriter
    ) -> None:
        validation = self.validation if self._is_due(self.train.val_every) else None
        if validation is None and not self._is_due(self.train.log_every):
            return
        guard = self._guard
        # The one place where the host waits for the device.
        loss, grad_norm, skipped, in_a_row = torch.stack(
            [report.loss, report.grad_norm, guard.skipped, guard.in_a_row]
        ).tolist()
        row: dict[str, float | None] = {
            "step": self._step,
            "epoch": self._step / self.steps_per_epoch,
            "loss": loss,
            "lr": self.rate_of(self._step - 1),
            "grad_norm": grad_norm,
            **self._meter.read(steps_left=self.num_steps - self._step),
        }
        self._starving.check(row["data_wait_pct"] or 0.0, engine=self.engine)
        if validation is not None:
            row["val_loss"] = validation.loss()
        if metrics is not None:
            metrics.write(row)
            log.info(console_line(row, total_steps=self.num_steps))
            if validation is not None:
                validation.draw(self.run, metrics, step=self._step)
        if guard.wants_rollback(skipped, in_a_row, step=self._step):
            self._roll_back(writer)
        gc.collect(1)
        self._meter.restart()

    def _roll_back(self, writer: CheckpointWriter) -> None:
        writer.wait()
        self.ranks.barrier()
        checkpoint = self.ranks.ask_main(lambda: newest(self.run))
        if checkpoint is None:
            return  # nothing to return to yet: the guard ends the run the fourth time
        counters = {n: s for n, s in self._state.items() if not n.startswith("guard.")}
        load(checkpoint, counters, self.ranks, self.optimizer)
        log.warning(f"step {self._step}: weights and moments are those of {checkpoint.path} again")

    def _save(self, writer: CheckpointWriter, metrics: log.MetricsWriter | None) -> None:
        if self._saved_at == self._step:
            return
        if metrics is not None:
            metrics.sync()
        facts = {**self.meta.as_facts(), "loader": self.loader.state_dict()}
        writer.save(self._state, step=self._step, facts=facts)
        self._saved_at = self._step

    def _open_checkpoints(self) -> CheckpointWriter:
        train = self.train
        return CheckpointWriter(
            self.run, self.ranks, keep=train.checkpoint_keep, milestone_every=train.milestone_every
        )

    def _open_metrics(self) -> AbstractContextManager[log.MetricsWriter | None]:
        if self.ranks.is_main:
            return log.MetricsWriter(self.run, resume_step=self._step)
        return nullcontext()


@contextmanager
def _frozen_garbage_collector() -> Iterator[None]:
    """No collection in a step: a full one over a compiled model's objects takes 0.1 s and more."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
