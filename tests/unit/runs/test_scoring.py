"""Probabilities of the records of a store."""

from typing import cast

import numpy as np
import torch

from ecgfast.runs.scoring import probabilities
from ecgfast.store.reader import StoreReader


def test_no_record_has_no_probability() -> None:
    """Not even the store is looked at."""
    rows, store = np.zeros(0, np.int64), cast(StoreReader, None)
    found = probabilities(
        torch.nn.Identity(), store, rows, normalise="record", cohort=None, name="a"
    )
    assert found.shape == (0,)
