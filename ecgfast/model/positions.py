"""Fixed sine-cosine positions on the grid of leads x columns."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgfast.errors import ConfigError


def sincos_positions(width: int, num_leads: int, num_columns: int) -> Tensor:
    """Make the position table of a 12 x 20 token grid, with a zero row for the class token.

    Args:
        width: embedding width D, a multiple of 4.
        num_leads: rows of the grid.
        num_columns: patches per lead.
    Returns:
        (1 + num_leads * num_columns, D) fp32; token n = lead * num_columns + column. The first half
        of the width encodes the column, the second half the lead, each as sines then cosines.
    Raises:
        ConfigError: `width` is not a multiple of 4.
    Source: Vaswani et al. 2017, section 3.5, in two dimensions as He et al. 2022, appendix A.1.
    """
    if width % 4:
        raise ConfigError(
            f"model widths must be multiples of 4 for 2-D sine-cosine positions, got {width}"
        )
    lead_N, column_N = np.divmod(np.arange(num_leads * num_columns), num_columns)
    table_ND = np.concatenate([_waves(column_N, width // 2), _waves(lead_N, width // 2)], axis=1)
    with_class_token = np.concatenate([np.zeros((1, width)), table_ND])
    return torch.from_numpy(with_class_token.astype(np.float32))


def _waves(position_N: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    frequency = 10000.0 ** -(np.arange(width // 2) / (width // 2))
    angle = np.outer(position_N, frequency)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
