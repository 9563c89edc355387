"""The unit that every engine yields."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Normalised patches of B records; the same bits from every engine.

    Attributes:
        patches: (B, N, 256) fp16, z-scored (or mV); columns 250 to 255 are zero.
        record_index: (B,) int64, row of each record in the store, on the device of `patches`.
        epoch: the epoch that the records belong to; masks are drawn from (seed, epoch, record).
    """

    patches: Tensor
    record_index: Tensor
    epoch: int
