"""Supervised training of a classifier, from a store to a run folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgfast import log
from ecgfast.config import Config, Overrides, ignored_settings, load_config
from ecgfast.data.normalise import Normalisation, cohort_statistics
from ecgfast.errors import ConfigError
from ecgfast.labels.selection import Labelled
from ecgfast.model.attention_choice import Shape, shapes_of
from ecgfast.model.build import build_classifier
from ecgfast.runs.digests import METRICS, RUN_FILES, entries, read_weights, sealed
from ecgfast.runs.inference import score_rows
from ecgfast.runs.loading import RESULT, WEIGHTS
from ecgfast.runs.meta import Preprocessing, RunMeta, flat
from ecgfast.runs.model_card import FILE as CARD
from ecgfast.runs.model_card import model_card
from ecgfast.runs.register import FILE as REGISTER
from ecgfast.runs.register import Register, with_encoder, with_validation, write_register
from ecgfast.runs.roc import sensitivity_threshold, youden_threshold
from ecgfast.store.durable import RESUME, write_durably
from ecgfast.store.format import refuse_inside_store
from ecgfast.train import run_folder
from ecgfast.train.dataset import labelled_records
from ecgfast.train.distributed import Ranks
from ecgfast.train.guards import clear_errors
from ecgfast.train.initial import (
    Initial,
    initial_name,
    read_initial,
    require_same_preprocessing,
)
from ecgfast.train.microbatch import rank_share, require_divisor
from ecgfast.train.run_folder import Session, resolve_attention, resolve_precision
from ecgfast.train.schedule import Progress
from ecgfast.train.sweep import Sweep
from ecgfast.vocabulary import ModelKind, Precision


def finetune(
    store: str | Path,
    out: str | Path,
    *,
    init: str | Path,
    target: str = "ejection_fraction<40",
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
        target: what a case is, such as ``ejection_fraction<40``.
        preset: the name of a preset, a TOML file, or settings; None takes those of the pretraining
            run, and without one the preset of `model`.
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
    config = _config(str(init), preset, model, recipe, settings)
    task = _Task(init=str(init), target=target, select=select, fold=fold)
    with run_folder.session(config, store, out, resume=resume, device=device) as session:
        sweep, register, counts = _prepare(task, session)
        with clear_errors(out, session.ranks, microbatch=sweep.microbatch):
            progress = sweep.run()
            if progress is not None:
                if session.ranks.is_main:
                    _write_result(sweep, progress, register, counts)
                session.ranks.barrier()
    return out


def _config(
    init: str,
    preset: str | Path | Config | None,
    model: ModelKind | None,
    recipe: str | Path | None,
    settings: Overrides,
) -> Config:
    """The settings of a fine-tuning; those that its kind of model ignores are named."""
    if preset is None:
        settings_of_run = Path(init, "config.toml")
        default = "vit_large" if model in (None, "vit") else str(model)
        preset = settings_of_run if settings_of_run.is_file() else default
    if model is not None:
        preset = load_config(preset, {"model.kind": model})
    config = load_config(preset, settings, recipe=recipe)
    if ignored := ignored_settings(config, settings):
        log.warning(f"--set: {ignored}")
    return config


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What `finetune` was asked to learn, beside its settings."""

    init: str
    target: str
    select: str | None
    fold: int | None


def _prepare(task: _Task, session: Session) -> tuple[Sweep, Register, dict[str, int]]:
    """Return the sweep, whose ECGs teach it, and how many cases and controls these are."""
    config, store, ranks = session.config, session.store, session.ranks
    records, counts = labelled_records(
        store,
        task.target,
        task.select,
        task.fold,
        fraction=config.finetune.label_fraction,
        seed=config.train.seed,
    )
    share, microbatch = _shares(config, len(records.train), ranks)
    _require_possible(config, microbatch)
    ranks.ask_main(lambda: store.check_digests(np.concatenate([records.train, records.valid])))
    initial = read_initial(task.init, config)
    preprocessing = Preprocessing.of(store, _normalisation(session, records, initial))
    require_same_preprocessing(initial, preprocessing, task.init)
    identity = _identity(task, session, records)
    if session.checkpoint is not None:
        run_folder.require_same(identity, session.checkpoint)
    if ranks.is_main:
        chosen = {k: identity[k] for k in ("precision", "attention_kernels", "model", "init")}
        run_folder.write_settings(session.run, config, {**chosen, "microbatch": microbatch})
    sweep = Sweep(
        session=session,
        records=records,
        initial=initial,
        meta=RunMeta(
            kind="finetune", identity=identity, microbatch=microbatch, preprocessing=preprocessing
        ),
        share=share,
        microbatch=microbatch,
    )
    taught = Register.of(store, {"train": records.train, "valid": records.valid})
    return sweep, with_encoder(taught, initial.register, initial.origin), counts


