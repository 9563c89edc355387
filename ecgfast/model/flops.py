"""Floating point operations of a model, by formula: what MFU is measured against."""

from ecgfast.config import ModelConfig
from ecgfast.errors import ConfigError


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
    num_keep = int(config.num_patches * (1 - mask_ratio))
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
