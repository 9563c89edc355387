"""Sine-cosine positions: values by the formula, one row per place of the grid."""

import math

import pytest
import torch

from ecgfast.errors import ConfigError
from ecgfast.model.vit import sincos_positions


def test_values_follow_the_formula() -> None:
    table = sincos_positions(16, 12, 20)
    assert table.shape == (241, 16)
    assert torch.equal(table[0], torch.zeros(16))
    for lead, column in ((0, 0), (0, 7), (11, 19), (5, 3)):
        row = table[1 + lead * 20 + column]
        for offset, position in ((0, column), (8, lead)):
            for i in range(4):
                angle = position / 10000 ** (i / 4)
                assert row[offset + i] == pytest.approx(math.sin(angle), abs=1e-6)
                assert row[offset + 4 + i] == pytest.approx(math.cos(angle), abs=1e-6)


def test_no_two_places_look_alike() -> None:
    table = sincos_positions(32, 12, 20)
    distances = torch.cdist(table, table) + 10 * torch.eye(241)
    assert distances.min() > 0.1


def test_a_width_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 4"):
        sincos_positions(18, 12, 20)
