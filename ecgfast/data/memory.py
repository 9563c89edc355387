"""Memory of batches: host arrays that are used again, and uploads that nobody waits for."""

import weakref
from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class HostBuffers:
    """Arrays for batches, used again when nothing looks at them any more.

    The kernel would have to clear fresh pages for every batch. Threads may share it: taking and
    giving back are each one operation on a list.
    """

    def __init__(self) -> None:
        self._free: defaultdict[tuple[int, ...], list[NDArray[np.float16]]] = defaultdict(list)

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float16]:
        """Return an uninitialised array that nothing else uses; tensors of it keep it taken."""
        free = self._free[shape]
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(shape, np.float16)
        # NumPy gives a view of a view the first array as its base, so a slice of `memory[:]` would
        # not keep it; behind a memoryview the first array is `lent`.
        lent = np.frombuffer(memory.data, np.float16)
        weakref.finalize(lent, free.append, memory).atexit = False
        return lent.reshape(shape)


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copy an array to a device; on a GPU queued on the current stream, and nothing waits."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type != "cuda":
        return tensor
    # PyTorch uses the pinned block again only after the copy's stream has passed it
    return tensor.pin_memory().to(device, non_blocking=True)
