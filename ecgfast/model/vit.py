"""Vision transformer blocks, and the encoder that pretraining and classification share."""

# B records, N patches, K kept patches, T tokens, P padded patch length, D width, H heads

from typing import Literal

import torch
from ecgfast_kernels.gelu import bias_gelu
from ecgfast_kernels.norm import add_layer_norm, fork_layer_norm
from ecgfast_kernels.patch_embed import patch_embed_masked
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from ecgfast.config import ModelConfig
from ecgfast.errors import ConfigError, ShapeError
from ecgfast.model.attention import Backend, attention
from ecgfast.model.patch import PADDED, PatchEmbed
from ecgfast.model.positions import sincos_positions

Kernels = Literal["auto", "triton", "reference"]
NORM_EPS = 1e-6
MLP_RATIO = 4


class Attention(nn.Module):
    """Multi-head self-attention; `backend` names the kernel."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ConfigError(f"model width {width} must be a multiple of its {num_heads} heads")
        self.num_heads = num_heads
        self.backend: Backend = "auto"
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Mix the tokens of each record; same shape."""
        out: Tensor = self.proj(self.mix(tokens_BTD))
        return out

    def mix(self, tokens_BTD: Tensor) -> Tensor:
        """Attention without the projection after it; same shape."""
        batch, num_tokens, width = tokens_BTD.shape
        heads = (3, self.num_heads, width // self.num_heads)
        if self.backend == "triton":  # its backward sums the bias's gradient on the way
            qkv = linear(tokens_BTD, self.qkv.weight, self.qkv.bias.detach())
            bias = self.qkv.bias.view(heads)
            return attention(qkv.view(batch, num_tokens, *heads), self.backend, bias_3HK=bias)
        return attention(self.qkv(tokens_BTD).view(batch, num_tokens, *heads), self.backend)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Transform each token by itself; same shape."""
        out: Tensor = self.fc2(gelu(self.fc1(tokens_BTD)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block: the unit of compilation and of sharding.

    `fused` runs everything between the matrix products in our own kernels, which sum the gradients
    of biases and norms in the passes that they make anyway; otherwise torch.compile fuses.

    Source: Dosovitskiy et al. 2021, equations 2 and 3.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.fused = False
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width)

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Apply attention and MLP with their residuals; same shape."""
        if self.fused:
            return self._forward_fused(tokens_BTD)
        tokens_BTD = tokens_BTD + self.attn(self.norm1(tokens_BTD))
        out: Tensor = tokens_BTD + self.mlp(self.norm2(tokens_BTD))
        return out

    def _forward_fused(self, tokens_BTD: Tensor) -> Tensor:
        norm1, norm2, proj = self.norm1, self.norm2, self.attn.proj
        fc1, fc2 = self.mlp.fc1, self.mlp.fc2
        tokens_BTD, normal = fork_layer_norm(tokens_BTD, norm1.weight, norm1.bias, eps=NORM_EPS)
        mixed = linear(self.attn.mix(normal), proj.weight)
        tokens_BTD, normal = add_layer_norm(
            tokens_BTD, mixed, proj.bias, norm2.weight, norm2.bias, eps=NORM_EPS
        )
        hidden = bias_gelu(linear(normal, fc1.weight), fc1.bias)
        out: Tensor = tokens_BTD + fc2(hidden)
        return out


class Encoder(nn.Module):
    """Patch embedding, class token, fixed positions and transformer blocks.

    Args:
        config: architecture.
        kernels: who runs the operators around the blocks.
        attention: attention kernel of every block; `attention_choice` finds the fastest.
    """

    pos_embed: Tensor

    def __init__(
        self, config: ModelConfig, *, kernels: Kernels = "auto", attention: Backend = "auto"
    ) -> None:
        super().__init__()
        self.config = config
        self.kernels: Kernels = kernels
        width = config.encoder_width
        self.patch_embed = PatchEmbed(config.patch_timesteps, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", grid_positions(config, width))
        self.blocks = nn.ModuleList(
            Block(width, config.encoder_heads) for _ in range(config.encoder_depth)
        )
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
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.norm(tokens)
        return out

    def encode(self, patches_BNP: Tensor) -> Tensor:
        """Encode all patches, for classification; (B, 1 + N, D) normalised tokens."""
        ids_N = torch.arange(self.num_patches, device=patches_BNP.device)
        return self.encode_kept(patches_BNP, ids_N.expand(len(patches_BNP), -1).contiguous())


def set_attention(blocks: nn.ModuleList, backend: Backend) -> None:
    """Let every block run its attention on `backend`; call it before compiling."""
    for block in blocks:
        assert isinstance(block, Block)
        block.attn.backend = backend


def set_fused(model: nn.Module, fused: bool) -> None:
    """Let every block of `model` run between its matrix products on our own kernels, or not."""
    for module in model.modules():
        if isinstance(module, Block):
            module.fused = fused


def grid_positions(config: ModelConfig, width: int) -> Tensor:
    """Position table of this record shape as the reference stores it: (1, 1 + N, D)."""
    columns = config.num_timesteps // config.patch_timesteps
    return sincos_positions(width, config.num_leads, columns)[None]
