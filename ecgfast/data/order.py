"""The global order: which records an epoch visits, in which sequence, on which rank.

Records are sorted by 64-bit Philox keys of (seed, epoch, record): exactly uniform, and the same for
any library version, world size, engine or worker count. Resume is (epoch, position), nothing else.
"""

import numpy as np
from ecgfast_kernels.order import epoch_order
from numpy.typing import NDArray

__all__ = ["epoch_order", "rank_batches"]


def rank_batches(
    order_R: NDArray[np.int64],
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    position: int,
    drop_last: bool,
) -> list[NDArray[np.int64]]:
    """Cut an epoch's order into the batches of one rank.

    Global batch g is `order_R[g * W * B : (g + 1) * W * B]`; rank r takes rows r * B to (r + 1) * B
    of it, so that the union over ranks is the same for every world size with the same W * B.

    Args:
        order_R: (R,) the epoch's records in order.
        batch_size: records per rank, B.
        rank: this rank, r.
        world_size: number of ranks, W.
        position: records consumed in this epoch by all ranks together.
        drop_last: leave out a last global batch that is not full.
    Returns:
        (B,) int64 arrays, views of `order_R`; the last may be shorter without `drop_last`.
    """
    stride = batch_size * world_size
    stop = len(order_R) - len(order_R) % stride if drop_last else len(order_R)
    starts = range(position + rank * batch_size, stop, stride)
    return [order_R[start : min(start + batch_size, stop)] for start in starts]
