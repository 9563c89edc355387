"""Held-out records of a pretraining run: their loss, and a picture of the first one."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ecgfast.data.batch import Batch
from ecgfast.data.loader import Loader
from ecgfast.data.normalise import Normalisation
from ecgfast.log import MetricsWriter
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.store.durable import RESUME, write_durably
from ecgfast.store.reader import StoreReader
from ecgfast.train.distributed import Ranks, release
from ecgfast.train.microbatch import split

FOLDER = "reconstructions"
DRAWN_LEADS = ("II", "V5")  # a limb and a chest lead: a picture to take in at a glance


@dataclass(kw_only=True)
class Validation:
    """Scores held-out records as often as asked, under the same masks.

    Attributes:
        ranks: all of them call `loss`.
        model: spread over the ranks.
        store: of the records.
        loader: this rank's share of them, unshuffled, in whole global batches: the number of
            ranks changes nothing.
        inputs_of: turns records into the model's arguments, the mask last.
        microbatch: records per forward pass; divides the batch.
        normalisation: that made the patches.
    """

    ranks: Ranks
    model: MaskedAutoencoder
    store: StoreReader
    loader: Loader
    inputs_of: Callable[[Batch], tuple[Tensor, ...]]
    microbatch: int
    normalisation: Normalisation

    def __post_init__(self) -> None:
        self._first: list[Tensor] = []  # index, patches, prediction, mask; this rank's first record

    @torch.no_grad()
    def loss(self) -> float:
        """Mean loss of the records."""
        losses: list[Tensor] = []
        for batch in self.loader:
            for piece in split(batch, self.microbatch):
                inputs = self.inputs_of(piece)
                loss, pred_BNP = self.model(*inputs)
                if not losses:
                    seen = (piece.record_index, piece.patches, pred_BNP, inputs[-1])
                    self._first = [tensor[:1].clone() for tensor in seen]
                losses.append(loss)
        release(self.model)
        mean = self.ranks.sum_(torch.stack(losses).float().mean()) / self.ranks.world_size
        return float(mean)

    def draw(self, run: Path, metrics: MetricsWriter, *, step: int) -> None:
        """Draw the first record as the last `loss` saw it, in the run's folder and TensorBoard.

        Nothing is drawn of a prediction that is not finite.

        Args:
            run: its folder.
            metrics: of the run, so that only the main rank can call.
            step: that the weights are of; a resumed run writes the same name again.
        """
        # Here and not above: only the main rank needs matplotlib, and only now.
        from ecgfast.runs import reconstruction

        (result,) = reconstruction.in_millivolt(
            self.store,
            *self._first,
            normalisation=self.normalisation,
            norm_patch=self.model.norm_patch_loss,
        )
        if not math.isfinite(result.loss):
            return
        buffer = io.BytesIO()
        reconstruction.draw(self.store, result, DRAWN_LEADS).savefig(buffer, format="png")
        folder = run / FOLDER
        folder.mkdir(exist_ok=True)
        write_durably(folder / f"step-{step:08d}.png", [buffer.getvalue()], again=RESUME)
        metrics.image("reconstruction", buffer.getvalue(), step=step)
