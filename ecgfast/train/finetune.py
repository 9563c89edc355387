"""Supervised training of a classifier, from a store to a run folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.config import Config, Overrides, ignored_settings, load_config
from ecgfast.data.normalise import Normalisation, cohort_statistics
from ecgfast.errors import ConfigError
from ecgfast.model.attention_choice import Shape, shapes_of
from ecgfast.model.build import build_classifier
from ecgfast.runs.digests import METRICS, RUN_FILES, entries, read_weights, sealed
from ecgfast.runs.export import located
from ecgfast.runs.inference import score_rows
from ecgfast.runs.loading import RESULT, WEIGHTS
from ecgfast.runs.meta import Preprocessing, RunMeta, flat
from ecgfast.runs.model_card import FILE as CARD
from ecgfast.runs.model_card import model_card
from ecgfast.runs.outputs import with_outputs
from ecgfast.runs.register import FILE as REGISTER
from ecgfast.runs.register import (
    Register,
    with_encoder,
    with_validation,
    write_register,
)
from ecgfast.runs.roc import auroc, sensitivity_threshold, youden_threshold
from ecgfast.runs.task import Task, task_of
from ecgfast.store.durable import RESUME, write_durably
from ecgfast.store.format import refuse_inside_store
from ecgfast.train import run_folder
from ecgfast.train.dataset import Lesson, labelled_records
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
    target: str | Sequence[str] = "ejection_fraction<40",
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
            learns all, and a record teaches those of which it has a label.
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
    config = _config(str(init), preset, model, recipe, settings, device)
    task = task_of("binary", [target] if isinstance(target, str) else target)
    asked = _Asked(init=str(init), task=task, select=select, fold=fold)
    with run_folder.session(config, store, out, resume=resume, device=device) as session:
        sweep, register = _prepare(asked, session)
        with clear_errors(out, session.ranks, microbatch=sweep.microbatch):
            progress = sweep.run()
            if progress is not None:
                if session.ranks.is_main:
                    _write_result(sweep, progress, register)
                session.ranks.barrier()
    return out


def _config(
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
        else:  # weights of others are ViT-Large, as the study's are
            is_new = init == "random"
            preset = run_folder.default_preset(device) if is_new else run_folder.GPU_PRESET
    if model is not None:
        preset = load_config(preset, {"model.kind": model})
    config = load_config(preset, settings, recipe=recipe)
    if ignored := ignored_settings(config, settings):
        log.warning(f"--set: {ignored}")
    return config


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What `finetune` was asked to learn, beside its settings."""

    init: str
    task: Task
    select: str | None
    fold: int | None


def _prepare(asked: _Asked, session: Session) -> tuple[Sweep, Register]:
    """Return the sweep, and whose ECGs teach it."""
    config, store, ranks = session.config, session.store, session.ranks
    lesson = labelled_records(
        store,
        asked.task,
        asked.select,
        asked.fold,
        fraction=config.finetune.label_fraction,
        seed=config.train.seed,
    )
    records = lesson.records
    share, microbatch = _shares(config, len(records.train), ranks)
    _require_possible(config, microbatch)
    ranks.ask_main(lambda: store.check_digests(np.concatenate([records.train, records.valid])))
    initial = read_initial(asked.init, config)
    preprocessing = Preprocessing.of(store, _normalisation(session, lesson, initial))
    require_same_preprocessing(initial, preprocessing, asked.init)
    identity = _identity(asked, session, lesson)
    if session.checkpoint is not None:
        run_folder.require_same(identity, session.checkpoint)
    if ranks.is_main:
        chosen = {k: identity[k] for k in ("precision", "attention_kernels", "model", "init")}
        run_folder.write_settings(session.run, config, {**chosen, "microbatch": microbatch})
    sweep = Sweep(
        session=session,
        lesson=lesson,
        initial=initial,
        meta=RunMeta(
            kind="finetune", identity=identity, microbatch=microbatch, preprocessing=preprocessing
        ),
        share=share,
        microbatch=microbatch,
    )
    taught = Register.of(store, {"train": records.train, "valid": records.valid})
    return sweep, with_encoder(taught, initial.register, initial.origin)


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


def _identity(asked: _Asked, session: Session, lesson: Lesson) -> dict[str, Any]:
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
        "init": initial_name(asked.init),
        **lesson.task.identity(),
        "select": asked.select,
        "fold": asked.fold,
        "model": config.model.kind,
        "store": session.store.identity,
        "labels": lesson.records.digest,
        "precision": precision,
        "attention_kernels": resolve_attention(config, shapes, ranks, session.before),
    }


def _normalisation(session: Session, lesson: Lesson, initial: Initial) -> Normalisation:
    """With the statistics of the pretraining, where there was one: the weights know no others."""
    mode = session.config.data.normalise
    if mode != "cohort_lead":
        return Normalisation(mode=mode)
    kept = None if initial.preprocessing is None else initial.preprocessing.normalisation.cohort
    cohort = kept or cohort_statistics(session.store, lesson.records.train)
    return Normalisation(mode=mode, cohort=cohort)


def _write_result(sweep: Sweep, progress: Progress, register: Register) -> None:
    """Score the validation records with the kept weights, as any later test will."""
    session, out, lesson = sweep.session, sweep.session.run, sweep.lesson
    task, valid = lesson.task, lesson.records.valid
    model = build_classifier(session.config, num_outputs=len(task.outputs))
    model.load_state_dict(read_weights(out / WEIGHTS))
    normalisation = sweep.meta.preprocessing.normalisation
    scores = score_rows(
        model, session.store, valid, normalisation, meaning=task.predictions, name="validation"
    )
    truth = lesson.records.truth[valid]
    if task.is_single:
        register = with_validation(register, (truth[:, 0] > 0).tolist(), scores)
    else:
        register = with_outputs(register, truth, scores.reshape(truth.shape))
    write_register(out, register)
    result = {
        **sweep.meta.as_facts(),
        "learning_rate": session.config.finetune.learning_rates[progress.best_trial],
        "epoch": progress.best_epoch,
        "val_loss": progress.best_loss,
        "val_auroc": progress.best_auroc,
        "batch_size": sweep.share * session.ranks.world_size,
        "counts": lesson.counts,
        "initial_tensors": dict(sweep.initial.tensors),
        **_validated(lesson, truth, scores.reshape(truth.shape)),
    }
    card = model_card(sweep.meta, result, sum(each.numel() for each in model.parameters()))
    write_durably(out / CARD, [card.encode()], again=RESUME)
    files = entries(out, (WEIGHTS, REGISTER, METRICS))
    write_durably(out / RESULT, [sealed({**result, RUN_FILES: files})], again=RESUME)


def _validated(
    lesson: Lesson, truth_RK: NDArray[np.float64], scores_RK: NDArray[np.float64]
) -> dict[str, Any]:
    """What the validation records say: thresholds of a single target, or a table of each output."""
    found = []
    for truth, scores in zip(truth_RK.T, scores_RK.T, strict=True):
        known = ~np.isnan(truth)
        is_case, own = truth[known] > 0, scores[known]
        thresholds = {
            "youden": youden_threshold(is_case, own),
            "sensitivity_90": sensitivity_threshold(is_case, own, 0.9),
        }
        found.append({"val_auroc": auroc(is_case, own), "thresholds": thresholds})
    if lesson.task.is_single:
        return {"thresholds": found[0]["thresholds"]}
    outputs = lesson.outputs.items()
    return {
        "outputs": {n: {**counts, **own} for (n, counts), own in zip(outputs, found, strict=True)}
    }
