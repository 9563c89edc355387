"""Peers of the training step: a plain masked autoencoder as people run it today.

`ecgfast bench step` measures them beside ours. All patches are embedded, kept ones are chosen by
sorting noise and gathered, blocks are timm's. Nothing of ecgfast's model or kernels is used.
Shapes: B records, N patches, T tokens, D width.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ecgfast import log
from ecgfast.config import Config
from ecgfast.settings import ModelConfig


class ReferenceMae(nn.Module):
    """Masked autoencoder on a (B, 1, 12, 5000) signal.

    Args:
        config: architecture.
        mask_ratio: share of removed patches.
        fused_attention: SDPA; else softmax(q k^T) v in separate kernels, as the public code has it.

    Source: He et al. 2022, sections 3 and 4.
    """

    def __init__(
        self, config: ModelConfig, *, mask_ratio: float = 0.75, fused_attention: bool = False
    ) -> None:
        super().__init__()
        self.num_keep = int(config.num_patches * (1 - mask_ratio))
        self.patch = (1, config.patch_timesteps)
        width, narrow, tokens = config.encoder_width, config.decoder_width, 1 + config.num_patches
        self.patch_embed = nn.Conv2d(1, width, kernel_size=self.patch, stride=self.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, width) * 0.02, requires_grad=False)
        self.blocks = _blocks(width, config.encoder_heads, config.encoder_depth, fused_attention)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, narrow)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, narrow))
        self.decoder_pos_embed = nn.Parameter(
            torch.randn(1, tokens, narrow) * 0.02, requires_grad=False
        )
        self.decoder_blocks = _blocks(
            narrow, config.decoder_heads, config.decoder_depth, fused_attention
        )
        self.decoder_norm = nn.LayerNorm(narrow, eps=1e-6)
        self.decoder_pred = nn.Linear(narrow, config.patch_timesteps)

    def forward(self, signal_B1CT: Tensor) -> Tensor:
        """Mask at random and return the loss on removed, normalised patches."""
        latent, mask_BN, ids_restore_BN = self._encode(signal_B1CT)
        pred = self._decode(latent, ids_restore_BN)
        target = signal_B1CT.reshape(len(pred), -1, self.patch[1])
        mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        target = (target - mean) / (var + 1e-6).sqrt()
        loss_BN = (pred - target).square().mean(dim=-1)
        return (loss_BN * mask_BN).sum() / mask_BN.sum()

    def _encode(self, signal_B1CT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.patch_embed(signal_B1CT).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        batch, num_patches, width = tokens.shape
        ids_shuffle = torch.rand(batch, num_patches, device=tokens.device).argsort(dim=1)
        ids_restore = ids_shuffle.argsort(dim=1)
        ids_keep = ids_shuffle[:, : self.num_keep]
        tokens = tokens.gather(1, ids_keep[..., None].expand(-1, -1, width))
        mask = torch.ones(batch, num_patches, device=tokens.device)
        mask[:, : self.num_keep] = 0
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        tokens = torch.cat([cls, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens), mask.gather(1, ids_restore), ids_restore

    def _decode(self, latent: Tensor, ids_restore_BN: Tensor) -> Tensor:
        tokens = self.decoder_embed(latent)
        batch, kept, width = tokens.shape
        masked = self.mask_token.expand(batch, ids_restore_BN.shape[1] + 1 - kept, -1)
        patches = torch.cat([tokens[:, 1:], masked], dim=1)
        patches = patches.gather(1, ids_restore_BN[..., None].expand(-1, -1, width))
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]


def _blocks(width: int, num_heads: int, depth: int, fused_attention: bool) -> nn.ModuleList:
    block = import_module("timm.models.vision_transformer").Block
    norm = partial(nn.LayerNorm, eps=1e-6)
    blocks = [block(width, num_heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)]
    for block in blocks:
        block.attn.fused_attn = fused_attention
    return nn.ModuleList(blocks)


class Peer(NamedTuple):
    """The plain masked autoencoder: eager as published, or with SDPA and torch.compile."""

    compiled: bool  # torch.compile of the whole model, SDPA and fused AdamW
    graph: bool = False  # replayed from CUDA graphs ("reduce-overhead"), at its best microbatch

    def build(self, config: Config, device: torch.device, num_records: int) -> Callable[[], Tensor]:
        """One update on random records; it returns the loss."""
        shape = (num_records, 1, config.model.num_leads, config.model.num_timesteps)
        signal = torch.randn(shape, device=device)
        with device:
            model = ReferenceMae(
                config.model, mask_ratio=config.mask.ratio, fused_attention=self.compiled
            )
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=1e-4,
            betas=(config.optim.beta1, config.optim.beta2),
            fused=True if self.compiled else None,
        )
        mode = "reduce-overhead" if self.graph else "default"
        forward = torch.compile(model, dynamic=False, mode=mode) if self.compiled else model

        def step() -> Tensor:
            if self.graph:
                torch.compiler.cudagraph_mark_step_begin()  # the one before is done with its memory
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = forward(signal)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step


PEERS = {
    "reference-compiled-timm": Peer(compiled=True),
    "reference-compiled-timm-graph": Peer(compiled=True, graph=True),
    "reference-eager-timm": Peer(compiled=False),
}


def installed() -> dict[str, Peer]:
    """All peers where their blocks can be imported, else none."""
    if find_spec("timm") and find_spec("torchvision"):  # which timm imports
        return PEERS
    log.warning("step: the peers are left out: they need timm; pip install timm torchvision")
    return {}
