"""What every engine starts from: records, their normalisation, and where batches go."""

from dataclasses import dataclass

import numpy as np
import torch
from ecgfast_kernels import codec
from numpy.typing import NDArray

from ecgfast.store.reader import StoreReader


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
