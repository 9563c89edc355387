"""A masked autoencoder small enough to check by hand, inputs for it, and thirty training steps."""

import torch
from checks import DEVICE
from ecgfast_kernels.codec import PATCH_WIDTH
from ecgfast_kernels.ops.masking import random_mask
from torch import Tensor

from ecgfast.config import Config
from ecgfast.model import MaskedAutoencoder, initialise
from ecgfast.model.build import build_model
from ecgfast.settings import ModelConfig
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


NUM_STEPS = 30


def losses_of(
    kernels: str, model: ModelConfig, *, batch: int, dtype: torch.dtype, lr: float = 1e-3
) -> list[float]:
    """Train on waves of random frequency and return the loss of every step.

    Args:
        kernels: "triton" or "reference"; runs masking too.
        model: architecture.
        batch: records per step.
        dtype: of weights and activations; AdamW's state follows.
        lr: learning rate, constant.
    """
    mae = build_model(Config(kernels=kernels, attention="math", model=model)).to(DEVICE, dtype)
    optimizer = torch.optim.AdamW(mae.parameters(), lr=lr, betas=(0.9, 0.95))
    num_patches, length = model.num_patches, model.patch_timesteps
    losses = []
    for step in range(NUM_STEPS):
        records_B = torch.arange(batch, device=DEVICE) + step * batch
        masks = random_mask(
            records_B,
            seed=0,
            epoch=0,
            num_patches=num_patches,
            num_keep=num_patches // 4,
            backend=kernels,
        )
        loss, _ = mae(_waves(records_B, num_patches, length), *masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [loss.item() for loss in losses]


def _waves(records_B: torch.Tensor, num_patches: int, length: int) -> torch.Tensor:
    """Sines whose frequency and phase belong to the record: (B, N, 256) fp16."""
    time = torch.arange(num_patches * length, device=records_B.device).double()
    record = records_B.double()[:, None]
    signal = torch.sin(time * (0.02 + 0.001 * (record % 37)) + record)
    patches = signal.unflatten(1, (num_patches, length))
    return torch.nn.functional.pad(patches, (0, 256 - length)).half()
