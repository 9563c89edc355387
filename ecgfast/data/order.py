"""The global order: which records an epoch visits, in which sequence, on which rank.

Records are sorted by 64-bit Philox keys of (seed, epoch, record): exactly uniform, and the same for
any library version, world size, engine or worker count. Resume is (epoch, position), nothing else.
Shapes: R records of the epoch, B records of a rank's batch, W ranks.
"""

from dataclasses import dataclass

import numpy as np
from ecgfast_kernels.codec.philox import epoch_order
from numpy.typing import NDArray

__all__ = ["Plan", "epoch_order"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
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
