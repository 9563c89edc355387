"""Fine-tuning at one learning rate after the other; the weights with the lowest loss are kept.

A trial, one learning rate, may have two stages: the head alone, then all weights.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ecgfast import log
from ecgfast.config import Config
from ecgfast.data.batch import Batch
from ecgfast.model.build import build_classifier
from ecgfast.model.classifier import Classifier, layer_scale
from ecgfast.model.draws import Draws, augmented
from ecgfast.model.vit import Encoder
from ecgfast.runs.digests import export_safetensors
from ecgfast.runs.initial import Initial, apply_initial
from ecgfast.runs.loading import WEIGHTS
from ecgfast.runs.meta import RunMeta
from ecgfast.runs.task import Task
from ecgfast.settings import FinetuneConfig, OptimConfig
from ecgfast.train.checkpoint import CheckpointWriter
from ecgfast.train.classify import Progress
from ecgfast.train.dataset import Lesson, open_loader
from ecgfast.train.distributed import full_state, spread
from ecgfast.train.guards import frozen_garbage_collector
from ecgfast.train.loop import Loop, Reading
from ecgfast.train.optim import MasterAdamW, learning_rate
from ecgfast.train.run_folder import Session, open_metrics, resolve_compile
from ecgfast.train.validation import Scorer
from ecgfast.vocabulary import Schedule

ADAM = OptimConfig(beta2=0.999)  # without weight decay AdamW is the study's Adam


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


@dataclass(kw_only=True)
class Sweep:
    """Trials one after the other, resumable after every epoch.

    Attributes:
        session: settings, store, folder and ranks of the run.
        lesson: what it learns, and from which records.
        initial: weights that every trial starts from.
        meta: what checkpoints and result.json say about the run.
        share: records per rank and update.
        microbatch: records per rank and forward pass.
    """

    session: Session
    lesson: Lesson
    initial: Initial
    meta: RunMeta
    share: int
    microbatch: int

    def __post_init__(self) -> None:
        session, normalisation = self.session, self.meta.preprocessing.normalisation
        config, ranks = session.config, session.ranks
        self._scorer = Scorer(
            session.store,
            config,
            ranks,
            self.lesson.records.valid,
            batch_size=self.microbatch,
            normalisation=normalisation,
        )
        self._loader = open_loader(
            session.store,
            config,
            ranks,
            self.lesson.records.train,
            batch_size=self.share,
            seed=config.train.seed,
            normalisation=normalisation,
        )

    def run(self) -> Progress | None:
        """Try the learning rates from where the checkpoint stands; None when stopped early."""
        session, checkpoint = self.session, self.session.checkpoint
        progress = Progress() if checkpoint is None else Progress(**checkpoint.facts["progress"])
        rates = session.config.finetune.learning_rates
        with (
            CheckpointWriter(session.run, session.ranks, keep=1) as writer,
            open_metrics(session.run, session.ranks, resume_step=progress.step) as metrics,
        ):
            for rate in rates[progress.trial :]:
                loop: Loop | None = None
                for stage in stages(session.config.finetune, rate):
                    if stage.end < progress.epoch:  # the checkpoint is of the next one
                        continue
                    weights = None
                    if loop is not None:
                        progress, weights = progress.next_stage(), full_state(loop.model)
                    loop = self._loop(stage, progress, weights)
                    if checkpoint is not None:
                        loop.load(checkpoint)
                        self._keep_weights(loop, progress)  # a crash may have come before it
                        checkpoint = None
                    with frozen_garbage_collector(), closing(loop):
                        trained = self._train(loop, stage, progress, writer, metrics)
                    if trained is None:
                        return None
                    progress = trained
                progress = progress.next_trial()
        return progress

    def _train(
        self,
        loop: Loop,
        stage: Stage,
        progress: Progress,
        writer: CheckpointWriter,
        metrics: log.MetricsWriter | None,
    ) -> Progress | None:
        """Train for a stage; None when stopped: the last whole epoch is saved, to be resumed."""
        stop = self.session.stop
        while progress.epoch < stage.end and progress.stale < stage.patience:
            what = f"finetune lr {stage.peak:g} epoch {progress.epoch + 1}"
            with log.progress(what, total=loop.steps_per_epoch, unit="steps") as advance:
                if not loop.take_steps(loop.steps_per_epoch, stop, advance=advance):
                    return None
            reading = loop.read()
            loop.recover(reading, writer)  # first: what is validated is what is saved and kept
            val_loss, area = self._validate(loop.model)
            progress = progress.after_epoch(steps=loop.steps_per_epoch, loss=val_loss, auroc=area)
            rate = loop.learning_rate_at(loop.step - 1)
            row = {"loss": reading.mean_loss, "val_loss": val_loss, "val_auroc": area, "lr": rate}
            if metrics is not None:
                self._log(metrics, progress, row, reading)
            loop.save(writer, metrics, {"progress": progress.as_meta()})
            writer.wait()
            self._keep_weights(loop, progress)
            loop.measure_anew()
        return progress

    def _loop(self, stage: Stage, progress: Progress, weights: Mapping[str, Tensor] | None) -> Loop:
        """The loop of a stage; without weights, from those that every trial begins with."""
        config, ranks = self.session.config, self.session.ranks
        settings, steps_per_epoch = config.finetune, len(self._loader)
        records, task = self.lesson.records, self.lesson.task
        model = build_classifier(config, num_outputs=len(task.outputs))
        if weights is None:
            apply_initial(model, self.initial, source=self.meta.identity["init"])
            if settings.head_init == "prior":
                truth, by_class = records.truth, self.lesson.class_weights
                model.begin_at(task.first_logits(truth[records.train], by_class[records.train]))
        else:
            model.load_state_dict(weights)
        if stage.frozen:
            model.freeze()
        depth = 0
        if isinstance(model.encoder, Encoder):
            model.encoder.set_attention(**self.meta.identity["attention_kernels"])
            depth = len(model.encoder.blocks)
        spread(
            model,
            ranks,
            precision=self.meta.identity["precision"],
            compile_blocks=resolve_compile(config, ranks),
            parallel=config.train.parallel,
        )
        truth_NK, weight_NK = (
            torch.from_numpy(table).to(ranks.device, torch.float32)
            for table in (np.nan_to_num(records.truth), self.lesson.weights)
        )
        self._loader.load_state_dict({"epoch": progress.epoch, "position": 0})
        begin = progress.step - (progress.epoch - stage.begin) * steps_per_epoch
        epochs_left = settings.probe_epochs + settings.epochs - progress.epoch
        loop = Loop(
            ranks=ranks,
            run=self.session.run,
            train=config.train,
            model=model,
            optimizer=MasterAdamW(
                model,
                ranks,
                replace(ADAM, weight_decay=settings.weight_decay),
                scale_of=lambda name: layer_scale(name, depth, settings),
            ),
            loader=self._loader,
            loss_of=classification_loss(model, task, truth_NK, weight_NK, config),
            learning_rate_at=lambda step: stage.learning_rate_at(step - begin, steps_per_epoch),
            microbatch=self.microbatch,
            steps_per_epoch=steps_per_epoch,
            num_steps=progress.step + epochs_left * steps_per_epoch,
            meta=self.meta,
            engine=config.data.engine,
            is_trial=True,
        )
        loop.step = progress.step
        return loop

    def _validate(self, model: nn.Module) -> tuple[float, float | None]:
        """Loss and AUROC of the validation records."""
        logits, rows = self._scorer.logits(model), self.lesson.records.valid
        task, truth = self.lesson.task, self.lesson.records.truth[rows]
        weights = self.lesson.class_weights[rows]
        return task.validation_loss(logits, truth, weights), task.area(logits, truth)

    def _keep_weights(self, loop: Loop, progress: Progress) -> None:
        """Export weights that were the best of all, once their checkpoint says that they are."""
        if not progress.improved:
            return
        weights = full_state(loop.model)
        session = self.session
        if session.ranks.is_main:
            export_safetensors(weights, session.run / WEIGHTS, session.config)

    def _log(
        self,
        metrics: log.MetricsWriter,
        progress: Progress,
        row: dict[str, float | None],
        reading: Reading,
    ) -> None:
        """Write an epoch's row; rates are shown alone, so that a resumed run has the same rows."""
        step = {"step": progress.step, "epoch": progress.epoch, "trial": progress.trial}
        metrics.write({**step, **row})
        metrics.sync()
        best = "  (lowest so far)" if progress.improved else ""
        shown = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if v is not None)
        log.info(
            f"trial {progress.trial + 1} epoch {progress.epoch}  {shown}  "
            f"{reading.rates['records_per_s']:,.0f} records/s{best}"
        )


def classification_loss(
    model: Classifier, task: Task, truth_NK: Tensor, weight_NK: Tensor, config: Config
) -> Callable[[Batch], Tensor]:
    """Return the mean loss of some records, as training changes them.

    Args:
        model: gives logits.
        task: that they are of.
        truth_NK: fp32 labels on the model's device, one line per row of the store.
        weight_NK: fp32 weight of each, 0 where it is not known.
        config: its seed, and how records are changed.
    """
    seed, num_leads = config.train.seed, config.model.num_leads

    def loss_of(batch: Batch) -> Tensor:
        draws = Draws(seed=seed, record_index=batch.record_index, epoch=batch.epoch)
        patches = augmented(batch.patches, draws, config.augment, num_leads=num_leads)
        logits = model(patches, draws).float()
        return task.loss(logits, truth_NK[batch.record_index], weight_NK[batch.record_index])

    return loss_of
