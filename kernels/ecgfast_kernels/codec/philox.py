"""Philox4x32-10: random numbers as a pure function of (seed, record, epoch, domain); epoch order.

The key is the seed; the counter is (record low, record high, epoch, domain). Mask words use the
domains 0, 1, 2, ... (one per four patches), the epoch order uses `ORDER_DOMAIN`; anything else
takes a domain above it. Nothing depends on a library's generator, so masks and order
are the same on every device, world size and version.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ecgfast_kernels.codec.native import address, load

ORDER_DOMAIN = 1 << 31

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_BLOCK = 16384  # 12 temporaries of 128 KiB stay in the second-level cache: four times faster
_MEMORY = 102  # ECGFAST_MEMORY of codec.h

UInt32Array = npt.NDArray[np.uint32]


def split_seed(seed: int) -> tuple[int, int]:
    """Return the Philox key (low, high) of a seed in [0, 2^63).

    Raises:
        ValueError: the seed is out of range; a larger one would not fit a torch operator's int.
    """
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    return seed & _LOW, seed >> 32


def philox_rounds(counter: Sequence[Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """Run the ten rounds on int64 arrays that hold 32-bit words, NumPy's or PyTorch's alike.

    Only operators are used. The 64-bit product wraps in int64; a mask drops the shift's sign bits.

    Args:
        counter: four int64 arrays of one broadcastable shape, values in [0, 2^32).
        key: two words in [0, 2^32).
    Returns:
        Four int64 arrays, values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _LOW) ^ c1 ^ k0,
            product1 & _LOW,
            ((product0 >> 32) & _LOW) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def philox4x32(
    counter: Sequence[npt.ArrayLike], key: Sequence[int]
) -> tuple[UInt32Array, UInt32Array, UInt32Array, UInt32Array]:
    """Philox4x32-10 of NumPy counters.

    Args:
        counter: four uint32 arrays (or ints) of broadcastable shapes.
        key: two ints in [0, 2^32), see `split_seed`.
    Returns:
        Four uint32 arrays of the broadcast shape.
    """
    words = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint32) for word in counter))
    shape = words[0].shape
    flat = [np.ascontiguousarray(word).reshape(-1) for word in words]
    output = np.empty((4, flat[0].size), dtype=np.uint32)
    low, high = (int(word) for word in key)
    for start in range(0, flat[0].size, _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = philox_rounds([word[rows].astype(np.int64) for word in flat], (low, high))
        for word, result in zip(output, block, strict=True):
            word[rows] = result
    w0, w1, w2, w3 = (word.reshape(shape) for word in output)
    return w0, w1, w2, w3


def epoch_order(num_records: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
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


def _keys(num_records: int, key: tuple[int, int], epoch: int) -> npt.NDArray[np.uint64]:
    record = np.arange(num_records, dtype=np.uint64)
    counter = (record & 0xFFFFFFFF, record >> 32, epoch, ORDER_DOMAIN)
    word0, word1, _, _ = philox4x32(counter, key)
    return word0.astype(np.uint64) | word1.astype(np.uint64) << np.uint64(32)
