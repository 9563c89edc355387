"""The encoder that pretraining and classification share."""

# B records, N patches, K kept patches, D width

import torch
from ecgfast_kernels.ops.patch_embed import patch_embed_masked
from torch import Tensor, nn

from ecgfast.config import ModelConfig
from ecgfast.errors import ShapeError
from ecgfast.model.block import NORM_EPS, set_attention
from ecgfast.model.fused_block import make_blocks, run_blocks
from ecgfast.model.patch import PADDED, PatchEmbed
from ecgfast.model.positions import sincos_positions
from ecgfast.vocabulary import AttentionKernel, Fused, Kernels


class Encoder(nn.Module):
    """Patch embedding, class token, fixed positions and transformer blocks.

    Args:
        config: architecture.
        kernels: who runs the operators around the blocks.
        attention: attention kernel of every block; `attention_choice` finds the fastest.
        fused: who does what lies between a block's matrix products.
    """

    pos_embed: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        kernels: Kernels = "auto",
        attention: AttentionKernel = "auto",
        fused: Fused = "off",
    ) -> None:
        super().__init__()
        self.config = config
        self.kernels: Kernels = kernels
        width = config.encoder_width
        self.patch_embed = PatchEmbed(config.patch_timesteps, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", grid_positions(config, width))
        self.blocks = make_blocks(config.encoder_depth, width, config.encoder_heads, fused)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        set_attention(self.blocks, attention)

    @property
    def num_patches(self) -> int:
        """N, patches per record."""
        return self.config.num_patches

    def encode_kept(self, patches_BNP: Tensor, ids_keep_BK: Tensor) -> Tensor:
        """Encode the patches named in `ids_keep_BK` and nothing else.

        Args:
            patches_BNP: (B, N, 256) fp16, fp32 or fp64, z-scored units; last 6 columns zero.
            ids_keep_BK: (B, K) int64, ascending.
        Returns:
            (B, 1 + K, D) normalised tokens in the weights' dtype; the class token comes first.
        Raises:
            ShapeError: `patches_BNP` is not (B, N, 256).
        """
        if patches_BNP.ndim != 3 or patches_BNP.shape[1:] != (self.num_patches, PADDED):
            raise ShapeError(
                f"patches must be (B, {self.num_patches}, {PADDED}), got "
                f"{tuple(patches_BNP.shape)}; read them through ecgfast.build_loader"
            )
        tokens = patch_embed_masked(
            patches_BNP,
            ids_keep_BK,
            self.patch_embed.weight(),
            self.patch_embed.bias(),
            self.pos_embed[0],
            self.cls_token[0, 0],
            backend=self.kernels,
        )
        return run_blocks(self.blocks, self.norm, tokens)

    def encode(self, patches_BNP: Tensor) -> Tensor:
        """Encode all patches, for classification; (B, 1 + N, D) normalised tokens."""
        ids_N = torch.arange(self.num_patches, device=patches_BNP.device)
        return self.encode_kept(patches_BNP, ids_N.expand(len(patches_BNP), -1).contiguous())


def grid_positions(config: ModelConfig, width: int) -> Tensor:
    """Position table of this record shape as the reference stores it: (1, 1 + N, D)."""
    columns = config.num_timesteps // config.patch_timesteps
    return sincos_positions(width, config.num_leads, columns)[None]
