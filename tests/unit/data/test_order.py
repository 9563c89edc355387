"""Batches of a rank: the union over ranks is the epoch's order, for any world size and position."""

import numpy as np
from ecgfast_kernels.codec.philox import epoch_order
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ecgfast.data.loader import RankOrder


def _orders(
    num_records: int, *, world_size: int, global_batch: int, seed: int = 1
) -> list[RankOrder]:
    return [
        RankOrder(
            index=np.arange(num_records),
            batch_size=global_batch // world_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]


def _global_batches(
    orders: list[RankOrder], epoch: int, position: int = 0
) -> list[NDArray[np.int64]]:
    """What all ranks visit together in each step; they must agree on the number of steps."""
    steps = zip(*(order.batches(epoch, position) for order in orders), strict=True)
    return [np.concatenate(step) for step in steps]


@given(
    num_records=st.integers(1, 300),
    batch_size=st.integers(1, 17),
    world_size=st.integers(1, 4),
    drop_last=st.booleans(),
    position=st.integers(0, 300),
)
def test_ranks_share_what_is_left_without_loss(
    num_records: int, batch_size: int, world_size: int, drop_last: bool, position: int
) -> None:
    position = min(position, num_records)
    per_rank = []
    for rank in range(world_size):
        order = RankOrder(
            index=np.arange(num_records),
            batch_size=batch_size,
            seed=7,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
        )
        assert len(order) == len(order.batches(3))
        per_rank.append(order.batches(3, position))
    counts = [len(batches) for batches in per_rank]
    if drop_last:
        assert len(set(counts)) == 1  # a rank with one more would wait for the others for ever
        assert {len(batch) for batches in per_rank for batch in batches} <= {batch_size}
    steps = range(max(counts))
    seen = [batches[step] for step in steps for batches in per_rank if step < len(batches)]
    left = epoch_order(num_records, seed=7, epoch=3)[position:]
    stride = batch_size * world_size
    expected = left[: len(left) // stride * stride] if drop_last else left
    np.testing.assert_array_equal(np.concatenate([*seen, left[:0]]), expected)


def test_global_batches_do_not_depend_on_the_world_size() -> None:
    alone = _global_batches(_orders(1000, world_size=1, global_batch=48), epoch=0)
    for world_size in (2, 3, 4):
        together = _global_batches(_orders(1000, world_size=world_size, global_batch=48), epoch=0)
        for expected, got in zip(alone, together, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_a_position_continues_where_another_world_size_stopped() -> None:
    whole = _global_batches(_orders(960, world_size=1, global_batch=96), epoch=2)
    rest = _global_batches(_orders(960, world_size=4, global_batch=96), epoch=2, position=3 * 96)
    for expected, got in zip(whole[3:], rest, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_epochs_differ_and_a_selection_keeps_its_rows() -> None:
    order = RankOrder(index=np.arange(500) * 3, batch_size=100)
    first, second = (np.concatenate(order.batches(epoch)) for epoch in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.sort(second), np.arange(500) * 3)


def test_without_shuffling_rows_come_as_they_stand() -> None:
    index = np.array([4, 1, 9, 7, 0])
    (first, second) = RankOrder(index=index, batch_size=2, shuffle=False).batches(5)
    assert [first.tolist(), second.tolist()] == [[4, 1], [9, 7]]
