"""Supervised training of a classifier, from a store to a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgfast.config import Config
from ecgfast.data.normalise import Normalisation, cohort_statistics
from ecgfast.errors import ConfigError
from ecgfast.labels.selection import Labelled
from ecgfast.model.attention_choice import Shape, shapes_of
from ecgfast.model.build import build_classifier
from ecgfast.runs.checkpoint_reader import Checkpoint
from ecgfast.runs.digests import METRICS, RUN_FILES, entries, read_weights, sealed
from ecgfast.runs.inference import score_rows
from ecgfast.runs.loading import RESULT, WEIGHTS
from ecgfast.runs.meta import Preprocessing, RunMeta, flat
from ecgfast.runs.register import FILE as REGISTER
from ecgfast.runs.register import Register, with_encoder, with_validation, write_register
from ecgfast.runs.roc import sensitivity_threshold, youden_threshold
from ecgfast.store.durable import RESUME, write_durably
from ecgfast.store.reader import StoreReader
from ecgfast.train import run_folder
from ecgfast.train.distributed import Ranks, join, make_repeatable
from ecgfast.train.guards import StopSignals, clear_errors
from ecgfast.train.initial import (
    Initial,
    initial_name,
    read_initial,
    require_same_preprocessing,
)
from ecgfast.train.microbatch import rank_share, require_divisor
from ecgfast.train.records import labelled_records, open_matching_store
from ecgfast.train.run_folder import resolve_attention, resolve_precision
from ecgfast.train.sweep import Progress, Sweep
from ecgfast.vocabulary import ModelKind, Precision


def finetune(
    config: Config,
    store: Path,
    out: Path,
    *,
    init: str,
    model: ModelKind,
    target: str,
    select: str | None = None,
    fold: int | None = None,
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
        fold: of a cross-validation: this fold is held out, the next one validates; None takes the
            store's train and valid.
        resume: resume the run in `out` after its last whole epoch; start it if there is none.
        device: "cpu" or "cuda"; by default a GPU where there is one.
    Returns:
        `out`, with best.safetensors, result.json and register.parquet besides what every run holds.
    Raises:
        ConfigError: settings, labels or initial weights do not fit each other.
        ResumeError: `out` is not empty, or belongs to another run.
        EcgfastError: another process trains in `out`, or memory or disk ran out.
    """
    make_repeatable(config.train.deterministic)
    with join(device) as ranks, StopSignals(ranks) as stop:
        opened = open_matching_store(Path(store), config)
        with run_folder.enter(out, ranks, resume=resume) as checkpoint:
            task = _Task(init=init, model=model, target=target, select=select, fold=fold)
            sweep, register, counts = _prepare(task, config, opened, out, ranks, checkpoint)
            with clear_errors(out, ranks, microbatch=sweep.microbatch):
                progress = sweep.run(stop, checkpoint)
                if progress is not None:
                    if ranks.is_main:
                        _write_result(sweep, progress, register, counts)
                    ranks.barrier()
    stop.end_process()
    return out


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What `finetune` was asked to learn, beside its settings."""

    init: str
    model: ModelKind
    target: str
    select: str | None
    fold: int | None


def _prepare(
    task: _Task,
    config: Config,
    store: StoreReader,
    out: Path,
    ranks: Ranks,
    checkpoint: Checkpoint | None,
) -> tuple[Sweep, Register, dict[str, int]]:
    """Return the sweep, whose ECGs teach it, and how many cases and controls these are."""
    if config.train.cuda_graph:
        raise ConfigError(
            "train.cuda_graph must be false for fine-tuning, got true; set train.cuda_graph=false"
        )
    share = rank_share(config.finetune.batch_size, ranks, key="finetune.batch_size")
    asked = config.train.microbatch
    microbatch = share if asked == "auto" else require_divisor(asked, share)
    records, counts = labelled_records(store, task.target, task.select, task.fold)
    ranks.ask_main(lambda: store.check_digests(np.concatenate([records.train, records.valid])))
    initial = read_initial(task.init, config, task.model)
    preprocessing = Preprocessing.of(store, _normalisation(config, store, records, initial))
    require_same_preprocessing(initial, preprocessing, task.init)
    identity = _identity(task, config, store, records, ranks, checkpoint)
    if checkpoint is not None:
        run_folder.require_same(identity, checkpoint)
    if ranks.is_main:
        chosen = {k: identity[k] for k in ("precision", "attention_kernels", "model", "init")}
        run_folder.write_settings(out, config, {**chosen, "microbatch": microbatch})
    sweep = Sweep(
        config=config,
        ranks=ranks,
        out=out,
        store=store,
        records=records,
        initial=initial,
        meta=RunMeta(
            kind="finetune", identity=identity, microbatch=microbatch, preprocessing=preprocessing
        ),
        microbatch=microbatch,
    )
    taught = Register.of(store, {"train": records.train, "valid": records.valid})
    return sweep, with_encoder(taught, initial.register, initial.origin), counts


def _identity(
    task: _Task,
    config: Config,
    store: StoreReader,
    records: Labelled,
    ranks: Ranks,
    checkpoint: Checkpoint | None,
) -> dict[str, Any]:
    """What a resumed run must have in common with this one."""
    # normalisation over a batch has no bf16 form, and the baseline is small
    precision = "fp32" if task.model == "cnn" else resolve_precision(config, ranks)
    before = None if checkpoint is None else checkpoint.meta
    shapes = _shapes(config, task.model, precision)
    return {
        **flat(config),
        "store": store.identity,
        "select": task.select,
        "fold": task.fold,
        "target": task.target,
        "labels": records.digest,
        "init": initial_name(task.init),
        "model": task.model,
        "precision": precision,
        "attention_kernels": resolve_attention(config, shapes, ranks, before),
    }


def _shapes(config: Config, model: ModelKind, precision: Precision) -> dict[str, Shape]:
    if model == "cnn":
        return {}
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = shapes_of(config.model, num_keep=config.model.num_patches, dtype=dtype)
    return {"encoder": shapes["encoder"]}


def _normalisation(
    config: Config, store: StoreReader, records: Labelled, initial: Initial
) -> Normalisation:
    """With the statistics of the pretraining, where there was one: the weights know no others."""
    mode = config.data.normalise
    if mode != "cohort_lead":
        return Normalisation(mode=mode)
    kept = None if initial.preprocessing is None else initial.preprocessing.normalisation.cohort
    return Normalisation(mode=mode, cohort=kept or cohort_statistics(store, records.train))


def _write_result(
    sweep: Sweep, progress: Progress, register: Register, counts: dict[str, int]
) -> None:
    """Score the validation records with the kept weights, as any later test will."""
    config, out, valid = sweep.config, sweep.out, sweep.records.valid
    model = build_classifier(config, sweep.meta.model)
    model.load_state_dict(read_weights(out / WEIGHTS))
    normalisation = sweep.meta.preprocessing.normalisation
    scores = score_rows(model, sweep.store, valid, normalisation, name="validation")
    is_case = sweep.records.is_case[valid]
    write_register(out, with_validation(register, is_case.tolist(), scores))
    result = {
        **sweep.meta.as_facts(),
        "learning_rate": config.finetune.learning_rates[progress.best_trial],
        "epoch": progress.best_epoch,
        "val_loss": progress.best_loss,
        "val_auroc": progress.best_auroc,
        "counts": counts,
        "thresholds": {
            "youden": youden_threshold(is_case, scores),
            "sensitivity_90": sensitivity_threshold(is_case, scores, 0.9),
        },
    }
    files = entries(out, (WEIGHTS, REGISTER, METRICS))
    write_durably(out / RESULT, [sealed({**result, RUN_FILES: files})], again=RESUME)
