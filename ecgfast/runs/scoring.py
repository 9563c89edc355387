"""Probabilities that a classifier gives to records of a store."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ecgfast import log
from ecgfast.data.loader import build_loader
from ecgfast.data.normalise import CohortStatistics
from ecgfast.store.reader import StoreReader

_BATCH = 64


def probabilities(
    model: nn.Module,
    store: StoreReader,
    rows: NDArray[np.int64],
    *,
    normalise: str,
    cohort: CohortStatistics | None,
    name: str,
) -> NDArray[np.float64]:
    """Score records, on a GPU where there is one.

    Args:
        model: a classifier of a finished run, in fp32.
        store: an open store.
        rows: (n,) int64 rows.
        normalise: mode of the run.
        cohort: its statistics, where the mode needs any.
        name: of the run, for the progress bar.
    Returns:
        (n,) float64 in [0, 1].
    """
    if not len(rows):
        return np.zeros(0)
    store.check_digests(rows)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    loader = build_loader(
        store,
        batch_size=_BATCH,
        engine="cpu",
        device=device,
        select=rows,
        drop_last=False,
        shuffle=False,
        normalise=normalise,
        cohort=cohort,
    )
    parts = []
    with torch.inference_mode(), log.progress(f"score {name}", total=len(rows)) as advance:
        for batch in loader:
            logits = model(batch.patches.float())
            parts.append(torch.sigmoid(logits.double()).cpu().numpy())
            advance(len(logits))
    return np.concatenate(parts)
