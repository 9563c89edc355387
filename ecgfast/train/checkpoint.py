"""Checkpoints of a run on any number of ranks: the state they keep, how it is written and loaded.

A checkpoint is written on a thread while training continues, under a temporary name that is
replaced when every byte is on the disk: what a crash leaves behind is ignored and removed.
"""

import errno
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.tensor import DTensor

from ecgfast.errors import EcgfastError
from ecgfast.runs.checkpoint_reader import (
    INDEX,
    Checkpoint,
    checkpoint_steps,
    first_line,
    ignore_single_process_warning,
    read_tensors,
)
from ecgfast.runs.digests import METRICS, RUN_FILES, Facts, entries, sealed
from ecgfast.runs.register import FILE as REGISTER
from ecgfast.store.durable import RESUME, explain, explained, sync_folder, write_durably
from ecgfast.train.distributed import Ranks, local, master
from ecgfast.train.optim import MasterAdamW


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One tensor of the training state.

    Attributes:
        live: this rank's part, read when saving and written when loading.
        source: the whole as the model knows it; a DTensor holds how it is sharded.
    """

    live: Tensor
    source: Tensor


State = dict[str, Slot]


def training_state(model: nn.Module, optimizer: MasterAdamW | None) -> State:
    """Name every tensor that a run needs to be resumed; call it while the model is sharded.

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
        name: _as_source(torch.empty_like(slot.live, device="cpu"), slot.source, ranks)
        for name, slot in state.items()
    }
    read_tensors(checkpoint, host)
    with torch.no_grad():
        for name, slot in state.items():
            slot.live.copy_(local(host[name]))
    if optimizer is not None:
        optimizer.set_num_updates(float(host["optimizer.num_updates"]))
        optimizer.refresh_copies()


class CheckpointWriter:
    """Copies the state to host memory, then writes it on a thread while training continues.

    Use it as a context: leaving it waits for the last save.

    Args:
        run: the run's folder.
        ranks: all of them call every method, in the same order.
        keep: how many of the newest stay.
        milestone_every: checkpoints at multiples of this step stay for good.
    """

    def __init__(
        self, run: Path, ranks: Ranks, *, keep: int, milestone_every: int | None = None
    ) -> None:
        self._folder = run / "checkpoints"
        self._ranks = ranks
        self._keep = keep
        self._milestone_every = milestone_every
        self._group = ranks.side_group()  # so that a save never mixes with a step's collectives
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ecgfast-checkpoint")
        self._pending: Future[None] | None = None
        self._host: dict[str, Tensor] = {}
        if ranks.is_main:
            self._folder.mkdir(exist_ok=True)
            for left_over in self._folder.glob("writing-*"):
                remove(left_over)
        ranks.barrier()

    def save(self, state: State, *, step: int, facts: Facts) -> None:
        """Begin to write a checkpoint; waits for the one before.

        Args:
            state: read before this returns.
            step: updates done.
            facts: `RunMeta.as_facts` and where training stands, written as JSON.
        """
        self.wait()
        host = {name: self._to_host(name, slot) for name, slot in state.items()}
        if self._ranks.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        ignore_single_process_warning()
        if self._ranks.is_main:  # now: metrics.jsonl grows while the thread writes
            facts = {**facts, RUN_FILES: entries(self._folder.parent, (METRICS, REGISTER))}
        self._pending = self._thread.submit(self._write, host, step, facts)

    def wait(self) -> None:
        """Return when the last save is on the disk; raises what went wrong there."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Wait for the last save, on every rank; after an error other ranks may be gone.

        One rank alone waits even then: the run's lock goes next, and who comes after it removes
        what looks half written.
        """
        try:
            if kind is None:
                self.wait()
                self._ranks.barrier()
        finally:
            self._thread.shutdown(wait=kind is None or self._ranks.world_size == 1)

    def _to_host(self, name: str, slot: Slot) -> Tensor:
        if name not in self._host:
            pinned = slot.live.is_cuda  # reused by every save: pinning 4 GB takes a second
            self._host[name] = torch.empty_like(slot.live, device="cpu", pin_memory=pinned)
        self._host[name].copy_(slot.live.detach(), non_blocking=True)
        return _as_source(self._host[name], slot.source, self._ranks)

    def _write(self, host: dict[str, Tensor], step: int, facts: Facts) -> None:
        final = self._folder / f"step-{step:08d}"
        temporary = self._folder / f"writing-{final.name}"
        writer = _Writer(temporary, sync_files=True)
        try:
            dcp_save(host, storage_writer=writer, process_group=self._group)
        except CheckpointException as error:
            if self._ranks.is_main:  # what is left of it fills the disk
                shutil.rmtree(temporary, ignore_errors=True)
            raise _not_written(final, error) from error
        if self._ranks.is_main:
            with explained(final, again=RESUME):
                self._seal(temporary, {**facts, "step": step})
                os.replace(temporary, final)
                sync_folder(self._folder)
                self._prune()

    def _seal(self, folder: Path, facts: Facts) -> None:
        with (folder / INDEX).open("rb") as index:  # PyTorch syncs it before it flushes its buffer
            os.fsync(index.fileno())
        facts["files"] = entries(folder, sorted(path.name for path in folder.iterdir()))
        write_durably(folder / "meta.json", [sealed(facts)], again=RESUME)

    def _prune(self) -> None:
        steps = checkpoint_steps(self._folder.parent)
        every = self._milestone_every
        for step in steps[: -self._keep]:
            if not (every and step % every == 0):
                remove(self._folder / f"step-{step:08d}")


class _Writer(FileSystemWriter):
    """Leaves the folder's path out of the index, which is shared with the run."""

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()


def remove(path: Path) -> None:
    """Remove a folder, or whatever else has its name; a link alone, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _not_written(path: Path, error: CheckpointException) -> EcgfastError:
    """One line instead of PyTorch's page: what the ranks met, a full disk before all else."""
    failures = [failure for failure, _ in error.failures.values()]
    for failure in failures:
        # PyTorch's archive writer only sees that it did not get as far as it wrote
        full = OSError(errno.ENOSPC, "") if "unexpected pos" in str(failure) else failure
        if isinstance(full, OSError) and (cause := explain(full, path, again=RESUME)):
            return cause
    return EcgfastError(
        f"checkpoint {path} could not be written: {first_line(failures[0])}; look at the disk, "
        f"then {RESUME}"
    )


def _as_source(part: Tensor, source: Tensor, ranks: Ranks) -> Tensor:
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
