"""The encoder that pretraining and classification share, its patches and its positions."""

# B records, N patches, K kept patches, P padded patch length (256), C leads, T timesteps, D width

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from ecgfast_kernels.codec import COLUMN_TIMESTEPS, PATCH_WIDTH
from ecgfast_kernels.ops.masking import patch_embed_masked
from numpy.typing import NDArray
from torch import Tensor, nn

from ecgfast.errors import ConfigError, ShapeError
from ecgfast.model.block import NORM_EPS, Block, make_blocks, run_blocks
from ecgfast.records import NUM_LEADS
from ecgfast.settings import ModelConfig
from ecgfast.vocabulary import AttentionKernel, Fused, Kernels


class PatchEmbed(nn.Module):
    """Weights of the patch projection under the reference's names, as a (D, 1, 1, P) convolution.

    The projection runs in `ecgfast_kernels.ops.masking`, which never touches removed patches.
    """

    def __init__(self, patch_timesteps: int, width: int) -> None:
        super().__init__()
        kernel = (1, patch_timesteps)
        self.proj = nn.Conv2d(1, width, kernel_size=kernel, stride=kernel)

    def weight(self) -> Tensor:
        """The projection as a (D, 250) matrix; shares memory with the parameter."""
        return self.proj.weight.flatten(1)

    def bias(self) -> Tensor:
        """The projection's bias, (D,)."""
        assert self.proj.bias is not None
        return self.proj.bias


class Encoder(nn.Module):
    """Patch embedding, class token, fixed positions and transformer blocks.

    Args:
        config: architecture.
        kernels: implementation of the operators around the blocks.
        fused: kernels between a block's matrix products.
        leads: numbers of the twelve leads that it takes, ascending; their tokens have the
            positions that they have among all. None: all of `config`.
    """

    pos_embed: Tensor
    token_rows: Tensor | None  # (1 + N,) their rows in tables of positions; None: all

    def __init__(
        self,
        config: ModelConfig,
        *,
        kernels: Kernels = "auto",
        fused: Fused = "off",
        leads: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.kernels: Kernels = kernels
        width = config.encoder_width
        self.patch_embed = PatchEmbed(config.patch_timesteps, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.grid = config if leads is None else replace(config, num_leads=NUM_LEADS)
        self.register_buffer("pos_embed", grid_positions(self.grid, width))
        self.register_buffer("token_rows", None, persistent=False)
        if leads is not None:
            self.set_leads(leads)
        self.blocks = make_blocks(config.encoder_depth, width, config.encoder_heads, fused)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def set_leads(self, leads: Sequence[int]) -> None:
        """Take the patches of these leads of the grid alone; see `Encoder`."""
        self.config = replace(self.grid, num_leads=len(leads))
        columns = self.grid.num_timesteps // self.grid.patch_timesteps
        row_CN = torch.arange(self.grid.num_patches).view(-1, columns)
        row_N = 1 + row_CN[list(leads)].flatten().to(self.pos_embed.device)
        self.token_rows = torch.cat([row_N.new_zeros(1), row_N])

    def positions(self, table_1ND: Tensor) -> Tensor:
        """The rows of a table of the whole grid (1, 1 + N, D) for the tokens that there are."""
        return table_1ND[0] if self.token_rows is None else table_1ND[0, self.token_rows]

    @property
    def num_patches(self) -> int:
        """N, patches of a record that the encoder takes."""
        return self.config.num_patches

    @property
    def parts(self) -> dict[str, nn.ModuleList]:
        """Blocks by the name of their part, in which all have one attention shape."""
        return {"encoder": self.blocks}

    def set_attention(self, **kernels: AttentionKernel) -> None:
        """Set the attention kernel of parts, as `attention_choice` resolved it; before compiling.

        Args:
            kernels: by the name of a part; the others keep theirs, PyTorch's own choice at first.
        """
        for part, kernel in kernels.items():
            for block in self.parts[part]:
                assert isinstance(block, Block)
                block.attn.backend = kernel

    def encode_kept(
        self,
        patches_BNP: Tensor,
        ids_keep_BK: Tensor,
        kept_L2B: Tensor | None = None,
        *,
        depth: int | None = None,
    ) -> Tensor:
        """Encode the patches named in `ids_keep_BK` and nothing else.

        Args:
            patches_BNP: (B, N, 256) fp16, fp32 or fp64, z-scored units; last 6 columns zero.
            ids_keep_BK: (B, K) int64, ascending.
            kept_L2B: as for `run_blocks`.
            depth: blocks that are run, without the norm behind the last; None: all, and the norm.
        Returns:
            (B, 1 + K, D) tokens in the weights' dtype; the class token comes first.
        Raises:
            ShapeError: `patches_BNP` is not (B, N, 256).
        """
        if patches_BNP.ndim != 3 or patches_BNP.shape[1:] != (self.num_patches, PATCH_WIDTH):
            raise ShapeError(
                f"patches must be (B, {self.num_patches}, {PATCH_WIDTH}), got "
                f"{tuple(patches_BNP.shape)}; read them through ecgfast.build_loader"
            )
        tokens = patch_embed_masked(
            patches_BNP,
            ids_keep_BK,
            self.patch_embed.weight(),
            self.patch_embed.bias(),
            self.positions(self.pos_embed),
            self.cls_token[0, 0],
            backend=self.kernels,
        )
        if depth is not None:
            return run_blocks(self.blocks[:depth], None, tokens, kept_L2B)
        return run_blocks(self.blocks, self.norm, tokens, kept_L2B)

    def encode(
        self,
        patches_BNP: Tensor,
        kept_L2B: Tensor | None = None,
        *,
        depth: int | None = None,
    ) -> Tensor:
        """Encode all patches: (B, 1 + N, D) tokens; arguments as for `encode_kept`."""
        ids_N = torch.arange(self.num_patches, device=patches_BNP.device)
        ids_BN = ids_N.expand(len(patches_BNP), -1).contiguous()
        return self.encode_kept(patches_BNP, ids_BN, kept_L2B, depth=depth)


def grid_positions(config: ModelConfig, width: int) -> Tensor:
    """Position table of this record shape as the reference stores it: (1, 1 + N, D)."""
    columns = config.num_timesteps // config.patch_timesteps
    return sincos_positions(width, config.num_leads, columns)[None]


def unpatchify(
    patches_BNP: Tensor, *, num_leads: int, patch_timesteps: int = COLUMN_TIMESTEPS
) -> Tensor:
    """Put patches back together as a signal.

    Args:
        patches_BNP: (B, N, >= patch_timesteps); further columns are padding and left out.
        num_leads: C; patch n is column n % (N / C) of lead n // (N / C).
        patch_timesteps: length of a patch without padding.
    Returns:
        (B, C, T), same dtype.
    """
    num_records, num_patches, _ = patches_BNP.shape
    num_timesteps = num_patches // num_leads * patch_timesteps
    signal = patches_BNP[..., :patch_timesteps]
    return signal.reshape(num_records, num_leads, num_timesteps)


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
