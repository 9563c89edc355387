"""The epoch order: a permutation, the same from C++ and NumPy, uniform, different every epoch."""

import time

import numpy as np
import pytest
from codec_signals import NATIVE
from ecgfast_kernels.order import _keys, epoch_order
from ecgfast_kernels.philox import split_seed


@pytest.mark.parametrize("num_records", [0, 1, 2, 3, 16, 63, 64, 65, 511, 512, 513, 4096, 70_001])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**63 - 1, 1599), (12345, 2**32 - 1)])
def test_is_the_stable_argsort_of_the_keys(num_records: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_records, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    truth = np.argsort(_keys(num_records, split_seed(seed), epoch), kind="stable")
    np.testing.assert_array_equal(order, truth)


def test_seed_and_epoch_matter() -> None:
    orders = [epoch_order(1000, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0), (1 << 32, 0))]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 10  # one fixed point is expected


def test_every_record_is_equally_likely_everywhere() -> None:
    num_records, epochs = 20, 4000
    counts = np.zeros((num_records, num_records))
    for epoch in range(epochs):
        counts[np.arange(num_records), epoch_order(num_records, seed=7, epoch=epoch)] += 1
    expected = epochs / num_records
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    # (20 - 1)^2 = 361 degrees of freedom: mean 361, standard deviation 27; five of them.
    assert 361 - 5 * 27 < chi_squared < 361 + 5 * 27


@pytest.mark.parametrize(("n", "epoch"), [(-1, 0), (1, -1), (1, 1 << 32)])
def test_arguments_are_checked(n: int, epoch: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        epoch_order(n, seed=0, epoch=epoch)


@pytest.mark.slow
@pytest.mark.skipif(not NATIVE, reason="the native codec was not built")
def test_ten_million() -> None:
    start = time.process_time()
    order = epoch_order(10_000_000, seed=1, epoch=3)
    assert time.process_time() - start < 3  # half a second on an idle core
    assert np.bincount(order, minlength=10_000_000).max() == 1
