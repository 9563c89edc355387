"""Checkpoints: what they hold, and how they are read back, on any number of ranks.

``RUN/checkpoints/step-00001000/`` holds PyTorch's distributed checkpoint and ``meta.json``; a
folder of that name is whole (see `checkpoint_writer`).
"""

import hashlib
import json
import pickle
import re
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.tensor import DTensor

from ecgfast.config import Config, config_from_dict
from ecgfast.errors import ResumeError
from ecgfast.model.build import build_classifier, build_model
from ecgfast.train.distributed import Ranks, local, master
from ecgfast.train.optim import MasterAdamW
from ecgfast.train.weights import read_weights

FORMAT = 2
AGAIN = "run the same command with --resume"
INDEX = ".metadata"  # PyTorch's: which tensor lies where. A pickle: nothing else is ever unpickled
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on the disk.

    Attributes:
        path: its folder.
        step: updates done.
        meta: what the run depends on, and where it stood.
    """

    path: Path
    step: int
    meta: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One tensor of the training state.

    Attributes:
        live: this rank's part, read when saving and written when loading.
        source: the whole as the model knows it; a DTensor tells how it is sharded.
    """

    live: Tensor
    source: Tensor


State = dict[str, Slot]


def training_state(model: nn.Module, optimizer: MasterAdamW | None) -> State:
    """Name every tensor that a run needs to go on; call it while the model is sharded.

    Args:
        model: spread over the ranks.
        optimizer: None to leave its moments out.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    whole = {f"model.{n}": master(t) for n, t in named}  # fp32, also behind bf16 copies
    state = {n: Slot(live=local(t.detach()), source=t) for n, t in whole.items()}
    if optimizer is not None:
        for name, source, live in optimizer.tensors():
            state[f"optimizer.{name}"] = Slot(live=live, source=source)
        count = optimizer.num_updates
        state["optimizer.num_updates"] = Slot(live=count, source=count)
    return state


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of a run's whole checkpoints, ascending."""
    folder = run / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def newest(run: Path) -> Checkpoint | None:
    """Return a run's newest whole checkpoint, or None.

    Raises:
        ResumeError: it is damaged.
    """
    steps = checkpoint_steps(run)
    if not steps:
        return None
    path = run / "checkpoints" / f"step-{steps[-1]:08d}"
    try:
        meta: dict[str, Any] = json.loads((path / "meta.json").read_bytes())
        sizes = {name: (path / name).stat().st_size for name in meta["files"]}
        missing = {"kind", "identity", "format"} - set(meta)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(_damaged(path, str(error))) from error
    if missing:
        raise ResumeError(_damaged(path, f"meta.json has no {', '.join(sorted(missing))}"))
    if sizes != meta["files"]:
        raise ResumeError(_damaged(path, "a file has another size than when it was written"))
    if meta["format"] != FORMAT:
        raise ResumeError(
            f"{path} has format {meta['format']}, this ecgfast reads {FORMAT}; "
            "resume with the version that wrote it (see versions.json)"
        )
    if digest(path / INDEX) != meta["index_sha256"]:
        raise ResumeError(_damaged(path, f"{INDEX} is not what was written"))
    return Checkpoint(path=path, step=steps[-1], meta=meta)


