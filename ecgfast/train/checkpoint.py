"""Checkpoints: what they hold, and how they are read back, on any number of ranks.

``RUN/checkpoints/step-00001000/`` holds PyTorch's distributed checkpoint and ``meta.json``; a
folder of that name is whole (see `checkpoint_writer`).
"""

import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.tensor import DTensor

from ecgfast import log
from ecgfast.errors import ResumeError
from ecgfast.runs.sealed import (
    LaterFormatError,
    entries,
    is_sealed,
    problem,
    read_facts,
    read_small,
)
from ecgfast.train.checkpoint_index import IndexedReader, IndexFormatError, read_index
from ecgfast.train.distributed import Ranks, local, master
from ecgfast.train.optim import MasterAdamW

INDEX = ".metadata"  # PyTorch's: which tensor lies where
_NAME = re.compile(r"step-([1-9][0-9]{8,}|[0-9]{8})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint on the disk.

    Attributes:
        path: its folder.
        step: updates done.
        meta: what the run depends on, and where it stood.
        index: which tensor lies where.
    """

    path: Path
    step: int
    meta: dict[str, Any]
    index: Metadata


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
        if not is_sealed(found.meta):
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
        meta = read_facts(path / "meta.json")
    except LaterFormatError:
        raise
    except ResumeError as error:
        raise _DamagedError(_unreadable(path, str(error))) from error
    missing = {"kind", "identity", "format", "files"} - set(meta)
    if missing:
        why = f"meta.json has no {', '.join(sorted(missing))}"
        raise _DamagedError(_unreadable(path, why))
    if meta.get("step", step) != step:
        raise _DamagedError(_unreadable(path, f"meta.json is of step {meta['step']!r:.20}"))
    if not isinstance(meta["files"], dict) or INDEX not in meta["files"]:
        raise _DamagedError(_unreadable(path, f"meta.json does not name {INDEX}"))
    if not is_sealed(meta):
        meta = _of_format_2(path, meta)
    for name, entry in meta["files"].items():
        differs = problem(path, name, entry)
        if differs is not None:
            raise _DamagedError(_unreadable(path, differs))
    try:
        sizes = {name: entry["bytes"] for name, entry in meta["files"].items()}
        index = read_index(read_small(path / INDEX), sizes)
    except (IndexFormatError, ResumeError) as error:
        raise _DamagedError(_unreadable(path, str(error))) from error
    return Checkpoint(path=path, step=step, meta=meta, index=index)


def _of_format_2(path: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Check the sizes that format 2 has instead of digests; give entries of now for the rest."""
    now = entries(path, meta["files"])
    if meta["files"] != {name: entry["bytes"] for name, entry in now.items()}:
        why = "a file has another size than when it was written"
        raise _DamagedError(_unreadable(path, why))
    if now[INDEX]["sha256"] != meta.get("index_sha256"):
        raise _DamagedError(_unreadable(path, f"{INDEX} is not what was written"))
    return {**meta, "files": now}


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
    _read(checkpoint, host)
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
    _read(checkpoint, state, no_dist=True)
    model.load_state_dict({n.removeprefix("model."): t for n, t in state.items()})


def _read(checkpoint: Checkpoint, state: dict[str, Tensor], *, no_dist: bool = False) -> None:
    ignore_single_process_warning()
    reader = IndexedReader(str(checkpoint.path), checkpoint.index)
    try:
        dcp_load(state, storage_reader=reader, no_dist=no_dist)
    except (CheckpointException, OSError, RuntimeError, ValueError, pickle.PickleError) as error:
        why = _unreadable(checkpoint.path, first_line(error))
        raise ResumeError(f"{why}; delete it to go on from the one before") from error


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


def first_line(error: BaseException) -> str:
    """First line of what an error says; its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _unreadable(path: Path, why: str) -> str:
    return f"checkpoint {path} cannot be read: {why}"


def ignore_single_process_warning() -> None:
    """Let one process save and load as if it were many, without a word."""
    # here and not in the thread: changing the filters is not thread-safe
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
