"""The masked autoencoder: encode the kept patches, predict the removed ones; and its size."""

# B records, N patches, K kept patches, P padded patch length, D encoder width, E decoder width

from collections.abc import Sequence

from ecgfast_kernels.codec import PATCH_WIDTH
from ecgfast_kernels.ops.masked_loss import masked_mse
from ecgfast_kernels.ops.masking import unshuffle
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import linear, pad

from ecgfast.errors import ConfigError
from ecgfast.model.block import NORM_EPS, make_blocks, run_blocks
from ecgfast.model.vit import Encoder, grid_positions
from ecgfast.settings import ModelConfig
from ecgfast.vocabulary import Fused, Kernels

# Held-out records are scored with masks that no training epoch draws, always the same.
EVALUATION_EPOCH = 2**32 - 1


class MaskedAutoencoder(Encoder):
    """ViT masked autoencoder with the state-dict names of the reference implementation.

    Masks and data come from outside, so the same call gives the same result anywhere.

    Args:
        config: architecture.
        norm_patch_loss: predict patches normalised to zero mean and unit variance.
        kernels: implementation of masking, embedding, unshuffling and the loss.
        fused: kernels between a block's matrix products.
        leads: as for `Encoder`; the decoder predicts their patches alone.

    Source: He et al. 2022, sections 3 and 4.
    """

    decoder_pos_embed: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        norm_patch_loss: bool = True,
        kernels: Kernels = "auto",
        fused: Fused = "off",
        leads: Sequence[int] | None = None,
    ) -> None:
        super().__init__(config, kernels=kernels, fused=fused, leads=leads)
        self.norm_patch_loss = norm_patch_loss
        width = config.decoder_width
        self.decoder_embed = nn.Linear(config.encoder_width, width)
        self.mask_token = Parameter(self.cls_token.new_zeros(1, 1, width))
        self.register_buffer("decoder_pos_embed", grid_positions(self.grid, width))
        self.decoder_blocks = make_blocks(config.decoder_depth, width, config.decoder_heads, fused)
        self.decoder_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(width, config.patch_timesteps)

    @property
    def parts(self) -> dict[str, nn.ModuleList]:
        """Blocks by the name of their part."""
        return {**super().parts, "decoder": self.decoder_blocks}

    def forward(
        self,
        patches_BNP: Tensor,
        ids_keep_BK: Tensor,
        ids_restore_BN: Tensor,
        mask_BN: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Predict every patch from the kept ones.

        Args:
            patches_BNP: (B, N, 256), z-scored units; the last 6 columns are zero.
            ids_keep_BK: (B, K) int64 kept patches, ascending.
            ids_restore_BN: (B, N) int64 place of patch n among kept then removed patches.
            mask_BN: (B, N) bool, True = removed.
        Returns:
            loss: scalar, mean squared error over the removed patches.
            pred_BNP: (B, N, 250), in normalised patch units when `norm_patch_loss`.
        Raises:
            ShapeError: the shapes disagree.
        """
        latent = self.encode_kept(patches_BNP, ids_keep_BK)
        pred = self._decode(latent, ids_restore_BN)
        loss = masked_mse(
            pred, patches_BNP, mask_BN, norm_patch=self.norm_patch_loss, backend=self.kernels
        )
        return loss, pred

    def _decode(self, latent_BTD: Tensor, ids_restore_BN: Tensor) -> Tensor:
        tokens = unshuffle(
            self.decoder_embed(latent_BTD),
            ids_restore_BN,
            self.mask_token[0, 0],
            self.positions(self.decoder_pos_embed),
            backend=self.kernels,
        )
        tokens = run_blocks(self.decoder_blocks, self.decoder_norm, tokens)
        return self._predict(tokens)[:, 1:, : self.config.patch_timesteps]

    def _predict(self, tokens_BTE: Tensor) -> Tensor:
        """Project to 256 columns: a GEMM of 250 columns misses the tensor cores' fast path."""
        missing = PATCH_WIDTH - self.config.patch_timesteps
        weight = pad(self.decoder_pred.weight, (0, 0, 0, missing))
        return linear(tokens_BTE, weight, pad(self.decoder_pred.bias, (0, missing)))


def num_kept(num_patches: int, mask_ratio: float) -> int:
    """K, the patches that a mask of this ratio keeps of N.

    Raises:
        ConfigError: the ratio is outside [0, 1) or keeps no patch.
    """
    kept = int(num_patches * (1 - mask_ratio))
    if not 0 < kept <= num_patches:
        raise ConfigError(
            f"mask.ratio must be in [0, 1) and keep at least one of {num_patches} patches, got "
            f"{mask_ratio}"
        )
    return kept


def flops_per_record(config: ModelConfig, mask_ratio: float = 0.75, *, train: bool = True) -> float:
    """Operations of one record through the masked autoencoder.

    A matrix product of m x k by k x n counts 2 m n k; attention counts 4 T^2 D per layer; norms,
    GELU and softmax count nothing. The patch embedding counts kept patches only.

    Args:
        config: architecture of kind "vit".
        mask_ratio: share of removed patches.
        train: forward and backward (3 x forward) instead of forward alone.
    Raises:
        ConfigError: the model is not a ViT.
    """
    if config.kind != "vit":
        raise ConfigError(f"model.kind must be 'vit' to count its operations, got {config.kind!r}")
    num_keep = num_kept(config.num_patches, mask_ratio)
    encoder_tokens, decoder_tokens = 1 + num_keep, 1 + config.num_patches
    forward = (
        2.0 * num_keep * config.patch_timesteps * config.encoder_width
        + config.encoder_depth * _block_flops(encoder_tokens, config.encoder_width)
        + 2.0 * encoder_tokens * config.encoder_width * config.decoder_width
        + config.decoder_depth * _block_flops(decoder_tokens, config.decoder_width)
        + 2.0 * decoder_tokens * config.decoder_width * config.patch_timesteps
    )
    return 3 * forward if train else forward


def num_parameters(config: ModelConfig) -> tuple[int, int]:
    """Trainable parameters of encoder and decoder, by formula."""
    width, dec = config.encoder_width, config.decoder_width
    patch = (config.patch_timesteps + 1) * width
    encoder = patch + width + config.encoder_depth * _block_parameters(width) + 2 * width
    decoder = (
        (width + 1) * dec
        + dec
        + config.decoder_depth * _block_parameters(dec)
        + 2 * dec
        + (dec + 1) * config.patch_timesteps
    )
    return encoder, decoder


def _block_flops(num_tokens: int, width: int) -> float:
    matmuls = 2.0 * num_tokens * 12 * width * width  # qkv 3, proj 1, mlp 8
    return matmuls + 4.0 * num_tokens**2 * width


def _block_parameters(width: int) -> int:
    return 12 * width * width + 13 * width  # biases 3 + 1 + 4 + 1, two norms 2 + 2