def load(checkpoint: Checkpoint, state: State, ranks: Ranks, optimizer: MasterAdamW | None) -> None:
    """Fill a training state in place; the checkpoint may come from another world size.

    Args:
        checkpoint: from `newest`.
        state: from `training_state`.
        ranks: all of them call this.
        optimizer: the one in `state`.
    Raises:
        ResumeError: the checkpoint is damaged or belongs to another model.
    """
    host = {
        name: as_source(torch.empty_like(slot.live, device="cpu"), slot.source, ranks)
        for name, slot in state.items()
    }
    _read(checkpoint.path, host)
    with torch.no_grad():
        for name, slot in state.items():
            slot.live.copy_(local(host[name]))
    if optimizer is not None:
        optimizer.set_num_updates(float(host["optimizer.num_updates"]))
        optimizer.refresh_copies()


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Fill an unsharded CPU model with a checkpoint's weights, in one process.

    Raises:
        ResumeError: the checkpoint is damaged or belongs to another model.
    """
    state = {f"model.{n}": torch.empty_like(t) for n, t in model.state_dict().items()}
    _read(checkpoint.path, state, no_dist=True)
    model.load_state_dict({n.removeprefix("model."): t for n, t in state.items()})


def load_model(run: Path) -> tuple[nn.Module, Config, dict[str, Any]]:
    """Load what a run has learned, on the CPU in fp32.

    Args:
        run: of `pretrain`, finished or not, or of a finished `finetune`.
    Returns:
        the model (`MaskedAutoencoder` or `Classifier`) in evaluation mode; the run's settings;
        meta with "kind" ("pretrain", "finetune"), "identity" (store, select, target ...) and
        "preprocessing".
    Raises:
        ResumeError: no run, one without a checkpoint, or a damaged one.
    """
    if not (run / "config.toml").is_file():
        raise ResumeError(
            f"{run} is not the folder of a run: it has no config.toml; check the path"
        )
    config = _settings(run / "config.toml")
    result = run / "result.json"
    if result.is_file():
        meta = _result(result)
        classifier = build_classifier(config, meta["identity"]["model"])
        _fill(classifier, run / "best.safetensors")
        return classifier.eval(), config, meta
    checkpoint = newest(run)
    if checkpoint is None or checkpoint.meta["kind"] != "pretrain":
        raise ResumeError(
            f"{run} has nothing to load: no finished fine-tuning and no pretraining checkpoint; "
            "run its command again with --resume"
        )
    model = build_model(config)
    load_weights(checkpoint, model)
    return model.eval(), config, checkpoint.meta


def _settings(path: Path) -> Config:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no UTF-8, or no TOML
        raise ResumeError(f"{path} is damaged: {error}; restore it from a copy") from error
    return config_from_dict(tree)


def _result(path: Path) -> dict[str, Any]:
    """What a finished fine-tuning says about itself."""
    damaged = f"{path} is damaged; restore it from a copy, or fine-tune again"
    try:
        meta: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise ResumeError(damaged) from error
    if not isinstance(meta, dict) or not {"kind", "identity", "preprocessing"} <= set(meta):
        raise ResumeError(damaged)
    return meta


def _fill(model: nn.Module, weights: Path) -> None:
    try:
        model.load_state_dict(read_weights(weights))
    except RuntimeError as error:  # other names or shapes than the model's
        raise ResumeError(
            f"weights {weights} do not fit the model of config.toml; restore both from a copy"
        ) from error


def _read(path: Path, state: dict[str, Tensor], *, no_dist: bool = False) -> None:
    ignore_single_process_warning()
    try:
        dcp_load(state, storage_reader=FileSystemReader(path), no_dist=no_dist)
    except (CheckpointException, OSError, RuntimeError, ValueError, pickle.PickleError) as error:
        raise ResumeError(_damaged(path, first_line(error))) from error


def as_source(part: Tensor, source: Tensor, ranks: Ranks) -> Tensor:
    """Return a rank's part on the CPU as the DTensor that its source is, if that is one."""
    if not isinstance(source, DTensor):
        return part
    whole: Tensor = DTensor.from_local(
        part,
        ranks.host_mesh,
        source.placements,
        run_check=False,
        shape=source.shape,
        stride=source.stride(),
    )
    return whole


def digest(path: Path) -> str:
    """SHA-256 of a small file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def first_line(error: BaseException) -> str:
    """First line of what an error says; its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _damaged(path: Path, why: str) -> str:
    return f"checkpoint {path} cannot be read: {why}; delete it to go on from the one before"


def ignore_single_process_warning() -> None:
    """Let one process save and load as if it were many, without a word."""
    # here and not in the thread: changing the filters is not thread-safe
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
