"""Fine-tuning at one learning rate after the other; the weights with the lowest loss are kept."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ecgfast import log
from ecgfast.config import Config
from ecgfast.data.batch import Batch
from ecgfast.data.loader import Loader
from ecgfast.labels.selection import Labelled
from ecgfast.model.block import set_attention
from ecgfast.model.build import build_classifier
from ecgfast.model.classifier import Classifier
from ecgfast.model.vit import Encoder
from ecgfast.runs.checkpoint import Checkpoint
from ecgfast.runs.loading import RESULT, WEIGHTS
from ecgfast.runs.meta import RunMeta
from ecgfast.runs.register import FILE as REGISTER
from ecgfast.runs.register import Register, with_validation, write_register
from ecgfast.runs.roc import auroc, sensitivity_threshold, youden_threshold
from ecgfast.runs.scoring import score_rows
from ecgfast.runs.sealed import METRICS, RUN_FILES, entries, sealed
from ecgfast.runs.weights import export_safetensors, read_weights
from ecgfast.store.durable import RESUME, write_durably
from ecgfast.store.reader import StoreReader
from ecgfast.train import setup
from ecgfast.train.checkpoint import CheckpointWriter, load, training_state
from ecgfast.train.distributed import Ranks, full_state, spread
from ecgfast.train.initial import Initial, apply_initial
from ecgfast.train.loop import train_step
from ecgfast.train.optim import MasterAdamW
from ecgfast.train.progress import Progress
from ecgfast.train.scoring import Scorer
from ecgfast.train.signals import StopSignals
from ecgfast.vocabulary import AttentionKernel

ADAM_BETAS = (0.9, 0.999)  # with weight decay 0, AdamW is the study's Adam


@dataclass(kw_only=True)
class Sweep:
    """Trials one after the other, resumable after every epoch.

    Attributes:
        config: resolved settings.
        ranks: who shares the run.
        out: its folder.
        store: where records come from.
        records: which ones, and their labels.
        counts: cases and controls, for result.json.
        initial: weights that every trial starts from.
        meta: what checkpoints and result.json say about the run.
        register: whom the run learns from, and whom its encoder has read.
        microbatch: records per rank and forward pass.
    """

    config: Config
    ranks: Ranks
    out: Path
    store: StoreReader
    records: Labelled
    counts: dict[str, int]
    initial: Initial
    meta: RunMeta
    register: Register
    microbatch: int

    def run(self, stop: StopSignals, checkpoint: Checkpoint | None) -> None:
        """Go through the learning rates from where a checkpoint stands, to the end or a stop."""
        settings = self.config.finetune
        progress = Progress() if checkpoint is None else Progress(**checkpoint.facts["progress"])
        loader, scorer = self._training_loader(), self._scorer()
        with (
            CheckpointWriter(self.out, self.ranks, keep=1) as writer,
            self._open_metrics(progress) as metrics,
        ):
            while progress.trial < len(settings.learning_rates):
                model, optimizer = self._fresh()
                state = training_state(model, optimizer)
                if checkpoint is not None:
                    load(checkpoint, state, self.ranks, optimizer)
                    self._keep_weights(model, progress)  # a crash may have come before it
                    checkpoint = None
                loader.load_state_dict({"epoch": progress.epoch, "position": 0})
                while progress.epoch < settings.epochs and progress.stale < settings.patience:
                    loss = self._train_epoch(model, optimizer, loader, progress, stop)
                    if loss is None:  # the last whole epoch is saved; the next run repeats this one
                        return
                    val_loss, area = self._validate(model, scorer)
                    progress = progress.after_epoch(steps=len(loader), loss=val_loss, auroc=area)
                    self._log_epoch(metrics, progress, loss=loss, val_loss=val_loss, area=area)
                    facts = {**self.meta.as_facts(), "progress": progress.as_meta()}
                    writer.save(state, step=progress.step, facts=facts)
                    writer.wait()
                    self._keep_weights(model, progress)
                progress = progress.next_trial()
        if self.ranks.is_main:
            self._write_result(progress)
        self.ranks.barrier()

    def _fresh(self) -> tuple[Classifier, MasterAdamW]:
        model = build_classifier(self.config, self.meta.identity["model"])
        apply_initial(model, self.initial, source=self.meta.identity["init"])
        if isinstance(model.encoder, Encoder):
            kernel = cast(AttentionKernel, self.meta.identity["attention_kernels"]["encoder"])
            set_attention(model.encoder.blocks, kernel)
        compiled = setup.resolve_compile(self.config, self.ranks)
        spread(
            model,
            self.ranks,
            precision=self.meta.identity["precision"],
            compile_blocks=compiled,
            parallel=self.config.train.parallel,
        )
        optimizer = MasterAdamW(model, self.ranks, betas=ADAM_BETAS, weight_decay=0.0)
        return model, optimizer

    def _train_epoch(
        self,
        model: Classifier,
        optimizer: MasterAdamW,
        loader: Loader,
        progress: Progress,
        stop: StopSignals,
    ) -> float | None:
        """Train over one epoch; return the mean training loss, None when stopped."""
        rate = self.config.finetune.learning_rates[progress.trial]
        is_case = torch.from_numpy(self.records.is_case).to(self.ranks.device, torch.float32)
        loss_of = classification_loss(model, is_case)
        what = f"finetune lr {rate:g} epoch {progress.epoch + 1}"
        losses: list[Tensor] = []
        with log.progress(what, total=len(loader), unit="steps") as advance:
            for batch in loader:
                report = train_step(
                    model,
                    optimizer,
                    loss_of,
                    batch,
                    microbatch=self.microbatch,
                    learning_rate=rate,
                )
                losses.append(report.loss)
                advance(1)
                if stop.agreed():
                    return None
        return float(torch.stack(losses).mean())

    def _open_metrics(self, progress: Progress) -> AbstractContextManager[log.MetricsWriter | None]:
        if self.ranks.is_main:
            return log.MetricsWriter(self.out, resume_step=progress.step)
        return nullcontext()

    def _scorer(self) -> Scorer:
        return Scorer(
            self.store,
            self.config,
            self.ranks,
            self.records.valid,
            batch_size=self.microbatch,
            normalisation=self.meta.preprocessing.normalisation,
        )

    def _training_loader(self) -> Loader:
        return setup.open_loader(
            self.store,
            self.config,
            self.ranks,
            self.records.train,
            batch_size=self.config.finetune.batch_size // self.ranks.world_size,
            seed=self.config.train.seed,
            normalisation=self.meta.preprocessing.normalisation,
        )

    def _validate(self, model: Classifier, scorer: Scorer) -> tuple[float, float | None]:
        logits = scorer.logits(model)
        is_case = self.records.is_case[self.records.valid]
        return cross_entropy(logits, is_case), auroc(is_case, logits)

    def _keep_weights(self, model: Classifier, progress: Progress) -> None:
        """Export weights that were the best of all, once their checkpoint says that they are."""
        if not progress.improved:
            return
        weights = full_state(model)
        if self.ranks.is_main:
            export_safetensors(weights, self.out / WEIGHTS, self.config)

    def _log_epoch(
        self,
        metrics: log.MetricsWriter | None,
        progress: Progress,
        *,
        loss: float,
        val_loss: float,
        area: float | None,
    ) -> None:
        if metrics is None:
            return
        rate = self.config.finetune.learning_rates[progress.trial]
        row = {"loss": loss, "val_loss": val_loss, "val_auroc": area, "lr": rate}
        step = {"step": progress.step, "epoch": progress.epoch, "trial": progress.trial}
        metrics.write({**step, **row})
        metrics.sync()
        best = "  (lowest so far)" if progress.improved else ""
        shown = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if v is not None)
        log.info(f"trial {progress.trial + 1} epoch {progress.epoch}  {shown}{best}")

    def _write_result(self, progress: Progress) -> None:
        """Score the validation records with the kept weights, as any later test will."""
        model = build_classifier(self.config, self.meta.identity["model"])
        model.load_state_dict(read_weights(self.out / WEIGHTS))
        scores = score_rows(
            model,
            self.store,
            self.records.valid,
            self.meta.preprocessing.normalisation,
            name="validation",
        )
        is_case = self.records.is_case[self.records.valid]
        write_register(self.out, with_validation(self.register, is_case.tolist(), scores))
        rates = self.config.finetune.learning_rates
        result = {
            **self.meta.as_facts(),
            "learning_rate": rates[progress.best_trial],
            "epoch": progress.best_epoch,
            "val_loss": progress.best_loss,
            "val_auroc": progress.best_auroc,
            "counts": self.counts,
            "thresholds": {
                "youden": youden_threshold(is_case, scores),
                "sensitivity_90": sensitivity_threshold(is_case, scores, 0.9),
            },
        }
        files = entries(self.out, (WEIGHTS, REGISTER, METRICS))
        write_durably(self.out / RESULT, [sealed({**result, RUN_FILES: files})], again=RESUME)


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


def cross_entropy(logits_R: NDArray[np.float64], is_case_R: NDArray[np.bool_]) -> float:
    """Mean binary cross-entropy in fp64."""
    return float(np.mean(np.logaddexp(0.0, logits_R) - logits_R * is_case_R))
