"""Probabilities of the records of a store."""

from typing import cast

import numpy as np
import torch

from ecgfast.data.normalise import Normalisation
from ecgfast.runs.scoring import score_rows
from ecgfast.store.reader import StoreReader


def test_no_record_has_no_probability() -> None:
    """Not even the store is looked at."""
    rows, store = np.zeros(0, np.int64), cast(StoreReader, None)
    found = score_rows(torch.nn.Identity(), store, rows, Normalisation(), name="a")
    assert found.shape == (0,)
