"""Masked autoencoder pretraining, from a store to a run folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from ecgfast_kernels.codec import PATCH_WIDTH
from ecgfast_kernels.ops.masking import random_mask
from torch import Tensor, nn

from ecgfast import log
from ecgfast.config import Config, Overrides, load_config
from ecgfast.data.batch import Batch
from ecgfast.data.normalise import Normalisation, cohort_statistics
from ecgfast.labels.selection import digest_of
from ecgfast.model.attention_choice import shapes_of
from ecgfast.model.build import build_model
from ecgfast.model.mae import EVALUATION_EPOCH, MaskedAutoencoder, flops_per_record, num_kept
from ecgfast.runs.digests import export_safetensors, problem
from ecgfast.runs.meta import Preprocessing, RunMeta, flat
from ecgfast.runs.register import FILE as REGISTER
from ecgfast.runs.register import Register, write_register
from ecgfast.store.format import refuse_inside_store
from ecgfast.train import run_folder
from ecgfast.train.dataset import open_loader, pretraining_rows, split_heldout, without_splits
from ecgfast.train.distributed import Ranks, full_state, spread
from ecgfast.train.guards import clear_errors
from ecgfast.train.loop import Loop, LossOf
from ecgfast.train.microbatch import (
    MicrobatchGraph,
    choose_microbatch,
    rank_share,
    require_graphable,
)
from ecgfast.train.optim import MasterAdamW, learning_rate
from ecgfast.train.run_folder import (
    Session,
    resolve_attention,
    resolve_compile,
    resolve_precision,
)
from ecgfast.train.validation import Probe, heldout_validation


def pretrain(
    store: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    preset: str | Path | Config | None = None,
    settings: Overrides = (),
    select: str | None = None,
    include_test: bool = False,
    assume_distinct_patients: bool = False,
    resume: bool = False,
    device: str | None = None,
) -> Path:
    """Train a masked autoencoder on the selected records; under torchrun, on all ranks.

    Args:
        store: a finished store, or several: their records are read as those of one, with the
            column `store`, which selections may name.
        out: the run's folder, created.
        preset: the name of a preset, a TOML file, or settings; None is "vit_large" on a GPU and
            "demo" on a CPU.
        settings: changes of it, such as ``{"train.epochs": 2}``; see docs/training.md.
        select: an expression such as ``site=1``; None takes every record.
        include_test: read the test patients too, without labels, as the study does; reports say so.
        assume_distinct_patients: stores with different pseudonym keys have no patient in common.
        resume: resume the run in `out`; start it if there is none.
        device: "cpu" or "cuda"; by default a GPU where there is one.
    Returns:
        `out`, with config.toml, metrics.jsonl, checkpoints/, versions.json, register.parquet and,
        at the end, model.safetensors.
    Raises:
        ConfigError: settings that do not fit each other, the ranks or the store.
        ResumeError: `out` is not empty, or belongs to another run.
        EcgfastError: another process trains in `out`, memory or disk ran out, or the loss was lost
            for good.
    """
    preset = run_folder.default_preset(device) if preset is None else preset
    config, out, distinct = load_config(preset, settings), Path(out), assume_distinct_patients
    refuse_inside_store(out, "--out")
    with run_folder.session(
        config, store, out, resume=resume, device=device, distinct_patients=distinct
    ) as session:
        loop = _prepare(session, select=select, include_test=include_test, distinct=distinct)
        with clear_errors(out, session.ranks, microbatch=loop.microbatch):
            if loop.run_to_end(session.stop):
                weights = full_state(loop.model)
                if session.ranks.is_main:
                    export_safetensors(weights, out / "model.safetensors", config)
    return out


def masked_loss(model: nn.Module, config: Config) -> LossOf:
    """Return the loss of some records under the masks of (seed, epoch, record).

    Args:
        model: a `MaskedAutoencoder`, spread or not.
        config: its settings.
    """
    inputs_of = model_inputs(config)

    def loss_of(batch: Batch) -> Tensor:
        loss: Tensor = model(*inputs_of(batch))[0]
        return loss

    return loss_of


def model_inputs(
    config: Config, *, epoch: int | None = None
) -> Callable[[Batch], tuple[Tensor, ...]]:
    """Return what turns records into the arguments of a masked autoencoder.

    Args:
        config: its settings.
        epoch: of the masks; None takes the batch's own.
    """
    seed, num_patches = config.train.seed, config.model.num_patches
    num_keep = num_kept(num_patches, config.mask.ratio)

    def inputs_of(batch: Batch) -> tuple[Tensor, ...]:
        masks = random_mask(
            batch.record_index,
            seed=seed,
            epoch=batch.epoch if epoch is None else epoch,
            num_patches=num_patches,
            num_keep=num_keep,
            backend=config.kernels,
        )
        return batch.patches, *masks

    return inputs_of


def microbatch_graph(
    model: MaskedAutoencoder, config: Config, *, num_pieces: int
) -> MicrobatchGraph | None:
    """Return what replays `masked_loss` and its gradients, None unless `train.cuda_graph`."""
    if not config.train.cuda_graph:
        return None
    return MicrobatchGraph(
        model,
        model_inputs(config),
        lambda *inputs: model(*inputs)[0],
        num_pieces=num_pieces,
    )


def _prepare(session: Session, *, select: str | None, include_test: bool, distinct: bool) -> Loop:
    config, store, out, ranks = session.config, session.store, session.run, session.ranks
    train, before = config.train, session.before
    share = rank_share(train.batch_size, ranks)
    chosen_rows = pretraining_rows(store, select, include_test=include_test)
    rows, held = split_heldout(store, chosen_rows, fraction=train.val_fraction, seed=train.seed)
    ranks.ask_main(lambda: store.check_digests(np.concatenate([rows, held])))
    cohort = None
    if config.data.normalise == "cohort_lead":
        cohort = cohort_statistics(store, without_splits(store, rows, "valid", "test"))
    data = config.data
    normalisation = Normalisation(mode=data.normalise, cohort=cohort, leads=data.leads)
    loader = open_loader(
        store, config, ranks, rows, batch_size=share, seed=train.seed, normalisation=normalisation
    )
    model, identity = build_spread(config, ranks, before)
    chosen = dict(identity)
    identity |= {
        **flat(config),
        "store": store.identity,
        "select": select,
        "records": digest_of(rows, held),  # new labels may have changed what `select` means
        **({"include_test": True} if include_test else {}),
        **({"assume_distinct_patients": True} if distinct else {}),
    }
    if session.checkpoint is not None:
        run_folder.require_same(identity, session.checkpoint)
    optimizer = MasterAdamW(
        model, ranks, config.optim, clip_norm=train.clip_norm, recorded=train.cuda_graph
    )
    microbatch = choose_microbatch(
        train.microbatch,
        share,
        ranks,
        before=None if before is None else before.microbatch,
        probe=memory_probe(model, optimizer, config, ranks),
    )
    steps_per_epoch = len(loader)
    loop = Loop(
        ranks=ranks,
        run=out,
        train=train,
        model=model,
        optimizer=optimizer,
        loader=loader,
        loss_of=masked_loss(model, config),
        learning_rate_at=_schedule(config, steps_per_epoch),
        microbatch=microbatch,
        steps_per_epoch=steps_per_epoch,
        num_steps=_num_steps(config, steps_per_epoch),
        meta=RunMeta(
            kind="pretrain",
            identity=identity,
            microbatch=microbatch,
            preprocessing=Preprocessing.of(store, normalisation),
        ),
        flops_per_record=flops_per_record(config.model, config.mask.ratio),
        validation=heldout_validation(
            model,
            store,
            config,
            ranks,
            held,
            normalisation,
            microbatch=microbatch,
            inputs_of=model_inputs(config, epoch=EVALUATION_EPOCH),
        ),
        probe=None
        if train.probe is None
        else Probe(
            model,
            train.probe,
            store,
            config,
            ranks,
            select,
            batch_size=microbatch,
            normalisation=normalisation,
        ),
        engine=config.data.engine,
        graph=microbatch_graph(model, config, num_pieces=share // microbatch),
    )
    if ranks.is_main:
        run_folder.write_settings(out, config, {**chosen, "microbatch": microbatch})
        written = {} if before is None else before.run_files
        if problem(out, REGISTER, written.get(REGISTER)):  # else its digest stays that of then
            write_register(out, Register.of(store, {"pretrain": rows, "heldout": held}))
        log.info(
            f"{len(rows)} records, {len(held)} held out; {steps_per_epoch} steps per epoch, "
            f"{loop.num_steps} steps in all; {ranks.world_size} x {ranks.device.type}, "
            f"{identity['precision']}, microbatch {microbatch} of {share}"
        )
    if session.checkpoint is not None:
        loop.resume(session.checkpoint)
    return loop


def _num_steps(config: Config, steps_per_epoch: int) -> int:
    """Steps of all epochs, or `train.max_steps` where these are fewer."""
    steps, most = config.train.epochs * steps_per_epoch, config.train.max_steps
    return steps if most is None else min(steps, most)


def _schedule(config: Config, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the learning rate of the step after so many updates.

    Source: Goyal et al. 2017, section 2.1, for the scaling by batch size.
    """
    optim = config.optim
    return lambda step: learning_rate(
        step,
        peak=optim.base_lr * config.train.batch_size / 256,
        warmup_epochs=optim.warmup_epochs,
        epochs=config.train.epochs,
        steps_per_epoch=steps_per_epoch,
        min_lr=optim.min_lr,
    )


