"""The loader: order + engine -> batches, resumable at any record, the same bits on every engine.

Records are sorted by 64-bit Philox keys of (seed, epoch, record): exactly uniform, and the same for
any library version, world size, engine or worker count. Resume is (epoch, position), nothing else.
Shapes: R records of the epoch, B records of a rank's batch, W ranks.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from ecgfast_kernels.codec import cuda as codec_cuda
from ecgfast_kernels.codec.philox import epoch_order
from numpy.typing import NDArray
from torch import Tensor

from ecgfast import log
from ecgfast.data.batch import Batch, Source, patches_of_leads, to_device
from ecgfast.data.dali import DaliEngine
from ecgfast.data.dali import build as dali_build
from ecgfast.data.engines import CpuEngine, ResidentEngine, resident_bytes
from ecgfast.data.host_copy import Neighbours
from ecgfast.data.normalise import Normalisation
from ecgfast.errors import BackendUnavailableError, ConfigError, ResumeError
from ecgfast.labels.selection import labels_of, selected
from ecgfast.store.format import address_of
from ecgfast.store.reader import StoreReader, as_store, available_cores
from ecgfast.vocabulary import EngineName

RESIDENT_SHARE = 0.4  # of the GPU's memory; ViT-Large at 256 records needs about 25 of 80 GB


@dataclass(frozen=True, kw_only=True, eq=False)
class RankOrder:
    """What one rank visits.

    Global batch g of an epoch is rows g * W * B to (g + 1) * W * B of its order; rank r takes rows
    r * B to (r + 1) * B of that, so that the union over ranks is the same for every world size with
    the same W * B.

    Attributes:
        index: (R,) int64 store rows to visit.
        batch_size: records per rank, B.
        seed: with the epoch, fixes the order.
        rank: this rank, r.
        world_size: number of ranks, W.
        drop_last: leave out a last global batch that is not full.
        shuffle: visit `index` in random order; otherwise as it stands.
    """

    index: NDArray[np.int64]
    batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    drop_last: bool = True
    shuffle: bool = True

    @property
    def global_batch(self) -> int:
        """Records of all ranks together in one batch."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch."""
        return len(self._starts(0))

    def batches(self, epoch: int, position: int = 0) -> list[NDArray[np.int64]]:
        """Cut what is left of an epoch into this rank's batches.

        Args:
            epoch: 0 or more.
            position: records consumed in this epoch by all ranks together.
        Returns:
            (B,) int64 arrays of store rows; without `drop_last` the last may be shorter, or be
            missing on the later ranks.
        """
        order = self.index
        if self.shuffle:
            order = order[epoch_order(len(order), seed=self.seed, epoch=epoch)]
        starts = self._starts(position)
        return [order[start : min(start + self.batch_size, starts.stop)] for start in starts]

    def _starts(self, position: int) -> range:
        left = len(self.index) - position
        # of what is left, so that ranks agree on the number of batches from any position
        used = left - left % self.global_batch if self.drop_last else left
        first = position + self.rank * self.batch_size
        return range(first, position + used, self.global_batch)


