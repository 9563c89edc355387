"""Scores of records that nothing is learned from, the same on any number of ranks."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method

from ecgfast import log
from ecgfast.config import Config
from ecgfast.data.batch import Batch
from ecgfast.data.loader import Loader
from ecgfast.data.normalise import Normalisation
from ecgfast.errors import ConfigError
from ecgfast.log import MetricsWriter
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.runs.column_task import task_of
from ecgfast.runs.inference import in_millivolt, logits
from ecgfast.store.durable import RESUME, write_durably
from ecgfast.store.reader import StoreReader
from ecgfast.train.dataset import labelled_records, open_loader, without_splits
from ecgfast.train.distributed import Ranks, average_norm_statistics, release
from ecgfast.train.linear import chosen_layer
from ecgfast.train.microbatch import largest_divisor, split

FOLDER = "reconstructions"
DRAWN_LEADS = ("II", "V5")  # a limb and a chest lead: a picture to take in at a glance


@dataclass(kw_only=True)
class Validation:
    """Scores held-out records as often as asked, under the same masks.

    Attributes:
        ranks: all of them call `loss`.
        model: spread over the ranks.
        store: of the records.
        loader: this rank's share of them, unshuffled, in whole global batches. The number of
            ranks changes nothing, but where less than a batch is held out: what cannot be
            shared alike is left out.
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
        from ecgfast.runs import ecg_paper

        (result,) = in_millivolt(
            self.store,
            *self._first,
            normalisation=self.normalisation,
            norm_patch=self.model.norm_patch_loss,
        )
        if not math.isfinite(result.loss):
            return
        buffer = io.BytesIO()
        ecg_paper.draw(self.store, result, DRAWN_LEADS).savefig(buffer, format="png")
        folder = run / FOLDER
        folder.mkdir(exist_ok=True)
        write_durably(folder / f"step-{step:08d}.png", [buffer.getvalue()], again=RESUME)
        metrics.image("reconstruction", buffer.getvalue(), step=step)


def heldout_validation(
    model: MaskedAutoencoder,
    store: StoreReader,
    config: Config,
    ranks: Ranks,
    rows: NDArray[np.int64],
    normalisation: Normalisation,
    *,
    microbatch: int,
    inputs_of: Callable[[Batch], tuple[Tensor, ...]],
) -> Validation | None:
    """What scores the held-out records of a pretraining run; None where too few are held out.

    Fewer records than a batch are one smaller batch.

    Args:
        model: spread over the ranks.
        store: of the records.
        config: of the run.
        ranks: who shares it.
        rows: (R,) held-out rows.
        normalisation: of the run.
        microbatch: records per forward pass, at most.
        inputs_of: turns records into the model's arguments, the mask last.
    """
    if config.train.val_fraction == 0:
        return None
    share = min(config.train.batch_size, len(rows)) // ranks.world_size
    if share == 0:
        log.warning(
            f"train.val_fraction={config.train.val_fraction} holds out {len(rows)} records, too "
            "few for a held-out loss; hold out more, or set train.val_fraction=0"
        )
        return None
    return Validation(
        ranks=ranks,
        model=model,
        store=store,
        loader=open_loader(
            store,
            config,
            ranks,
            rows,
            batch_size=share,
            seed=0,
            normalisation=normalisation,
            shuffle=False,
        ),
        inputs_of=inputs_of,
        microbatch=largest_divisor(share, microbatch),
        normalisation=normalisation,
    )


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
        self._loader: Loader = open_loader(
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
        """Score every row; (R,) or (R, K) float64, in the order of the rows, on every rank."""
        average_norm_statistics(model, self._ranks)
        own_GB = torch.stack(list(logits(model, (batch.patches for batch in self._loader))))
        release(model)
        model.train()
        return _gather(own_GB, self._ranks).double().cpu().numpy()[: self._num_rows]


class Probe:
    """A linear probe that watches a pretraining, of which it changes nothing.

    The encoder's features, means of all patches of a record, are fitted on labelled records of the
    split train and scored on those of valid, as `ecgfast probe` does it. No patient of the split
    test is read.

    Args:
        model: in pretraining, spread over the ranks.
        target: what a case is.
        store: with splits.
        config: of the run.
        ranks: all of them call.
        select: an expression, None for all records.
        batch_size: records per rank and forward pass.
        normalisation: of the run.

    Attributes:
        rows: (R,) store rows that it reads, those of train first.

    Raises:
        ConfigError: the store has no cases or no controls of the target in a split.
    """

    def __init__(
        self,
        model: MaskedAutoencoder,
        target: str,
        store: StoreReader,
        config: Config,
        ranks: Ranks,
        select: str | None,
        *,
        batch_size: int,
        normalisation: Normalisation,
    ) -> None:
        self._encoder = _MeanOfPatches(model)
        self._task = task_of(target)
        records = labelled_records(store, self._task, select).records
        train = without_splits(store, records.train, "valid", "test")
        valid = without_splits(store, records.valid, "test")
        for name, rows in (("train", train), ("valid", valid)):
            if why := self._task.lacking(records.truth[rows], name):
                raise ConfigError(f"train.probe: without patients of other splits, {why}")
        self._ranks, self._strengths = ranks, config.finetune.probe_c
        self._truths = records.truth[train], records.truth[valid]
        self.rows = np.concatenate([train, valid])
        self._scorer = Scorer(
            store,
            config,
            ranks,
            self.rows,
            batch_size=batch_size,
            normalisation=normalisation,
        )

    def __call__(self) -> float | None:
        """AUROC on the records of valid; None of features that are not finite."""
        features_RD = self._scorer.logits(self._encoder)
        return self._ranks.ask_main(lambda: self._area(features_RD))

    def _area(self, features_RD: NDArray[np.float64]) -> float | None:
        if not np.isfinite(features_RD).all():
            return None
        taught, valid = self._truths
        parts = np.split(features_RD, [len(taught)])
        layer = chosen_layer(self._task, (parts[0], taught), (parts[1], valid), self._strengths)
        return self._task.area(layer.logits(parts[1])[:, 0], valid)


class _MeanOfPatches(nn.Module):
    """What an encoder gives a record: (B, D)."""

    def __init__(self, model: MaskedAutoencoder) -> None:
        super().__init__()
        self.model = model
        register_fsdp_forward_method(model, "encode")  # else only `forward` gathers the weights

    def forward(self, patches_BNP: Tensor) -> Tensor:
        return self.model.encode(patches_BNP)[:, 1:].mean(dim=1)


def _gather(own_GB: Tensor, ranks: Ranks) -> Tensor:
    """From (batch, record) on each rank, with any outputs, to all records in order."""
    if ranks.world_size == 1:
        return own_GB.flatten(0, 1)
    parts = [torch.empty_like(own_GB) for _ in range(ranks.world_size)]
    dist.all_gather(parts, own_GB)
    return torch.stack(parts, dim=1).flatten(0, 2)
