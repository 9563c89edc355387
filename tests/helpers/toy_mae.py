"""Thirty AdamW steps of a masked autoencoder with either implementation of the ops."""

import torch
from checks import DEVICE
from ecgfast_kernels.ops.mask import random_mask

from ecgfast.config import Config, ModelConfig
from ecgfast.model.build import build_model

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