def _shares(config: Config, num_records: int, ranks: Ranks) -> tuple[int, int]:
    """Records of an update, and of a forward pass, that each rank takes.

    A subset of the labels that is smaller than a batch is a batch of its own.
    """
    settings, asked = config.finetune, config.train.microbatch
    share = rank_share(settings.batch_size, ranks, key="finetune.batch_size")
    microbatch = share if asked == "auto" else require_divisor(asked, share)
    if settings.label_fraction == 1 or num_records >= settings.batch_size:
        return share, microbatch
    most = num_records // ranks.world_size
    if not most:
        raise ConfigError(
            f"finetune.label_fraction={settings.label_fraction:g} leaves {num_records} records for "
            f"{ranks.world_size} ranks; raise it, or train on fewer ranks"
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


def _identity(task: _Task, session: Session, records: Labelled) -> dict[str, Any]:
    """What a resumed run must have in common with this one."""
    config, ranks = session.config, session.ranks
    shapes: dict[str, Shape] = {}
    precision: Precision = "fp32"  # of a CNN: batch normalisation has no bf16 form
    if config.model.kind == "vit":
        precision = resolve_precision(config, ranks)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        both = shapes_of(config.model, num_keep=config.model.num_patches, dtype=dtype)
        shapes = {"encoder": both["encoder"]}
    return {
        **flat(config),
        **asdict(task),
        "init": initial_name(task.init),
        "model": config.model.kind,
        "store": session.store.identity,
        "labels": records.digest,
        "precision": precision,
        "attention_kernels": resolve_attention(config, shapes, ranks, session.before),
    }


def _normalisation(session: Session, records: Labelled, initial: Initial) -> Normalisation:
    """With the statistics of the pretraining, where there was one: the weights know no others."""
    mode = session.config.data.normalise
    if mode != "cohort_lead":
        return Normalisation(mode=mode)
    kept = None if initial.preprocessing is None else initial.preprocessing.normalisation.cohort
    cohort = kept or cohort_statistics(session.store, records.train)
    return Normalisation(mode=mode, cohort=cohort)


def _write_result(
    sweep: Sweep, progress: Progress, register: Register, counts: dict[str, int]
) -> None:
    """Score the validation records with the kept weights, as any later test will."""
    session, out, valid = sweep.session, sweep.session.run, sweep.records.valid
    model = build_classifier(session.config)
    model.load_state_dict(read_weights(out / WEIGHTS))
    normalisation = sweep.meta.preprocessing.normalisation
    scores = score_rows(model, session.store, valid, normalisation, name="validation")
    is_case = sweep.records.is_case[valid]
    write_register(out, with_validation(register, is_case.tolist(), scores))
    result = {
        **sweep.meta.as_facts(),
        "learning_rate": session.config.finetune.learning_rates[progress.best_trial],
        "epoch": progress.best_epoch,
        "val_loss": progress.best_loss,
        "val_auroc": progress.best_auroc,
        "batch_size": sweep.share * session.ranks.world_size,
        "counts": counts,
        "initial_tensors": dict(sweep.initial.tensors),
        "thresholds": {
            "youden": youden_threshold(is_case, scores),
            "sensitivity_90": sensitivity_threshold(is_case, scores, 0.9),
        },
    }
    card = model_card(sweep.meta, result, sum(each.numel() for each in model.parameters()))
    write_durably(out / CARD, [card.encode()], again=RESUME)
    files = entries(out, (WEIGHTS, REGISTER, METRICS))
    write_durably(out / RESULT, [sealed({**result, RUN_FILES: files})], again=RESUME)
