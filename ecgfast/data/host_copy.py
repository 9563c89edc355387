"""One copy of a cohort in host memory for all ranks of a machine."""

import math
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgfast.errors import EcgfastError

_ALIGNMENT = 64  # bytes
_USER_ERROR = 2  # exit status

Shapes = Sequence[tuple[str, tuple[int, ...]]]  # dtype and shape of each array


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The ranks of one machine.

    Attributes:
        is_first: whether this one reads what all of them use.
        hear: called by all of them at once, returns to each what the first passed.
    """

    is_first: bool
    hear: Callable[[Any], Any]


def host_copy(
    make: Callable[[], Sequence[NDArray[Any]]], neighbours: Neighbours | None
) -> list[Tensor]:
    """Return arrays as tensors; of several ranks the first makes them, the others see its memory.

    The memory belongs to no file system: it is gone with the last process that maps it, however
    that ends.

    Args:
        make: called by one rank alone.
        neighbours: who calls this, each at the same time; None: this rank alone.
    Raises:
        EcgfastError: from `make`, on the first rank; the others end with the same status.
    """
    if neighbours is None:
        return [torch.from_numpy(array) for array in make()]
    if neighbours.is_first:
        try:
            arrays = make()
        except EcgfastError as error:
            neighbours.hear(error)
            raise
        shapes = [(array.dtype.str, array.shape) for array in arrays]
        memory = os.memfd_create("ecgfast-cohort")
        os.ftruncate(memory, sum(map(_padded_bytes, shapes)) or 1)
        tensors = _mapped(memory, shapes)
        for tensor, array in zip(tensors, arrays, strict=True):
            tensor.numpy()[...] = array
        neighbours.hear((os.getpid(), memory, shapes))
    else:
        said = neighbours.hear(None)
        if isinstance(said, EcgfastError):
            raise SystemExit(_USER_ERROR)
        process, number, shapes = said
        memory = os.open(f"/proc/{process}/fd/{number}", os.O_RDWR)
        tensors = _mapped(memory, shapes)
    neighbours.hear(None)  # all have it
    os.close(memory)
    return tensors


def register(tensor: Tensor) -> Tensor:
    """Let a GPU read host memory that another process allocated; returns the tensor."""
    runtime = torch.cuda.cudart()
    torch.cuda.check_error(runtime.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
    weakref.finalize(tensor, runtime.cudaHostUnregister, tensor.data_ptr())
    return tensor


def _padded_bytes(shape: tuple[str, tuple[int, ...]]) -> int:
    """Bytes of an array, up to where the next one begins."""
    num_bytes = np.dtype(shape[0]).itemsize * math.prod(shape[1])
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _mapped(memory: int, shapes: Shapes) -> list[Tensor]:
    whole = mmap.mmap(memory, 0)
    tensors, start = [], 0
    for dtype, shape in shapes:
        flat = np.frombuffer(whole, dtype, math.prod(shape), start)
        tensors.append(torch.from_numpy(flat.reshape(shape)))
        start += _padded_bytes((dtype, shape))
    return tensors
