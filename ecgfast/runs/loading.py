"""Finished runs, read back: everything is checked against what the run says, nothing is run."""

import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ecgfast import log
from ecgfast.config import Config, config_from_dict
from ecgfast.errors import ConfigError, EcgfastError, FormatError, ResumeError
from ecgfast.model.build import build_classifier, build_model
from ecgfast.model.cnn import NUM_FEATURES, SPATIAL_FILTERS, WANG_STRIDES
from ecgfast.runs.checkpoint_reader import Checkpoint, load_weights, newest
from ecgfast.runs.digests import (
    METRICS,
    RUN_FILES,
    Facts,
    LaterFormatError,
    is_sealed,
    problem,
    read_facts,
    read_small,
    read_weights,
)
from ecgfast.runs.inference import score_rows
from ecgfast.runs.meta import RunMeta, contradictions, flat
from ecgfast.runs.register import FILE as REGISTER
from ecgfast.runs.register import Register, read_register
from ecgfast.settings import ModelConfig
from ecgfast.store.reader import StoreReader

Model = TypeVar("Model", bound=nn.Module)
Curve = tuple[list[float], list[float]]  # steps and values
WEIGHTS = "best.safetensors"
RESULT = "result.json"
_LOSS_NAMES = {"loss": "training", "val_loss": "held out"}


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A finished run.

    Attributes:
        name: unique in a report, such as "ViT, pretrained".
        path: its folder.
        model: loads its weights, on the CPU and in evaluation mode; a report has many runs, whose
            weights are in memory one after the other.
        config: resolved settings.
        meta: what it says about its data and origin.
        register: whom it learned from and read; None for a pretraining run of an earlier version.
        scores: (N,) float64 that it gave the records of a store before; None: it is asked.
        device: that scores records; None takes a GPU where there is one.
    """

    name: str
    path: Path
    model: Callable[[], nn.Module]
    config: Config
    meta: RunMeta
    register: Register | None
    scores: NDArray[np.float64] | None = None
    device: torch.device | None = None

    def probabilities(self, store: StoreReader, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Predict what a classifier's task has of records of a store.

        Args:
            store: an open store, preprocessed as the run's.
            rows: (n,) int64 rows.
        Returns:
            (n,) float64, or (n, K) of several outputs: probabilities, or numbers in the unit of
            the target.
        """
        if self.scores is not None:
            return self.scores[rows]
        normalisation = self.meta.preprocessing.normalisation
        return score_rows(
            self.model(),
            store,
            rows,
            normalisation,
            meaning=self.meta.task.predictions,
            name=self.name,
            device=self.device,
        )

    def loss_curves(self) -> dict[str, Curve]:
        """Loss over steps, as ``metrics.jsonl`` has it.

        Raises:
            ResumeError: the file is not what the run wrote.
        """
        written = self.meta.run_files.get(METRICS)
        if written is not None:
            grows = self.meta.kind == "pretrain"  # lines may follow the last checkpoint
            if why := problem(self.path, METRICS, written, grows=grows):
                raise ResumeError(f"run {self.path} is damaged: {why}; restore it from a copy")
        rows = log.read_metrics(self.path)
        curves: dict[str, Curve] = {}
        for key, name in _LOSS_NAMES.items():
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                curves[name] = ([p[0] for p in points], [p[1] for p in points])
        return curves


def load_run(path: Path, store: StoreReader, device: torch.device | None = None) -> LoadedRun:
    """Load a finished run for use on a store: all but its weights, whose digest is compared.

    Args:
        path: its folder.
        store: that it will be used on.
        device: that scores records; None takes a GPU where there is one.
    Raises:
        ConfigError: the store's signals were preprocessed in another way than the run's, or a
            classifier does not say whom it learned from.
        ResumeError: no finished run, or a damaged one.
    """
    load, config, meta = _described(path)
    register = read_register(path)
    if meta.kind == "finetune" and register is None:
        raise ConfigError(
            f"run {path} has no {REGISTER}: an earlier version trained it and did not record which "
            "patients it learned from, so that these could be tested; fine-tune again"
        )
    theirs, ours = meta.preprocessing.store, store.manifest["preprocessing"]
    if theirs != ours:
        differing = sorted(k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k))
        words = ", ".join(
            f"{name} {theirs.get(name)!r} in training, {ours.get(name)!r} in {store.path.name}"
            for name in differing
        )
        raise ConfigError(
            f"run {path} does not fit store {store.path}: {words}; convert the store with the "
            "run's options"
        )
    return LoadedRun(
        name=meta.name,
        path=path,
        model=load,
        config=config,
        meta=meta,
        register=register,
        device=device,
    )


def name_runs(runs: Sequence[LoadedRun]) -> list[LoadedRun]:
    """Make names unique: runs of one kind get their folder's name behind."""
    count = Counter(run.name for run in runs)
    return [
        run if count[run.name] == 1 else replace(run, name=f"{run.name} ({run.path.name})")
        for run in runs
    ]


def load_model(run: Path) -> tuple[nn.Module, Config, RunMeta]:
    """Load what a run has learned, on the CPU in fp32.

    Args:
        run: of `pretrain`, finished or not, or of a finished `finetune`.
    Returns:
        the model (`MaskedAutoencoder` or `Classifier`) in evaluation mode; the run's settings;
        what the run says about itself.
    Raises:
        ResumeError: no run, one without a checkpoint, or a damaged one.
        EcgfastError: memory ran out.
    """
    load, config, meta = _described(run)
    return load(), config, meta


