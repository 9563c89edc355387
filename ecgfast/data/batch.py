"""What every engine starts from and yields, and how batches are made ahead of their use."""

import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from ecgfast_kernels import codec
from numpy.typing import NDArray
from torch import Tensor

from ecgfast.records import NUM_LEADS
from ecgfast.store.reader import StoreReader

Entry = TypeVar("Entry")
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """The records of a store as patches to be made of them.

    Attributes:
        store: an open store of R records.
        mean: (R, C) float32 ADC units, subtracted.
        rstd: (R, C) float32, multiplied.
        device: where batches go.
        num_threads: threads that decode on the host.
    """

    store: StoreReader
    mean: NDArray[np.float32]
    rstd: NDArray[np.float32]
    device: torch.device
    num_threads: int = 1

    def batch_shape(self, num_records: int) -> tuple[int, int, int]:
        """(B, N, 256) of so many records."""
        timesteps = self.store.num_leads * self.store.num_timesteps
        return num_records, timesteps // codec.COLUMN_TIMESTEPS, codec.PATCH_WIDTH


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Normalised patches of B records; the same bits from every engine.

    Attributes:
        patches: (B, N, 256) fp16, z-scored (or mV); columns 250 to 255 are zero. Of all twelve
            leads, or of those of the `Normalisation`.
        record_index: (B,) int64, row of each record in the store, on the device of `patches`.
        epoch: the epoch that the records belong to; masks are drawn from (seed, epoch, record).
        labels: (B,) float32, 1 for a case and 0 for a control, on the same device; None where the
            loader was given no target.
    """

    patches: Tensor
    record_index: Tensor
    epoch: int
    labels: Tensor | None = None


def made_ahead(
    make: Callable[[Entry], Made], entries: Iterable[Entry], *, depth: int, num_threads: int = 1
) -> Generator[Made, None, None]:
    """Yield ``make(entry)`` of each entry, in order, with threads that run some entries ahead.

    Args:
        make: called from the threads.
        entries: what to make.
        depth: results that may be finished or in work while the consumer has one.
        num_threads: entries in work at a time.
    """
    with ThreadPoolExecutor(num_threads, thread_name_prefix="ecgfast-ahead") as pool:
        pending: deque[Future[Made]] = deque()
        try:
            for entry in entries:
                pending.append(pool.submit(make, entry))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # the consumer stopped early: do not make what will not be used
            for future in pending:
                future.cancel()


class HostBuffers:
    """Arrays for batches, used again when nothing refers to them any more.

    With new arrays the operating system would clear fresh pages for every batch. Threads may share
    it: taking and returning an array are each one operation on a list.
    """

    def __init__(self) -> None:
        self._free: defaultdict[tuple[int, ...], list[NDArray[np.float16]]] = defaultdict(list)

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float16]:
        """Return an uninitialised array that nothing else uses; tensors of it keep it in use."""
        free = self._free[shape]
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(shape, np.float16)
        # NumPy gives a view of a view the first array as its base, so a slice of `memory[:]` would
        # not keep it; behind a memoryview the first array is `view`.
        view = np.frombuffer(memory.data, np.float16)
        weakref.finalize(view, free.append, memory).atexit = False
        return view.reshape(shape)


def patches_of_leads(patches_BNP: Tensor, lead_C: Tensor) -> Tensor:
    """Keep the patches of some leads.

    Args:
        patches_BNP: (B, N, P) of all twelve leads.
        lead_C: (C,) int64 numbers in `LEADS`, on the same device.
    """
    by_lead_BCNP: Tensor = patches_BNP.unflatten(1, (NUM_LEADS, -1))
    return by_lead_BCNP.index_select(1, lead_C).flatten(1, 2)


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy an array to a device; on a GPU queued on the current stream, and nothing waits."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor
    # PyTorch uses the pinned block again only after the copy's stream has passed it
    return tensor.pin_memory().to(device, non_blocking=True)
