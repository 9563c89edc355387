"""Engine dali with its CPU operator: short batches, damage; test_engines.py has what all share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from changed_stores import flip_a_bit
from recordings import make_store

from ecgfast.data.batch import Source
from ecgfast.data.dali import DaliEngine
from ecgfast.data.loader import build_loader
from ecgfast.data.normalise import Normalisation
from ecgfast.errors import CorruptStoreError
from ecgfast.store.reader import open_store

pytest.importorskip("nvidia.dali", reason="DALI is not installed")
pytestmark = pytest.mark.usefixtures("dali_cache")


@pytest.mark.parametrize("batch_size", [1, 10, 23, 30])
def test_batches_have_their_own_length(tmp_path: Path, batch_size: int) -> None:
    path, _ = make_store(tmp_path, 23)
    loader = build_loader(open_store(path), engine="dali", batch_size=batch_size, drop_last=False)
    lengths = [len(batch.patches) for batch in loader]
    assert lengths == [batch_size] * (23 // batch_size) + [23 % batch_size] * (23 % batch_size > 0)


@pytest.mark.parametrize("codec", ["ecgpack", "none"])
def test_a_damaged_record_is_named(tmp_path: Path, codec: str) -> None:
    path, _ = make_store(tmp_path, 8, codec=codec)
    flip_a_bit(path, 6)
    loader = build_loader(open_store(path), engine="dali", batch_size=2)
    with pytest.raises(CorruptStoreError, match=r"record 6 .*is damaged"):
        list(loader)


def test_checksums_are_compared_before_an_upload(tmp_path: Path) -> None:
    """The GPU compares none; `_check_crc` runs on the host and leaves the bytes as they were."""
    path, _ = make_store(tmp_path, 8)
    store = open_store(path)
    mean, rstd = Normalisation().mean_and_rstd(store)
    source = Source(store=store, mean=mean, rstd=rstd, device=torch.device("cpu"))
    engine, index = DaliEngine(source), np.array([6, 2, 6])
    chunks = store.read_chunks(index)
    before = chunks[0].copy()
    engine._check_crc(index, chunks)
    np.testing.assert_array_equal(chunks[0], before)
    chunks[0][chunks[1][1] + 40] ^= 1
    with pytest.raises(CorruptStoreError, match="record 2 is damaged"):
        engine._check_crc(index, chunks)
