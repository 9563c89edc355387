"""Checkpoints on the disk: which one is whole, its weights, and the model of a run with them.

``RUN/checkpoints/step-00001000/`` holds PyTorch's distributed checkpoint and ``meta.json``; a
folder of that name is complete (see `ecgfast.train.checkpoint`, which writes it).
"""

import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from ecgfast import log
from ecgfast.config import Config
from ecgfast.errors import FormatError, ResumeError
from ecgfast.model.build import build_classifier, build_model
from ecgfast.model.cnn import NUM_FEATURES, SPATIAL_FILTERS, WANG_STRIDES
from ecgfast.runs.checkpoint_index import IndexedReader, IndexFormatError, read_index
from ecgfast.runs.digests import (
    Facts,
    LaterFormatError,
    entries,
    is_sealed,
    problem,
    read_facts,
    read_small,
    read_weights,
)
from ecgfast.runs.meta import RunMeta
from ecgfast.settings import ModelConfig

INDEX = ".metadata"  # PyTorch's: which tensor lies where
_NAME = re.compile(r"step-([1-9][0-9]{8,}|[0-9]{8})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on the disk.

    Attributes:
        path: its folder.
        step: updates done.
        facts: content of its meta.json: `meta`, and where training stood.
        index: which tensor lies where.
    """

    path: Path
    step: int
    facts: Facts
    index: Metadata

    @cached_property
    def meta(self) -> RunMeta:
        """What the run says about itself.

        Raises:
            ResumeError: meta.json lacks some of it.
        """
        return RunMeta.from_facts(self.facts, self.path / "meta.json")


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of a run's whole checkpoints, ascending."""
    return sorted(int(match[1]) for name in _names(run) if (match := _NAME.fullmatch(name)))


def _names(run: Path) -> list[str]:
    folder = run / "checkpoints"
    return [p.name for p in folder.iterdir()] if folder.is_dir() else []


def newest(run: Path) -> Checkpoint | None:
    """Return a run's newest checkpoint that is whole and as it was written, or None.

    A damaged one, or one with another name, is passed over with a warning.

    Raises:
        ResumeError: there are checkpoints, all damaged; or one of a later version.
    """
    damaged = [
        f"{run / 'checkpoints' / name} is not called as a checkpoint is (step- and 8 digits)"
        for name in sorted(_names(run))
        if name.startswith("step-") and not _NAME.fullmatch(name)
    ]
    for step in reversed(checkpoint_steps(run)):
        path = run / "checkpoints" / f"step-{step:08d}"
        try:
            found = _whole(path, step)
        except _DamagedError as error:
            damaged.append(str(error))
            continue
        for text in damaged:
            log.warning(f"{text}; {path} is taken instead")
        if not is_sealed(found.facts):
            log.warning(
                f"{path} was written by an earlier version and has no digests: damage to its "
                "tensors would not be noticed; a run that is resumed writes checkpoints that have"
            )
        return found
    if damaged:
        raise ResumeError(
            f"{damaged[0]}; no other one is left: restore it from a copy, or start again in "
            "another folder"
        )
    return None


class _DamagedError(Exception):
    """What is wrong with a checkpoint, so that the one before is taken."""


def _whole(path: Path, step: int) -> Checkpoint:
    """Check everything that a checkpoint consists of; nothing of it is run."""
    try:
        facts = read_facts(path / "meta.json")
    except LaterFormatError:
        raise
    except ResumeError as error:
        raise _DamagedError(_unreadable(path, str(error))) from error
    missing = {"kind", "identity", "format", "files"} - set(facts)
    if missing:
        why = f"meta.json has no {', '.join(sorted(missing))}"
        raise _DamagedError(_unreadable(path, why))
    if facts.get("step", step) != step:
        raise _DamagedError(_unreadable(path, f"meta.json is of step {facts['step']!r:.20}"))
    if not isinstance(facts["files"], dict) or INDEX not in facts["files"]:
        raise _DamagedError(_unreadable(path, f"meta.json does not name {INDEX}"))
    if not is_sealed(facts):
        facts = _of_format_2(path, facts)
    for name, entry in facts["files"].items():
        differs = problem(path, name, entry)
        if differs is not None:
            raise _DamagedError(_unreadable(path, differs))
    try:
        sizes = {name: entry["bytes"] for name, entry in facts["files"].items()}
        index = read_index(read_small(path / INDEX), sizes)
    except (IndexFormatError, ResumeError) as error:
        raise _DamagedError(_unreadable(path, str(error))) from error
    return Checkpoint(path=path, step=step, facts=facts, index=index)


def _of_format_2(path: Path, facts: Facts) -> Facts:
    """Check the sizes that format 2 has instead of digests; give entries of now for the rest."""
    now = entries(path, facts["files"])
    if facts["files"] != {name: entry["bytes"] for name, entry in now.items()}:
        why = "a file has another size than when it was written"
        raise _DamagedError(_unreadable(path, why))
    if now[INDEX]["sha256"] != facts.get("index_sha256"):
        raise _DamagedError(_unreadable(path, f"{INDEX} is not what was written"))
    return {**facts, "files": now}


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Fill an unsharded CPU model with a checkpoint's weights, in one process.

    Raises:
        ResumeError: the checkpoint is damaged or belongs to another model.
    """
    state = {f"model.{n}": torch.empty_like(t) for n, t in model.state_dict().items()}
    read_tensors(checkpoint, state, no_dist=True)
    model.load_state_dict({n.removeprefix("model."): t for n, t in state.items()})


def read_tensors(
    checkpoint: Checkpoint, state: dict[str, Tensor], *, no_dist: bool = False
) -> None:
    """Fill tensors in place; collective unless `no_dist`.

    Args:
        checkpoint: from `newest`.
        state: CPU tensors by their names in the checkpoint.
        no_dist: in one process, whatever world it is part of.
    Raises:
        ResumeError: the checkpoint is damaged or belongs to another model.
    """
    ignore_single_process_warning()
    reader = IndexedReader(str(checkpoint.path), checkpoint.index)
    try:
        dcp_load(state, storage_reader=reader, no_dist=no_dist)
    except (CheckpointException, OSError, RuntimeError, ValueError, pickle.PickleError) as error:
        why = _unreadable(checkpoint.path, first_line(error))
        raise ResumeError(f"{why}; delete it to go on from the one before") from error


def first_line(error: BaseException) -> str:
    """First line of what an error says; its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _unreadable(path: Path, why: str) -> str:
    return f"checkpoint {path} cannot be read: {why}"


def ignore_single_process_warning() -> None:
    """Silence PyTorch where one process saves and loads; not thread-safe, as all filters."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def weights_of_file(path: Path, meta: RunMeta, config: Config, where: Path) -> nn.Module:
    """The model whose weights a file holds.

    Args:
        path: a safetensors file.
        meta: of the run, which trained a classifier or a masked autoencoder.
        config: its settings.
        where: they stand, for messages.
    Raises:
        ResumeError: the file is damaged, or holds the weights of another model.
    """
    is_classifier = meta.kind == "finetune"
    what = config.model.kind if is_classifier else "autoencoder"
    _require_plausible_size(config, what, path.stat().st_size, where)
    build: Callable[[Config], nn.Module] = build_model
    if is_classifier:
        build = partial(build_classifier, num_outputs=len(meta.task.outputs))
    model = _built(build, config, where)
    try:
        model.load_state_dict(read_weights(path))
    except FormatError as error:
        raise ResumeError(str(error)) from error
    except RuntimeError as error:  # other names or shapes than the model's
        raise ResumeError(
            f"weights {path} do not fit the model of {where.name}; restore both from a copy"
        ) from error
    return model


def weights_of_checkpoint(checkpoint: Checkpoint, config: Config, where: Path) -> nn.Module:
    """The autoencoder of a pretraining's checkpoint; arguments as for `weights_of_file`."""
    num_bytes = sum(entry["bytes"] for entry in checkpoint.facts["files"].values())
    _require_plausible_size(config, "autoencoder", num_bytes, where)
    model = _built(build_model, config, where)
    load_weights(checkpoint, model)
    return model


def _built(build: Callable[[Config], nn.Module], config: Config, where: Path) -> nn.Module:
    try:
        return build(config)
    except (ValueError, ArithmeticError, RuntimeError) as error:  # heads that no width holds ...
        raise ResumeError(f"{where} describes no model: {error}; restore it from a copy") from error


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