class Engine(Protocol):
    """What turns a schedule of records into tensors on a device."""

    def batches(self, schedule: Sequence[NDArray[np.int64]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (patches (B, N, 256) fp16, record_index (B,) int64) for each entry."""


class Loader:
    """Iterating yields what is left of the current epoch; the next iteration is the next epoch.

    Args:
        engine: where batches come from.
        order: which records this rank visits.
        labels: (N,) float32 of every row of the store, on the device of the batches; None: none.
        lead_C: (C,) numbers of the leads whose patches are kept, on that device; None: all.
    """

    def __init__(
        self,
        engine: Engine,
        order: RankOrder,
        labels: Tensor | None = None,
        lead_C: Tensor | None = None,
    ) -> None:
        self._engine = engine
        self._order = order
        self._labels = labels
        self._lead_C = lead_C
        self._epoch, self._position = 0, 0

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        epoch, order = self._epoch, self._order
        for patches, record_index in self._engine.batches(order.batches(epoch, self._position)):
            # handed out = consumed; what is prefetched does not count
            self._position = min(self._position + order.global_batch, len(order.index))
            labels = None if self._labels is None else self._labels[record_index]
            if self._lead_C is not None:
                patches = patches_of_leads(patches, self._lead_C)
            yield Batch(patches=patches, record_index=record_index, epoch=epoch, labels=labels)
        self._epoch, self._position = epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Return where to resume: the epoch, and the records that all ranks consumed in it."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at a saved state, on any world size and engine.

        Raises:
            ResumeError: the position lies outside this selection's epoch.
        """
        num_records = len(self._order.index)
        if not 0 <= state["position"] <= num_records:
            raise ResumeError(
                f"position {state['position']} lies outside an epoch of {num_records} "
                "records; resume with the store and selection that the run began with"
            )
        self._epoch, self._position = state["epoch"], state["position"]


def build_loader(
    store: StoreReader | str | Path,
    *,
    batch_size: int,
    labels: str | None = None,
    seed: int = 0,
    engine: EngineName = "auto",
    device: str | torch.device = "cpu",
    select: str | NDArray[np.int64] | None = None,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = True,
    shuffle: bool = True,
    normalise: str | Normalisation = "record_lead",
    num_threads: int | None = None,
    resident_budget_gib: float | None = None,
    neighbours: Neighbours | None = None,
) -> Loader:
    """Build a loader over the selected records of a store.

    Args:
        store: an open store, or its path.
        batch_size: records per rank and batch.
        labels: what a case is, such as ``ejection_fraction<40``: batches have labels, and records
            of which this is not known are left out.
        seed: with the epoch, fixes the order.
        engine: `auto` takes `resident` on a GPU that holds the records, else `dali` where it is
            installed, else `cpu`; the log says which and why.
        device: where batches go.
        select: an expression such as ``site=1 and age>=18``, or (R,) int64 store rows.
        rank: this rank.
        world_size: number of ranks.
        drop_last: leave out the last global batch when it is not full.
        shuffle: random order, new in each epoch.
        normalise: a mode of `Normalisation`, or one with the statistics that it needs and, for a
            model of fewer leads, with these.
        num_threads: decoding threads of this rank; by default this machine's cores divided by its
            ranks.
        resident_budget_gib: memory that the resident engine may take.
        neighbours: ranks of this machine, which share what the resident engine keeps in host
            memory; all of them call this.
    Raises:
        ConfigError: nothing is selected, or an epoch has no full batch.
        BackendUnavailableError: the device or the engine asked for cannot run here.
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"device {str(device)!r} was asked for and this PyTorch sees no GPU; use device='cpu', "
            "or install a CUDA build and check nvidia-smi"
        )
    store = as_store(store)
    for each in getattr(store, "stores", [store]):
        if url := address_of(each.path):
            raise ConfigError(
                f"training reads {url} in random order, a request for each record in every epoch; "
                "give --set data.cache_dir=FOLDER, or copy it with ecgfast fetch"
            )
    index = selected_rows(store, select)
    values = None
    if labels is not None:
        index, values = labelled_rows(store, index, labels)
    if batch_size < 1 or not 0 <= rank < world_size:
        raise ConfigError(
            f"batch_size must be at least 1 and rank in [0, world_size), got batch_size "
            f"{batch_size}, rank {rank}, world_size {world_size}"
        )
    order = RankOrder(
        index=index,
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        drop_last=drop_last,
        shuffle=shuffle,
    )
    if len(index) < (order.global_batch if drop_last else 1):
        raise ConfigError(
            f"{len(index)} records selected of {len(store)}, but one global batch has "
            f"{order.global_batch}; widen the selection or lower batch_size "
            "(train.batch_size in pretraining, finetune.batch_size in fine-tuning)"
        )
    if isinstance(normalise, str):
        normalise = Normalisation(mode=normalise)
    mean, rstd = normalise.mean_and_rstd(store)
    threads = num_threads or _default_threads(world_size)
    source = Source(store=store, mean=mean, rstd=rstd, device=device, num_threads=threads)
    built = _build_engine(source, engine, index, resident_budget_gib, neighbours)
    leads = None if normalise.leads is None else np.array(normalise.lead_numbers)
    on_device = [None if each is None else to_device(each, device) for each in (values, leads)]
    return Loader(built, order, *on_device)


def selected_rows(store: StoreReader, select: str | NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return the store rows that a selection keeps, ascending (or as given)."""
    if isinstance(select, np.ndarray):
        return select.astype(np.int64, copy=False)
    if select is None:
        return np.arange(len(store), dtype=np.int64)
    return np.flatnonzero(selected(store.records, select)).astype(np.int64)


def labelled_rows(
    store: StoreReader, index: NDArray[np.int64], target: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Those of some rows whose label is known, and the labels (N,) of all rows, cases being 1."""
    is_case, is_known = labels_of(store.records, target)
    kept = index[is_known[index]]
    if len(kept) < len(index):
        log.info(f"{len(index) - len(kept)} of {len(index)} records without a label of {target}")
    return kept, is_case.astype(np.float32)


def choose_engine(
    store: StoreReader, num_records: int, device: torch.device, budget_gib: float | None
) -> tuple[EngineName, str]:
    """Return the engine that `auto` takes for so many records of a store, and why."""
    if device.type != "cuda":
        return "cpu", f"device is {device.type}"
    if not codec_cuda.is_built():
        return "cpu", "the CUDA decoder was not built: install nvcc and reinstall ecgfast"
    need_gib = resident_bytes(store) * num_records / len(store) / 2**30
    total_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    budget = budget_gib if budget_gib is not None else RESIDENT_SHARE * total_gib
    if need_gib <= budget:
        return "resident", f"{need_gib:.2f} GiB fit the budget of {budget:.1f} GiB"
    why = f"{need_gib:.1f} GiB exceed the resident budget of {budget:.1f} GiB"
    if not dali_build.is_installed():
        return "cpu", f"{why}, and DALI is not installed"
    return "dali", why


def _default_threads(world_size: int) -> int:
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))  # set by torchrun
    return max(1, available_cores() // ranks_here)


def _build_engine(
    source: Source,
    asked: EngineName,
    index: NDArray[np.int64],
    budget_gib: float | None,
    neighbours: Neighbours | None,
) -> Engine:
    name, reason = asked, "as asked"
    if asked == "auto":
        name, reason = choose_engine(source.store, len(index), source.device, budget_gib)
    log.info(f"data engine: {name} ({reason})")
    if name == "resident":
        return ResidentEngine(source, index=index, budget_gib=budget_gib, neighbours=neighbours)
    if name == "dali":
        try:
            return DaliEngine(source)
        except BackendUnavailableError as error:
            if asked != "auto":
                raise
            log.warning(f"data engine: cpu instead of dali, which decodes on the host: {error}")
    return CpuEngine(source)
