"""A masked autoencoder of 12 patches: training steps of a millisecond, and folders of its runs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgfast.config import Config, load_config
from ecgfast.data.batch import Batch
from ecgfast.data.loader import Loader, RankOrder
from ecgfast.data.normalise import Normalisation
from ecgfast.model.build import build_classifier, build_model
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.runs.digests import entries, export_safetensors, sealed
from ecgfast.runs.meta import Preprocessing, RunMeta, flat
from ecgfast.train.checkpoint import CheckpointWriter, training_state
from ecgfast.train.distributed import Ranks
from ecgfast.train.loop import Loop
from ecgfast.train.optim import MasterAdamW
from ecgfast.train.pretrain import build_spread, masked_loss
from ecgfast.train.run_folder import write_settings
from ecgfast.vocabulary import RunKind

NUM_RECORDS = 32
BATCH = 8


def toy_config(*settings: str) -> Config:
    small = ("width=16", "depth=1", "heads=2")
    parts = [f"model.{part}_{value}" for part in ("encoder", "decoder") for value in small]
    intervals = ["train.log_every=1", "train.checkpoint_every=5", f"train.batch_size={BATCH}"]
    return load_config(
        "vit_tiny", [*parts, "model.num_timesteps=250", *intervals, "optim.base_lr=0.03", *settings]
    )


class ToyEngine:
    """Noise of the record's number; from `broken_after` batches on, NaN.

    Args:
        broken: numbers of the batches, over all epochs, whose values are NaN.
    """

    def __init__(self, broken: range = range(0)) -> None:
        self._broken = broken
        self._count = 0

    def batches(self, schedule: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in schedule:
            patches = torch.stack([_patches(int(row)) for row in rows])
            if self._count in self._broken:
                patches[0] = float("nan")
            self._count += 1
            yield patches, torch.from_numpy(rows.copy())


def _patches(record: int) -> Tensor:
    generator = torch.Generator().manual_seed(record)
    patches = torch.randn(12, 256, generator=generator).half()
    patches[:, 250:] = 0
    return patches


def toy_loader(broken: range = range(0)) -> Loader:
    return Loader(ToyEngine(broken), RankOrder(index=np.arange(NUM_RECORDS), batch_size=BATCH))


def toy_batch() -> Batch:
    return next(iter(toy_loader()))


def toy_model(config: Config) -> MaskedAutoencoder:
    return build_model(config)


def toy_meta(kind: RunKind = "pretrain", **identity: object) -> RunMeta:
    """The meta of a run, with no more than a test needs."""
    made = Preprocessing(store={"window": "first", "short": "skip"}, normalisation=Normalisation())
    return RunMeta(kind=kind, identity=identity, preprocessing=made, microbatch=4)


def toy_loop(
    config: Config, run: Path, *, num_steps: int, broken: range = range(0), rate: float = 1e-3
) -> Loop:
    run.mkdir(exist_ok=True)
    ranks = Ranks()
    model, _ = build_spread(config, ranks, None)
    return Loop(
        ranks=ranks,
        run=run,
        train=config.train,
        model=model,
        optimizer=MasterAdamW(model, ranks, config.optim, clip_norm=config.train.clip_norm),
        loader=toy_loader(broken),
        loss_of=masked_loss(model, config),
        learning_rate_at=lambda step: rate,
        microbatch=4,
        steps_per_epoch=NUM_RECORDS // BATCH,
        num_steps=num_steps,
        meta=toy_meta(),
    )


def facts_of(config: Config, kind: str = "finetune") -> dict[str, Any]:
    """The meta of a run, with no more than it must have."""
    identity = {**flat(config), "store": "0123", "select": None}
    if kind == "finetune":
        identity |= {"target": "age<40", "init": "random", "model": "vit", "fold": None}
    made = {"window": "first", "short": "skip"}
    preprocessing = {"store": made, "normalise": config.data.normalise, "cohort": None}
    return {"kind": kind, "identity": identity, "preprocessing": preprocessing}


def classifier_run(run: Path, config: Config, facts: Mapping[str, Any] | None = None) -> Path:
    """A finished fine-tuning; `facts` are sealed with the digest of its weights."""
    run.mkdir(exist_ok=True)
    facts = facts or facts_of(config)
    state = build_classifier(config).state_dict()
    export_safetensors(state, run / "best.safetensors", config)
    write_settings(run, config, {})
    write_result(run, facts)
    return run


def write_result(run: Path, facts: Mapping[str, Any]) -> None:
    """Seal facts together with the weights that lie there."""
    files = {"run_files": entries(run, ("best.safetensors",))}
    (run / "result.json").write_bytes(sealed({**files, **facts}))


def pretraining_run(run: Path, config: Config, facts: Mapping[str, Any] | None = None) -> Path:
    """A pretraining of no step, with one checkpoint."""
    run.mkdir(exist_ok=True)
    write_settings(run, config, {})
    with CheckpointWriter(run, Ranks(), keep=1) as writer:
        state = training_state(build_model(config), None)
        writer.save(state, step=3, facts=facts or facts_of(config, "pretrain"))
    return run
