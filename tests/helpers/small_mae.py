"""A masked autoencoder small enough to check by hand, and inputs for it."""

import torch
from ecgfast_kernels.codec import PATCH_WIDTH
from ecgfast_kernels.ops.mask import random_mask
from torch import Tensor

from ecgfast.config import ModelConfig
from ecgfast.model import MaskedAutoencoder, initialise
from ecgfast.vocabulary import Fused

SMALL = ModelConfig(
    encoder_width=16,
    encoder_depth=2,
    encoder_heads=2,
    decoder_width=8,
    decoder_depth=1,
    decoder_heads=2,
    num_leads=3,
    num_timesteps=1000,
)
NUM_KEEP = 3


def small_model(
    dtype: torch.dtype = torch.float64, *, seed: int = 0, fused: Fused = "off"
) -> MaskedAutoencoder:
    """Model of 12 patches whose every parameter, biases too, is far from zero."""
    model = MaskedAutoencoder(SMALL, fused=fused)
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype)


def small_patches(num_records: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random patches (B, 12, 256) with zero padding."""
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(num_records, SMALL.num_patches, PATCH_WIDTH, generator=generator)
    patches[..., SMALL.patch_timesteps :] = 0
    return patches.to(dtype)


def small_masks(num_records: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (ids_keep, ids_restore, mask) that keep `NUM_KEEP` patches."""
    records = torch.arange(num_records)
    return random_mask(records, seed=3, epoch=0, num_patches=SMALL.num_patches, num_keep=NUM_KEEP)
