"""Supervised training of a classifier: a sweep of learning rates, the lowest loss kept."""

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from ecgfast import log
from ecgfast.config import Config
from ecgfast.data.loader import Loader
from ecgfast.data.normalise import CohortStatistics, cohort_statistics
from ecgfast.errors import ConfigError
from ecgfast.evaluate.roc import auroc
from ecgfast.labels.learning import Labelled
from ecgfast.model.attention import Backend
from ecgfast.model.attention_choice import Shape, shapes_of
from ecgfast.model.build import build_classifier
from ecgfast.model.classifier import Classifier
from ecgfast.model.vit import Encoder, set_attention
from ecgfast.store.durable import write_durably
from ecgfast.store.reader import StoreReader
from ecgfast.train import run_folder, setup
from ecgfast.train.checkpoint import Checkpoint, load, training_state
from ecgfast.train.checkpoint_writer import CheckpointWriter
from ecgfast.train.distributed import Precision, Ranks, join, spread
from ecgfast.train.guards import clear_errors
from ecgfast.train.initial import (
    Initial,
    apply_initial,
    read_initial,
    require_same_preprocessing,
)
from ecgfast.train.labelled import labelled_records
from ecgfast.train.optim import MasterAdamW
from ecgfast.train.scoring import Scorer
from ecgfast.train.signals import StopSignals
from ecgfast.train.sweep import Progress, cross_entropy, train_epoch
from ecgfast.train.weights import export_safetensors, full_state

Kind = Literal["vit", "cnn"]
ADAM_BETAS = (0.9, 0.999)  # with weight decay 0, AdamW is the study's Adam


