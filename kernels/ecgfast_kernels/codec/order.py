"""The order in which an epoch visits records: a stable argsort of 64-bit Philox keys."""

import numpy as np
from numpy.typing import NDArray

from ecgfast_kernels.codec.native import address, load
from ecgfast_kernels.philox import ORDER_DOMAIN, philox4x32, split_seed

_MEMORY = 102  # ECGFAST_MEMORY of codec.h


def epoch_order(num_records: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Record numbers in the order of one epoch, the same on every machine.

    Every order is equally likely, but for ties of 64-bit keys (ascending by record).

    Args:
        num_records: how many records there are, 0 or more.
        seed: the run's seed, in [0, 2^63).
        epoch: 0 or more.
    Returns:
        (num_records,) int64, a permutation. Ten million take about a second and, beside the
        result, no more than 20 MB.
    Raises:
        ValueError: an argument is out of range.
    """
    if num_records < 0:
        raise ValueError(f"num_records must be 0 or more, got {num_records}")
    if not 0 <= epoch < 1 << 32:
        raise ValueError(f"epoch must be in [0, 2^32), got {epoch}")
    low, high = split_seed(seed)
    library = load()
    if library is None:
        return np.argsort(_keys(num_records, (low, high), epoch), kind="stable")
    order = np.empty(num_records, np.int64)
    if library.ecgfast_epoch_order(seed, epoch, num_records, address(order)) == _MEMORY:
        raise MemoryError(f"no memory to order {num_records} records")
    return order


def _keys(num_records: int, key: tuple[int, int], epoch: int) -> NDArray[np.uint64]:
    record = np.arange(num_records, dtype=np.uint64)
    counter = (record & 0xFFFFFFFF, record >> 32, epoch, ORDER_DOMAIN)
    word0, word1, _, _ = philox4x32(counter, key)
    return word0.astype(np.uint64) | word1.astype(np.uint64) << np.uint64(32)
