"""Logits of many records, the same on any number of ranks."""

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from ecgfast.config import Config
from ecgfast.data.loader import Loader
from ecgfast.data.normalise import Normalisation
from ecgfast.runs.scoring import logits
from ecgfast.store.reader import StoreReader
from ecgfast.train import setup
from ecgfast.train.distributed import Ranks, average_norm_statistics, release


class Scorer:
    """Scores fixed rows of a store with a classifier, as often as asked.

    The rows are filled up to whole global batches with the first row, so that every rank runs the
    same shapes; the surplus is cut off again.

    Args:
        store: the rows' store.
        config: data settings.
        ranks: all of them call.
        rows: (R,) store rows.
        batch_size: records per rank and forward pass.
        normalisation: of the run.
    """

    def __init__(
        self,
        store: StoreReader,
        config: Config,
        ranks: Ranks,
        rows: NDArray[np.int64],
        *,
        batch_size: int,
        normalisation: Normalisation,
    ) -> None:
        self._ranks = ranks
        self._num_rows = len(rows)
        missing = -len(rows) % (batch_size * ranks.world_size)
        padded = np.concatenate([rows, np.repeat(rows[:1], missing)])
        self._loader: Loader = setup.open_loader(
            store,
            config,
            ranks,
            padded,
            batch_size=batch_size,
            seed=0,
            normalisation=normalisation,
            shuffle=False,
        )

    @torch.no_grad()
    def logits(self, model: nn.Module) -> NDArray[np.float64]:
        """Score every row; (R,) float64, in the order of the rows, on every rank."""
        average_norm_statistics(model, self._ranks)
        own_GB = torch.stack(list(logits(model, (batch.patches for batch in self._loader))))
        release(model)
        model.train()
        return _gather(own_GB, self._ranks).double().cpu().numpy()[: self._num_rows]


def _gather(own_GB: Tensor, ranks: Ranks) -> Tensor:
    """From (batch, record) on each rank to all records in order."""
    if ranks.world_size == 1:
        return own_GB.flatten()
    parts = [torch.empty_like(own_GB) for _ in range(ranks.world_size)]
    dist.all_gather(parts, own_GB)
    return torch.stack(parts, dim=1).flatten()
