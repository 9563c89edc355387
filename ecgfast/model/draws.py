"""What training draws at random for each record: changes of its signal, and what is left out.

Every number is a function of (seed, record, epoch, purpose): the same for any batch, number of
ranks, device, and after a resume.
"""

# B records, C leads, T timesteps, N patches, P padded patch length, K numbers of a record

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from ecgfast_kernels.codec.philox import ORDER_DOMAIN, philox_rounds, split_seed
from torch import Tensor, nn
from torch.nn.functional import pad

from ecgfast.model.vit import unpatchify
from ecgfast.settings import AugmentConfig


class Purpose(IntEnum):
    """What numbers are for; each has 2^24 counters of four words behind those of the order."""

    SHIFT = 1
    LEADS = 2
    NOISE = 3
    PATHS = 4
    UNITS = 5

    @property
    def domain(self) -> int:
        """First Philox domain of this purpose."""
        return ORDER_DOMAIN + (self.value << 24)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Random numbers of the records of a batch.

    Attributes:
        seed: of the run.
        record_index: (B,) int64 rows of the store.
        epoch: of the batch.
    """

    seed: int
    record_index: Tensor
    epoch: int

    def uniform(self, purpose: Purpose, count: int, *, layer: int = 0) -> Tensor:
        """(B, count) fp32 in [0, 1), each a multiple of 2^-24; each layer has its own."""
        return (self._words(purpose.domain + (layer << 16), count) >> 8).float() * 2.0**-24

    def normal(self, purpose: Purpose, count: int) -> Tensor:
        """(B, count) fp32 of mean 0 and variance 1.

        Source: Box and Muller 1958.
        """
        half = -(-count // 2)
        radius, angle = self.uniform(purpose, 2 * half).split(half, dim=1)
        radius = (-2 * torch.log1p(-radius)).sqrt()  # 1 - radius is above 0
        angle = 2 * math.pi * angle
        return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]

    def _words(self, first: int, count: int) -> Tensor:
        """(B, count) int64 in [0, 2^32), from the Philox counter `first` on."""
        record_B1 = self.record_index[:, None]
        counter_K = torch.arange(-(-count // 4), device=record_B1.device) + first
        low, high = record_B1 & 0xFFFFFFFF, record_B1 >> 32
        epoch = torch.full_like(low, self.epoch)
        words = philox_rounds((low, high, epoch, counter_K), split_seed(self.seed))
        return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)[:, :count]


def augmented(
    patches_BNP: Tensor, draws: Draws, config: AugmentConfig, *, num_leads: int
) -> Tensor:
    """Change records at random: noise, then a shift in time, then leads that are lost.

    Args:
        patches_BNP: (B, N, 256), normalised units; the last 6 columns are zero.
        draws: of these records.
        config: how much; with its defaults the patches come back as they are.
        num_leads: C.
    Returns:
        (B, N, 256), same dtype.
    """
    if config == AugmentConfig():
        return patches_BNP
    signal_BCT = unpatchify(patches_BNP, num_leads=num_leads).float()
    num_records, _, num_timesteps = signal_BCT.shape
    if config.noise:
        noise = draws.normal(Purpose.NOISE, num_leads * num_timesteps).view_as(signal_BCT)
        signal_BCT = signal_BCT + config.noise * noise
    if config.shift_timesteps:
        signal_BCT = _shifted(signal_BCT, draws, config.shift_timesteps)
    if config.lead_dropout:
        uniform_BC = draws.uniform(Purpose.LEADS, num_leads)
        stays_BC = (uniform_BC >= config.lead_dropout) | (uniform_BC == uniform_BC.amax(1, True))
        signal_BCT = signal_BCT * stays_BC[..., None]
    timesteps = num_leads * num_timesteps // patches_BNP.shape[1]
    changed = signal_BCT.view(num_records, -1, timesteps).to(patches_BNP.dtype)
    return pad(changed, (0, patches_BNP.shape[2] - timesteps))


def _shifted(signal_BCT: Tensor, draws: Draws, largest: int) -> Tensor:
    """Move each record by up to `largest` timesteps: a random crop of the record among zeros."""
    uniform_B1 = draws.uniform(Purpose.SHIFT, 1)
    shift_B1 = (uniform_B1 * (2 * largest + 1)).long() - largest
    index_BT = torch.arange(signal_BCT.shape[2], device=signal_BCT.device) - shift_B1
    inside_BT = (index_BT >= 0) & (index_BT < signal_BCT.shape[2])
    index_B1T = (index_BT * inside_BT)[:, None]
    return signal_BCT.gather(2, index_B1T.expand_as(signal_BCT)) * inside_BT[:, None]


def kept_paths(draws: Draws, largest: float, depth: int) -> Tensor | None:
    """Factors of the branches of a transformer's blocks: 0 where one is left out of a record.

    Args:
        draws: of the records.
        largest: share left out in the last block; it rises linearly from the first one.
        depth: number of blocks.
    Returns:
        (depth, 2, B) fp32: attention and MLP, 1 / (share that stays) where they stay, so that the
        mean is 1; None where nothing is left out.
    Source: Huang et al. 2016, section 3.
    """
    if not largest:
        return None
    uniform_BL2 = draws.uniform(Purpose.PATHS, 2 * depth).unflatten(1, (depth, 2))
    share_L1 = torch.arange(1, depth + 1, device=uniform_BL2.device)[:, None] * (largest / depth)
    factor_BL2: Tensor = (uniform_BL2 >= share_L1) / (1 - share_L1)
    return factor_BL2.permute(1, 2, 0)


class Dropout(nn.Module):
    """Leaves out units in training, as `Draws` say.

    Args:
        share: of the units.
        number: of this layer among those of its model, so that each has numbers of its own.

    Source: Srivastava et al. 2014, section 4.
    """

    def __init__(self, share: float, number: int) -> None:
        super().__init__()
        self.share = share
        self.number = number

    def forward(self, features_BK: Tensor, draws: Draws | None) -> Tensor:
        """Set some features to 0 and scale the others, so that the mean stays; same shape."""
        if not self.training:
            return features_BK
        assert draws is not None, "training with dropout needs draws"
        uniform_BK = draws.uniform(Purpose.UNITS, features_BK.shape[1], layer=self.number)
        return features_BK * (uniform_BK >= self.share) / (1 - self.share)
