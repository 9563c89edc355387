"""Batches of a rank: the union over ranks is the epoch's order, for any world size and position."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ecgfast.data.order import epoch_order, rank_batches


def _all_ranks(
    order: NDArray[np.int64],
    *,
    batch_size: int,
    world_size: int,
    position: int = 0,
    drop_last: bool = True,
) -> list[list[NDArray[np.int64]]]:
    return [
        rank_batches(
            order,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            position=position,
            drop_last=drop_last,
        )
        for rank in range(world_size)
    ]


@given(
    num_records=st.integers(1, 300),
    batch_size=st.integers(1, 17),
    world_size=st.integers(1, 4),
    drop_last=st.booleans(),
)
def test_ranks_share_an_epoch_without_loss(
    num_records: int, batch_size: int, world_size: int, drop_last: bool
) -> None:
    order = epoch_order(num_records, seed=7, epoch=3)
    stride = batch_size * world_size
    per_rank = _all_ranks(order, batch_size=batch_size, world_size=world_size, drop_last=drop_last)
    steps = max(len(batches) for batches in per_rank)
    seen = [b[step] for step in range(steps) for b in per_rank if step < len(b)]
    expected = order[: num_records // stride * stride] if drop_last else order
    np.testing.assert_array_equal(np.concatenate([*seen, order[:0]]), expected)


def test_global_batches_do_not_depend_on_the_world_size() -> None:
    order = epoch_order(1000, seed=1, epoch=0)
    alone = _all_ranks(order, batch_size=48, world_size=1)[0]
    for world_size in (2, 3, 4):
        ranks = _all_ranks(order, batch_size=48 // world_size, world_size=world_size)
        for step, batch in enumerate(alone):
            np.testing.assert_array_equal(np.concatenate([r[step] for r in ranks]), batch)


def test_a_position_continues_where_another_world_size_stopped() -> None:
    order = epoch_order(960, seed=1, epoch=2)
    whole = _all_ranks(order, batch_size=96, world_size=1)[0]
    rest = _all_ranks(order, batch_size=24, world_size=4, position=3 * 96)
    for step, batch in enumerate(whole[3:]):
        np.testing.assert_array_equal(np.concatenate([r[step] for r in rest]), batch)


def test_epochs_differ() -> None:
    first, second = (epoch_order(500, seed=0, epoch=epoch) for epoch in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.sort(second), np.arange(500))