def _described(run: Path) -> tuple[Callable[[], nn.Module], Config, RunMeta]:
    """What loads the weights of a run, whose digests are compared here; settings and facts."""
    if not (run / "config.toml").is_file():
        raise ResumeError(
            f"{run} is not the folder of a run: it has no config.toml; check the path"
        )
    weights, config, meta = _classifier(run) if (run / RESULT).exists() else _autoencoder(run)

    def load() -> nn.Module:
        try:
            return weights().eval()
        except MemoryError as error:
            raise EcgfastError(
                f"memory ran out while loading {run}; close other programs, or take a larger "
                "machine"
            ) from error

    return load, config, meta


def _classifier(run: Path) -> tuple[Callable[[], nn.Module], Config, RunMeta]:
    where = run / RESULT
    try:
        facts = read_facts(where)
    except LaterFormatError:
        raise
    except ResumeError as error:
        raise ResumeError(f"{error}; restore it from a copy, or fine-tune again") from error
    meta = RunMeta.from_facts(facts, where)
    if not is_sealed(facts):
        log.warning(
            f"{where} was written by an earlier version and has no digests: damage to the run's "
            "weights would not be noticed"
        )
    config = _settings(run, meta, where)
    _require_written(run, facts, where, WEIGHTS)
    return partial(_best_weights, run, config, len(meta.task.outputs), where), config, meta


def _best_weights(run: Path, config: Config, num_outputs: int, where: Path) -> nn.Module:
    """The classifier of a finished fine-tuning."""
    _require_plausible_size(config, config.model.kind, (run / WEIGHTS).stat().st_size, where)
    model = _built(lambda: build_classifier(config, num_outputs=num_outputs), where)
    try:
        model.load_state_dict(read_weights(run / WEIGHTS))
    except FormatError as error:
        raise ResumeError(str(error)) from error
    except RuntimeError as error:  # other names or shapes than the model's
        raise ResumeError(
            f"weights {run / WEIGHTS} do not fit the model of config.toml; restore both from a copy"
        ) from error
    return model


def _autoencoder(run: Path) -> tuple[Callable[[], nn.Module], Config, RunMeta]:
    checkpoint = newest(run)
    if checkpoint is None or checkpoint.facts["kind"] != "pretrain":
        raise ResumeError(
            f"{run} has nothing to load: no finished fine-tuning and no pretraining checkpoint; "
            "run its command again with --resume"
        )
    where = checkpoint.path / "meta.json"
    config = _settings(run, checkpoint.meta, where)
    _require_written(run, checkpoint.facts, where)
    return partial(_newest_weights, checkpoint, config, where), config, checkpoint.meta


def _newest_weights(checkpoint: Checkpoint, config: Config, where: Path) -> nn.Module:
    """The autoencoder of a pretraining's newest checkpoint."""
    num_bytes = sum(entry["bytes"] for entry in checkpoint.facts["files"].values())
    _require_plausible_size(config, "autoencoder", num_bytes, where)
    model = _built(lambda: build_model(config), where)
    load_weights(checkpoint, model)
    return model


def _built(build: Callable[[], Model], where: Path) -> Model:
    try:
        return build()
    except (ValueError, ArithmeticError, RuntimeError) as error:  # heads that no width holds ...
        raise ResumeError(f"{where} describes no model: {error}; restore it from a copy") from error


def _require_written(run: Path, facts: Facts, where: Path, *needed: str) -> None:
    """Refuse files of a run that are not those that it wrote.

    Args:
        run: its folder.
        facts: of the run; those of format 2 have no digests to compare.
        where: their file.
        needed: files that it must have digests of.
    """
    if not is_sealed(facts):
        return
    written = facts.get(RUN_FILES)
    if not isinstance(written, dict):
        raise ResumeError(f"{where} is damaged: it has no {RUN_FILES}; restore it from a copy")
    for name in {*needed, *({REGISTER} & written.keys())}:
        why = problem(run, name, written.get(name))
        if why is not None:
            raise ResumeError(
                f"run {run} is damaged, or holds a file of another run: {why}; restore it from a "
                "copy, or train again"
            )


def _settings(run: Path, meta: RunMeta, where: Path) -> Config:
    """The settings that the run was trained with; config.toml shows them and must not differ."""
    path, config = run / "config.toml", meta.config(where)
    try:
        shown = config_from_dict(tomllib.loads(read_small(path).decode()))
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or no settings of ours
        raise ResumeError(f"{path} is damaged: {error}; restore it from a copy") from error
    differing = contradictions(flat(shown), flat(config), kind=meta.kind, where=where.name)
    if differing:
        raise ResumeError(
            f"{path} is not what the run was trained with: {'; '.join(differing)}; restore it "
            "from a copy"
        )
    return config


def _require_plausible_size(config: Config, kind: str, num_bytes: int, where: Path) -> None:
    """Refuse settings whose model has more weights than the run's files could hold.

    A model is built before its weights are read: a width of a billion would take all memory.
    """
    least = 4 * _least_weights(config.model, kind)
    if least > num_bytes:
        raise ResumeError(
            f"{where} describes a model of at least {least:,} bytes, its weights have "
            f"{num_bytes:,}; restore both from a copy"
        )


def _least_weights(model: ModelConfig, kind: str) -> int:
    """Lower bound of a model's weights: its largest matrices and its positions."""
    if kind == "cnn":
        return SPATIAL_FILTERS * (NUM_FEATURES * (model.num_timesteps // 256) + model.num_leads)
    if kind == "resnet1d_wang":
        return len(WANG_STRIDES) * 8 * model.filters**2  # kernels of 5 and 3 in each block

    def transformer(depth: int, width: int) -> int:
        return (12 * depth * width + model.num_patches) * width

    encoder = transformer(model.encoder_depth, model.encoder_width)
    if kind == "vit":
        return encoder
    return encoder + transformer(model.decoder_depth, model.decoder_width)