def build_spread(
    config: Config, ranks: Ranks, before: RunMeta | None
) -> tuple[MaskedAutoencoder, dict[str, object]]:
    """Build the model of a run and spread it over the ranks.

    Args:
        config: resolved settings.
        ranks: who shares it.
        before: of the run that is resumed, whose attention kernels stay; None at the start.
    Returns:
        the model, and what was chosen for it: "precision", "attention_kernels".
    Raises:
        ConfigError: `train.cuda_graph` where no graph can be recorded.
    """
    precision = resolve_precision(config, ranks)
    if config.train.cuda_graph:
        require_graphable(ranks, precision)
    model = build_model(config)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    num_keep = num_kept(config.model.num_patches, config.mask.ratio)
    shapes = shapes_of(config.model, num_keep=num_keep, dtype=dtype)
    kernels = resolve_attention(config, shapes, ranks, before)
    model.set_attention(**kernels)
    spread(
        model,
        ranks,
        precision=precision,
        compile_blocks=resolve_compile(config, ranks),
        parallel=config.train.parallel,
    )
    return model, {"precision": precision, "attention_kernels": kernels}


def memory_probe(
    model: MaskedAutoencoder, optimizer: MasterAdamW, config: Config, ranks: Ranks
) -> Callable[[int], None]:
    """Return what `choose_microbatch` calls: forward and backward over random records."""
    loss_of = masked_loss(model, config)

    def probe(num_records: int) -> None:
        patches = torch.randn(
            num_records, config.model.num_patches, PATCH_WIDTH, device=ranks.device
        )
        index = torch.arange(num_records, device=ranks.device)
        batch = Batch(patches=patches.half(), record_index=index, epoch=0)
        loss_of(batch).backward()
        optimizer.zero_grad()

    return probe