def finetune(
    config: Config,
    store: Path,
    out: Path,
    *,
    init: str,
    model: Kind,
    target: str,
    select: str | None = None,
    resume: bool = False,
    device: str | None = None,
) -> Path:
    """Train a classifier at each learning rate and keep the weights with the lowest loss.

    Args:
        config: resolved settings; `finetune.*` holds the sweep.
        store: a finished store with splits.
        out: the run's folder, created.
        init: a pretraining run, a weights file, "imagenet-mae" or "random".
        model: "vit" or "cnn".
        target: what a case is, such as ``ejection_fraction<40``.
        select: an expression such as ``site=1``; splits apply within it.
        resume: go on after the last whole epoch; an empty folder starts afresh.
        device: "cpu" or "cuda"; by default a GPU where there is one.
    Returns:
        `out`, with best.safetensors and result.json besides what every run holds.
    Raises:
        ConfigError: settings, labels or initial weights do not fit each other.
        ResumeError: `out` is not empty, or belongs to another run.
        EcgfastError: another process trains in `out`, or memory or disk ran out.
    """
    setup.make_repeatable(config.train.deterministic)
    with join(device) as ranks, StopSignals(ranks) as stop:
        opened = setup.open_matching_store(Path(store), config)
        with run_folder.enter(out, ranks, resume=resume) as checkpoint:
            sweep = _prepare(config, opened, out, ranks, checkpoint, init, model, target, select)
            with clear_errors(out, ranks, microbatch=sweep.microbatch):
                sweep.run(stop, checkpoint)
    stop.end_process()
    return out


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
        cohort: for ``normalise="cohort_lead"``.
        initial: weights that every trial starts from.
        identity: what a resumed run must have in common with this one.
        meta: what checkpoints and result.json say about the run.
        microbatch: records per rank and forward pass.
    """

    config: Config
    ranks: Ranks
    out: Path
    store: StoreReader
    records: Labelled
    counts: dict[str, int]
    cohort: CohortStatistics | None
    initial: Initial
    identity: dict[str, Any]
    meta: dict[str, Any]
    microbatch: int

    def run(self, stop: StopSignals, checkpoint: Checkpoint | None) -> None:
        """Go through the learning rates from where a checkpoint stands."""
        progress = Progress() if checkpoint is None else Progress(**checkpoint.meta["progress"])
        loader, scorer = self._training_loader(), self._scorer()
        stopped = False
        with (
            CheckpointWriter(self.out, self.ranks, keep=1) as writer,
            self._open_metrics(progress) as metrics,
        ):
            while progress.trial < len(self.config.finetune.learning_rates) and not stopped:
                progress, stopped = self._trial(
                    progress, checkpoint, loader, writer, metrics, scorer, stop
                )
                checkpoint = None
                if not stopped:
                    progress = progress.next_trial()
        if self.ranks.is_main and not stopped:
            self._write_result(progress)
        self.ranks.barrier()

    def _trial(
        self,
        progress: Progress,
        checkpoint: Checkpoint | None,
        loader: Loader,
        writer: CheckpointWriter,
        metrics: log.MetricsWriter | None,
        scorer: Scorer,
        stop: StopSignals,
    ) -> tuple[Progress, bool]:
        settings, rate = self.config.finetune, self.config.finetune.learning_rates[progress.trial]
        model, optimizer = self._fresh()
        state = training_state(model, optimizer)
        if checkpoint is not None:
            load(checkpoint, state, self.ranks, optimizer)
        loader.load_state_dict({"epoch": progress.epoch, "position": 0})
        is_case = torch.from_numpy(self.records.is_case).to(self.ranks.device, torch.float32)
        while progress.epoch < settings.epochs and progress.stale < settings.patience:
            name = f"finetune lr {rate:g} epoch {progress.epoch + 1}"
            loss = train_epoch(
                model,
                optimizer,
                loader,
                is_case,
                microbatch=self.microbatch,
                learning_rate=rate,
                what=name,
                stop=stop,
            )
            if loss is None:  # the last whole epoch is saved, and the next run repeats this one
                return progress, True
            val_loss, area = self._validate(model, scorer)
            progress = progress.after_epoch(steps=len(loader), loss=val_loss, auroc=area)
            if progress.improved:
                self._keep_weights(model)
            row = {"loss": loss, "val_loss": val_loss, "val_auroc": area, "lr": rate}
            self._log_epoch(metrics, progress, row)
            meta = {**self.meta, "progress": progress.as_meta()}
            writer.save(state, step=progress.step, meta=meta)
        return progress, False

    def _fresh(self) -> tuple[Classifier, MasterAdamW]:
        model = build_classifier(self.config, self.identity["model"])
        apply_initial(model, self.initial, source=self.identity["init"])
        if isinstance(model.encoder, Encoder):
            kernel = cast(Backend, self.identity["attention_kernels"]["encoder"])
            set_attention(model.encoder.blocks, kernel)
        compiled = setup.resolve_compile(self.config, self.ranks)
        spread(model, self.ranks, precision=self.identity["precision"], compile_blocks=compiled)
        optimizer = MasterAdamW(model, self.ranks, betas=ADAM_BETAS, weight_decay=0.0)
        return model, optimizer

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
            cohort=self.cohort,
        )

    def _training_loader(self) -> Loader:
        return setup.open_loader(
            self.store,
            self.config,
            self.ranks,
            self.records.train,
            batch_size=self.config.finetune.batch_size // self.ranks.world_size,
            seed=self.config.train.seed,
            cohort=self.cohort,
        )

    def _validate(self, model: Classifier, scorer: Scorer) -> tuple[float, float | None]:
        logits = scorer.logits(model)
        is_case = self.records.is_case[self.records.valid]
        return cross_entropy(logits, is_case), auroc(is_case, logits)

    def _keep_weights(self, model: Classifier) -> None:
        weights = full_state(model)
        if self.ranks.is_main:
            export_safetensors(weights, self.out / "best.safetensors", self.config)

    def _log_epoch(
        self,
        metrics: log.MetricsWriter | None,
        progress: Progress,
        row: dict[str, float | None],
    ) -> None:
        if metrics is None:
            return
        step = {"step": progress.step, "epoch": progress.epoch, "trial": progress.trial}
        metrics.write({**step, **row})
        metrics.sync()
        best = "  (lowest so far)" if progress.improved else ""
        shown = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if v is not None)
        log.info(f"trial {progress.trial + 1} epoch {progress.epoch}  {shown}{best}")

    def _write_result(self, progress: Progress) -> None:
        rates = self.config.finetune.learning_rates
        result = {
            **self.meta,
            "learning_rate": rates[progress.best_trial],
            "epoch": progress.best_epoch,
            "val_loss": progress.best_loss,
            "val_auroc": progress.best_auroc,
            "counts": self.counts,
        }
        write_durably(self.out / "result.json", [json.dumps(result, indent=1).encode()])


def _prepare(
    config: Config,
    store: StoreReader,
    out: Path,
    ranks: Ranks,
    checkpoint: Checkpoint | None,
    init: str,
    model: Kind,
    target: str,
    select: str | None,
) -> Sweep:
    if config.train.cuda_graph:
        raise ConfigError(
            "train.cuda_graph must be false for fine-tuning, got true; set train.cuda_graph=false"
        )
    share = setup.rank_share(config.finetune.batch_size, ranks, key="finetune.batch_size")
    microbatch = _microbatch(config, share)
    records, counts = labelled_records(store, target, select)
    initial = read_initial(init, config, model)
    cohort = _cohort(config, store, records, initial)
    preprocessing = setup.preprocessing(store, config, cohort)
    require_same_preprocessing(initial, preprocessing, init)
    # normalisation over a batch has no bf16 form, and the baseline is small
    precision = "fp32" if model == "cnn" else setup.resolve_precision(config, ranks)
    identity: dict[str, Any] = {
        **run_folder.flat(config),
        "store": store.identity,
        "select": select,
        "target": target,
        "labels": records.digest,
        "init": init,
        "model": model,
        "precision": precision,
        "attention_kernels": setup.settle_attention(
            config, _shapes(config, model, precision), ranks, checkpoint
        ),
    }
    if checkpoint is not None:
        run_folder.require_same(identity, checkpoint)
    if ranks.is_main:
        chosen = {k: identity[k] for k in ("precision", "attention_kernels", "model", "init")}
        run_folder.write_settings(out, config, {**chosen, "microbatch": microbatch})
    meta = {
        "kind": "finetune",
        "identity": identity,
        "microbatch": microbatch,
        "preprocessing": preprocessing,
    }
    return Sweep(
        config=config,
        ranks=ranks,
        out=out,
        store=store,
        records=records,
        counts=counts,
        cohort=cohort,
        initial=initial,
        identity=identity,
        meta=meta,
        microbatch=microbatch,
    )


def _microbatch(config: Config, share: int) -> int:
    asked = config.train.microbatch
    if asked == "auto":
        return share
    if share % asked:
        raise ConfigError(
            f"train.microbatch must divide the {share} records that each rank takes of a batch, "
            f"got {asked}; set finetune.batch_size or train.microbatch"
        )
    return asked


def _shapes(config: Config, model: Kind, precision: Precision) -> dict[str, Shape]:
    if model == "cnn":
        return {}
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return {
        "encoder": shapes_of(config.model, num_keep=config.model.num_patches, dtype=dtype)[
            "encoder"
        ]
    }


def _cohort(
    config: Config, store: StoreReader, records: Labelled, initial: Initial
) -> CohortStatistics | None:
    """Statistics of the pretraining, where there was one: the weights know no others."""
    if config.data.normalise != "cohort_lead":
        return None
    if initial.preprocessing is not None and initial.preprocessing["cohort"] is not None:
        kept = initial.preprocessing["cohort"]
        return CohortStatistics(mean_uv=tuple(kept["mean_uv"]), std_uv=tuple(kept["std_uv"]))
    return cohort_statistics(store, records.train)
