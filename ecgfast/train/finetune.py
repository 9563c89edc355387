"""Supervised training of a classifier, from a store to a run folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgfast import log
from ecgfast.config import Config, Overrides, ignored_settings, load_config
from ecgfast.errors import ConfigError
from ecgfast.model.attention_choice import Shape, shapes_of
from ecgfast.runs.digests import Facts
from ecgfast.runs.located import located
from ecgfast.store.format import refuse_inside_store
from ecgfast.train import run_folder
from ecgfast.train.classify import Asked, Progress, Start, begin, write_result
from ecgfast.train.distributed import Ranks
from ecgfast.train.guards import clear_errors
from ecgfast.train.microbatch import rank_share, require_divisor
from ecgfast.train.run_folder import Session, resolve_attention, resolve_precision
from ecgfast.train.sweep import Sweep
from ecgfast.vocabulary import ModelKind, Precision


def finetune(
    store: str | Path,
    out: str | Path,
    *,
    init: str | Path,
    target: str | Sequence[str] = "ejection_fraction<40",
    classes: Sequence[str] = (),
    preset: str | Path | Config | None = None,
    model: ModelKind | None = None,
    recipe: str | Path | None = None,
    settings: Overrides = (),
    select: str | None = None,
    fold: int | None = None,
    resume: bool = False,
    device: str | None = None,
) -> Path:
    """Train a classifier at each learning rate and keep the weights with the lowest loss.

    Args:
        store: a finished store with splits.
        out: the run's folder, created.
        init: a pretraining run, a weights file, "imagenet-mae" or "random".
        target: what a case is, such as ``ejection_fraction<40``; of several targets one model
            learns all, and a record teaches those of which it has a label. The name of a column
            alone: its number, or which class of its text.
        classes: of such a column, that are learned; none takes all of its text.
        preset: the name of a preset, a TOML file, or settings; None takes those of the pretraining
            run, and without one the preset of `model`: of a new transformer "vit_large" on a GPU
            and "demo" on a CPU.
        model: sets ``model.kind``: "vit", "cnn" or "resnet1d_wang"; None keeps the preset's.
        recipe: how to fine-tune, over the preset: "paper", "best_practice" or a TOML file.
        settings: changes of these, such as ``{"finetune.epochs": 5}``; see docs/training.md.
        select: an expression such as ``site=1``; splits apply within it.
        fold: of a cross-validation: this fold is held out, the next one validates; None takes the
            store's train and valid.
        resume: resume the run in `out` after its last whole epoch; start it if there is none.
        device: "cpu" or "cuda"; by default a GPU where there is one.
    Returns:
        `out`, with best.safetensors, result.json, register.parquet and MODEL_CARD.md besides what
        every run holds.
    Raises:
        ConfigError: settings, labels or initial weights do not fit each other.
        ResumeError: `out` is not empty, or belongs to another run.
        EcgfastError: another process trains in `out`, or memory or disk ran out.
    """
    out = Path(out)
    refuse_inside_store(out, "--out")
    config = settings_of(str(init), preset, model, recipe, settings, device)
    asked = Asked(init=str(init), target=target, classes=classes, select=select, fold=fold)
    with run_folder.session(config, store, out, resume=resume, device=device) as session:
        sweep, start = _prepare(asked, session)
        with clear_errors(out, session.ranks, microbatch=sweep.microbatch):
            progress = sweep.run()
            if progress is not None:
                if session.ranks.is_main:
                    chosen = _chosen(sweep, progress)
                    write_result(out, config, session.store, start, chosen)
                session.ranks.barrier()
    return out


def settings_of(
    init: str,
    preset: str | Path | Config | None,
    model: ModelKind | None,
    recipe: str | Path | None,
    settings: Overrides,
    device: str | None,
) -> Config:
    """The settings of a fine-tuning; those that its kind of model ignores are named."""
    if preset is None:
        settings_of_run = located(init) / "config.toml"
        if settings_of_run.is_file():
            preset = settings_of_run
        elif model not in (None, "vit"):
            preset = str(model)
        elif init == "random":
            preset = run_folder.default_preset(device)
        else:  # weights of others are ViT-Large, as the study's are
            preset = run_folder.GPU_PRESET
            run_folder.warn_of_a_cpu(preset, device)
    if model is not None:
        preset = load_config(preset, {"model.kind": model})
    config = load_config(preset, settings, recipe=recipe)
    if ignored := ignored_settings(config, settings):
        log.warning(f"--set: {ignored}")
    return config


def _prepare(asked: Asked, session: Session) -> tuple[Sweep, Start]:
    config, ranks = session.config, session.ranks
    start = begin(asked, config, session.store)
    records = start.lesson.records
    share, microbatch = _shares(config, len(records.train), ranks)
    _require_possible(config, microbatch)
    ranks.ask_main(
        lambda: session.store.check_digests(np.concatenate([records.train, records.valid]))
    )
    identity = {**start.meta.identity, **_resolved(session)}
    if session.checkpoint is not None:
        run_folder.require_same(identity, session.checkpoint)
    if ranks.is_main:
        chosen = {k: identity[k] for k in ("precision", "attention_kernels", "model", "init")}
        run_folder.write_settings(session.run, config, {**chosen, "microbatch": microbatch})
    start = replace(start, meta=replace(start.meta, identity=identity, microbatch=microbatch))
    sweep = Sweep(
        session=session,
        lesson=start.lesson,
        initial=start.initial,
        meta=start.meta,
        share=share,
        microbatch=microbatch,
    )
    return sweep, start


def _shares(config: Config, num_records: int, ranks: Ranks) -> tuple[int, int]:
    """Records of an update, and of a forward pass, that each rank takes.

    A subset of the labels that is smaller than a batch is a batch of its own.
    """
    settings, asked = config.finetune, config.train.microbatch
    share = rank_share(settings.batch_size, ranks, key="finetune.batch_size")
    microbatch = share if asked == "auto" else require_divisor(asked, share)
    few = settings.label_fraction < 1 or settings.labels_per_class is not None
    if not few or num_records >= settings.batch_size:
        return share, microbatch
    most = num_records // ranks.world_size
    if not most:
        raise ConfigError(
            f"finetune.label_fraction={settings.label_fraction:g} and finetune.labels_per_class="
            f"{settings.labels_per_class or 'null'} leave {num_records} records for "
            f"{ranks.world_size} ranks; take more labels, or train on fewer ranks"
        )
    microbatch = min(microbatch, most)
    share = most - most % microbatch
    log.info(
        f"batches of {share * ranks.world_size} records instead of {settings.batch_size} "
        f"(finetune.batch_size): the subset has {num_records}"
    )
    return share, microbatch


def _require_possible(config: Config, microbatch: int) -> None:
    """Refuse settings that fine-tuning cannot have, or not together; warn of a useless one."""
    model, settings = config.model, config.finetune
    if settings.warmup_epochs >= settings.epochs:
        log.warning(
            f"finetune.warmup_epochs {settings.warmup_epochs:g} takes all of the {settings.epochs} "
            "epochs of finetune.epochs: the learning rate stays below its peak; lower it"
        )
    if config.train.cuda_graph:
        raise ConfigError(
            "train.cuda_graph must be false for fine-tuning, got true; set train.cuda_graph=false"
        )
    if model.kind == "vit" and config.fused != "off" and config.finetune.drop_path:
        raise ConfigError(
            f"finetune.drop_path must be 0 with fused={config.fused}, got "
            f"{config.finetune.drop_path}; set fused=off"
        )
    norms_features = model.kind == "resnet1d_wang" or (model.kind == "cnn" and model.dense_norm)
    if norms_features and microbatch == 1:
        raise ConfigError(
            f"train.microbatch must be at least 2 for {model.kind} with batch norm of features, "
            "got 1; set train.microbatch=auto, and finetune.batch_size to 2 or more on each rank"
        )


def _resolved(session: Session) -> dict[str, Any]:
    """Precision and kernels of the training, which a resumed run keeps."""
    config, ranks = session.config, session.ranks
    shapes: dict[str, Shape] = {}
    precision: Precision = "fp32"  # of a CNN: batch normalisation has no bf16 form
    if config.model.kind == "vit":
        precision = resolve_precision(config, ranks)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        both = shapes_of(config.model, num_keep=config.model.num_patches, dtype=dtype)
        shapes = {"encoder": both["encoder"]}
    return {
        "precision": precision,
        "attention_kernels": resolve_attention(config, shapes, ranks, session.before),
    }


def _chosen(sweep: Sweep, progress: Progress) -> Facts:
    """Which of the weights are kept."""
    session = sweep.session
    return {
        "learning_rate": session.config.finetune.learning_rates[progress.best_trial],
        "epoch": progress.best_epoch,
        "val_loss": progress.best_loss,
        "val_auroc": progress.best_auroc,
        "batch_size": sweep.share * session.ranks.world_size,
    }
