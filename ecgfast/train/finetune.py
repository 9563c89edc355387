"""Supervised training of a classifier, from a store to a run folder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgfast.config import Config
from ecgfast.data.normalise import Normalisation, cohort_statistics
from ecgfast.errors import ConfigError
from ecgfast.labels.selection import Labelled
from ecgfast.model.attention_choice import Shape, shapes_of
from ecgfast.runs.checkpoint import Checkpoint
from ecgfast.runs.meta import Preprocessing, RunMeta, flat
from ecgfast.runs.register import Register, with_encoder
from ecgfast.store.reader import StoreReader
from ecgfast.train import run_folder, setup
from ecgfast.train.distributed import Ranks, join
from ecgfast.train.guards import clear_errors
from ecgfast.train.initial import (
    Initial,
    initial_name,
    read_initial,
    require_same_preprocessing,
)
from ecgfast.train.labelled import labelled_records
from ecgfast.train.microbatch import require_divisor
from ecgfast.train.signals import StopSignals
from ecgfast.train.sweep import Sweep
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
        resume: resume after the last whole epoch; an empty folder starts a new run.
        device: "cpu" or "cuda"; by default a GPU where there is one.
    Returns:
        `out`, with best.safetensors, result.json and register.parquet besides what every run holds.
    Raises:
        ConfigError: settings, labels or initial weights do not fit each other.
        ResumeError: `out` is not empty, or belongs to another run.
        EcgfastError: another process trains in `out`, or memory or disk ran out.
    """
    setup.make_repeatable(config.train.deterministic)
    with join(device) as ranks, StopSignals(ranks) as stop:
        opened = setup.open_matching_store(Path(store), config)
        with run_folder.enter(out, ranks, resume=resume) as checkpoint:
            sweep = _prepare(
                config, opened, out, ranks, checkpoint, init, model, target, select, fold
            )
            with clear_errors(out, ranks, microbatch=sweep.microbatch):
                sweep.run(stop, checkpoint)
    stop.end_process()
    return out


def _prepare(
    config: Config,
    store: StoreReader,
    out: Path,
    ranks: Ranks,
    checkpoint: Checkpoint | None,
    init: str,
    model: ModelKind,
    target: str,
    select: str | None,
    fold: int | None,
) -> Sweep:
    if config.train.cuda_graph:
        raise ConfigError(
            "train.cuda_graph must be false for fine-tuning, got true; set train.cuda_graph=false"
        )
    share = setup.rank_share(config.finetune.batch_size, ranks, key="finetune.batch_size")
    asked = config.train.microbatch
    microbatch = share if asked == "auto" else require_divisor(asked, share)
    records, counts = labelled_records(store, target, select, fold)
    setup.check_digests(store, np.concatenate([records.train, records.valid]), ranks)
    initial = read_initial(init, config, model)
    normalisation = _normalisation(config, store, records, initial)
    preprocessing = Preprocessing.of(store, normalisation)
    before = None if checkpoint is None else checkpoint.meta
    require_same_preprocessing(initial, preprocessing, init)
    # normalisation over a batch has no bf16 form, and the baseline is small
    precision = "fp32" if model == "cnn" else setup.resolve_precision(config, ranks)
    identity: dict[str, Any] = {
        **flat(config),
        "store": store.identity,
        "select": select,
        "fold": fold,
        "target": target,
        "labels": records.digest,
        "init": initial_name(init),
        "model": model,
        "precision": precision,
        "attention_kernels": setup.settle_attention(
            config, _shapes(config, model, precision), ranks, before
        ),
    }
    if checkpoint is not None:
        run_folder.require_same(identity, checkpoint)
    if ranks.is_main:
        chosen = {k: identity[k] for k in ("precision", "attention_kernels", "model", "init")}
        run_folder.write_settings(out, config, {**chosen, "microbatch": microbatch})
    meta = RunMeta(
        kind="finetune", identity=identity, microbatch=microbatch, preprocessing=preprocessing
    )
    return Sweep(
        config=config,
        ranks=ranks,
        out=out,
        store=store,
        records=records,
        counts=counts,
        initial=initial,
        meta=meta,
        register=with_encoder(
            Register.of(store, {"train": records.train, "valid": records.valid}),
            initial.register,
            initial.origin,
        ),
        microbatch=microbatch,
    )


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
