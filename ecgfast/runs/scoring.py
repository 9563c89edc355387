"""Scores of records: one loop for validation, reports and raw files.

Shapes: R records, B records of a batch, N patches, P padded patch length.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ecgfast import log
from ecgfast.data.loader import build_loader
from ecgfast.data.normalise import Normalisation
from ecgfast.store.reader import StoreReader

_BATCH = 64


@torch.no_grad()
def logits(model: nn.Module, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Score batches of records; the model is left in evaluation mode.

    Args:
        model: a classifier.
        batches: (B, N, P) patches each, on the model's device.
    Yields:
        (B,) fp32 logits of each batch.
    """
    model.eval()
    for patches_BNP in batches:
        yield model(patches_BNP).float()


def probabilities(model: nn.Module, batches: Iterable[Tensor]) -> Iterator[NDArray[np.float64]]:
    """Score batches of records; see `logits`.

    Yields:
        (B,) float64 in [0, 1] of each batch.
    """
    for logits_B in logits(model, batches):
        yield torch.sigmoid(logits_B.double()).cpu().numpy()


def score_rows(
    model: nn.Module,
    store: StoreReader,
    rows: NDArray[np.int64],
    normalisation: Normalisation,
    *,
    name: str,
) -> NDArray[np.float64]:
    """Score records of a store, on a GPU where there is one.

    Args:
        model: a classifier of a finished run, in fp32.
        store: an open store.
        rows: (R,) int64 rows.
        normalisation: of the run.
        name: of the run, for the progress bar.
    Returns:
        (R,) float64 in [0, 1].
    """
    if not len(rows):
        return np.zeros(0)
    store.check_digests(rows)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = build_loader(
        store,
        batch_size=_BATCH,
        engine="cpu",
        device=device,
        select=rows,
        drop_last=False,
        shuffle=False,
        normalise=normalisation,
    )
    parts = []
    batches = (batch.patches.float() for batch in loader)
    with log.progress(f"score {name}", total=len(rows)) as advance:
        for part in probabilities(model.to(device), batches):
            parts.append(part)
            advance(len(part))
    return np.concatenate(parts)
