"""The loader: order + engine -> batches, resumable at any record, the same bits on every engine."""

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import numpy as np
import torch
from ecgfast_kernels import codec_cuda
from numpy.typing import NDArray
from torch import Tensor

from ecgfast import log
from ecgfast.data.batch import Batch
from ecgfast.data.engine_resident import ResidentEngine, resident_bytes
from ecgfast.data.normalise import CohortStatistics, mean_and_rstd
from ecgfast.data.order import epoch_order, rank_batches
from ecgfast.errors import ConfigError, ResumeError
from ecgfast.labels import parse_selection
from ecgfast.store.reader import StoreReader

EngineName = Literal["auto", "resident", "dali", "cpu"]
RESIDENT_SHARE = 0.4  # of the GPU's memory; ViT-Large at 256 records needs about 25 of 80 GB


class Engine(Protocol):
    """What turns a schedule of records into tensors on a device."""

    def batches(self, schedule: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (patches (B, N, 256) fp16, record_index (B,) int64) for each entry."""


class Loader:
    """Iterating yields what is left of the current epoch; the next iteration is the next epoch.

    Args:
        engine: where batches come from.
        index: (R,) store rows to visit.
        batch_size: records per rank.
        seed: with the epoch, fixes the order.
        epoch: the first epoch.
        rank: this rank.
        world_size: number of ranks.
        drop_last: leave out the last global batch when it is not full.
        shuffle: visit `index` in random order; otherwise as it stands.
    """

    def __init__(
        self,
        engine: Engine,
        index: NDArray[np.int64],
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int,
        world_size: int,
        drop_last: bool,
        shuffle: bool,
    ) -> None:
        self._engine = engine
        self._index = index
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = epoch
        self._position = 0
        self._rank = rank
        self._world_size = world_size
        self._drop_last = drop_last
        self._shuffle = shuffle

    def __len__(self) -> int:
        """Batches of a whole epoch on one rank."""
        stride = self._batch_size * self._world_size
        return len(self._index) // stride if self._drop_last else -(-len(self._index) // stride)

    def __iter__(self) -> Iterator[Batch]:
        epoch, stride = self._epoch, self._batch_size * self._world_size
        schedule = rank_batches(
            self._order(epoch),
            batch_size=self._batch_size,
            rank=self._rank,
            world_size=self._world_size,
            position=self._position,
            drop_last=self._drop_last,
        )
        for patches, record_index in self._engine.batches(schedule):
            # handed out = consumed; what is prefetched does not count
            self._position = min(self._position + stride, len(self._index))
            yield Batch(patches=patches, record_index=record_index, epoch=epoch)
        self._epoch, self._position = epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Return where to go on: the epoch, and the records that all ranks consumed in it."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a saved state, on any world size and engine.

        Raises:
            ResumeError: the position lies outside this selection's epoch.
        """
        if not 0 <= state["position"] <= len(self._index):
            raise ResumeError(
                f"position {state['position']} lies outside an epoch of {len(self._index)} "
                "records; resume with the store and selection that the run began with"
            )
        self._epoch, self._position = state["epoch"], state["position"]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self._shuffle:
            return self._index
        return self._index[epoch_order(len(self._index), seed=self._seed, epoch=epoch)]


def build_loader(
    store: StoreReader,
    *,
    batch_size: int,
    seed: int = 0,
    epoch: int = 0,
    engine: EngineName = "auto",
    device: str | torch.device = "cpu",
    select: str | NDArray[np.int64] | None = None,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = True,
    shuffle: bool = True,
    normalise: str = "record_lead",
    cohort: CohortStatistics | None = None,
    num_threads: int | None = None,
    resident_budget_gib: float | None = None,
) -> Loader:
    """Build a loader over the selected records of a store.

    Args:
        store: an open store.
        batch_size: records per rank and batch.
        seed: with the epoch, fixes the order.
        epoch: the first epoch.
        engine: `auto` takes `resident` on a GPU that holds the records, else `dali` where it is
            installed, else `cpu`; the log says which and why.
        device: where batches go.
        select: an expression such as ``site=1 and age>=18``, or (R,) int64 store rows.
        rank: this rank.
        world_size: number of ranks.
        drop_last: leave out the last global batch when it is not full.
        shuffle: random order, new in each epoch.
        normalise: a mode of `ecgfast.data.normalise`.
        cohort: statistics for ``normalise="cohort_lead"``.
        num_threads: decoding threads of this rank; by default the cores divided by the ranks.
        resident_budget_gib: memory that the resident engine may take.
    Raises:
        ConfigError: nothing is selected, or an epoch has no full batch.
        BackendUnavailableError: the engine asked for cannot run here.
    """
    device = torch.device(device)
    index = selected_rows(store, select)
    if batch_size < 1 or not 0 <= rank < world_size:
        raise ConfigError(
            f"batch_size must be at least 1 and rank in [0, world_size), got batch_size "
            f"{batch_size}, rank {rank}, world_size {world_size}"
        )
    if len(index) < (batch_size * world_size if drop_last else 1):
        raise ConfigError(
            f"{len(index)} records selected of {len(store)}, but one global batch has "
            f"{batch_size * world_size}; widen the selection or lower train.batch_size"
        )
    name, reason = choose_engine(store, engine, device, resident_budget_gib)
    log.info(f"data engine: {name} ({reason})")
    mean, rstd = mean_and_rstd(store, normalise, cohort)
    threads = num_threads or max(1, (os.cpu_count() or 1) // world_size)
    return Loader(
        _build_engine(name, store, index, mean, rstd, device, threads, resident_budget_gib),
        index,
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        rank=rank,
        world_size=world_size,
        drop_last=drop_last,
        shuffle=shuffle,
    )


def selected_rows(store: StoreReader, select: str | NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return the store rows that a selection keeps, ascending (or as given)."""
    if isinstance(select, np.ndarray):
        return select.astype(np.int64, copy=False)
    if select is None:
        return np.arange(len(store), dtype=np.int64)
    return np.flatnonzero(parse_selection(select).mask(store.records)).astype(np.int64)


def choose_engine(
    store: StoreReader, engine: EngineName, device: torch.device, budget_gib: float | None
) -> tuple[str, str]:
    """Return the engine's name and why it was taken."""
    if engine != "auto":
        return engine, "as asked"
    if device.type != "cuda":
        return "cpu", f"device is {device.type}"
    if not codec_cuda.is_built():
        return "cpu", "the CUDA decoder was not built: install nvcc and reinstall ecgfast"
    need_gib = resident_bytes(store) / 2**30
    total_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    budget = budget_gib if budget_gib is not None else RESIDENT_SHARE * total_gib
    if need_gib <= budget:
        return "resident", f"{need_gib:.2f} GiB fit the budget of {budget:.1f} GiB"
    why = f"{need_gib:.1f} GiB exceed the resident budget of {budget:.1f} GiB"
    if find_spec("nvidia.dali") is None:
        return "cpu", f"{why}, and DALI is not installed"
    return "dali", why


def _build_engine(
    name: str,
    store: StoreReader,
    index: NDArray[np.int64],
    mean: NDArray[np.float32],
    rstd: NDArray[np.float32],
    device: torch.device,
    num_threads: int,
    budget_gib: float | None,
) -> Engine:
    common: dict[str, Any] = {"mean": mean, "rstd": rstd, "device": device}
    if name == "resident":
        return ResidentEngine(store, index=index, budget_gib=budget_gib, **common)
    if name == "dali":
        from ecgfast.data.engine_dali import DaliEngine

        return DaliEngine(store, num_threads=num_threads, **common)
    from ecgfast.data.engine_cpu import CpuEngine

    return CpuEngine(store, num_threads=num_threads, **common)
