"""Logits of a record: an encoder, what is read of its tokens, and a head."""

# B records, N patches, P padded patch length, C leads, D width, K outputs

from typing import Self

import torch
from torch import Tensor, nn

from ecgfast.model.block import NORM_EPS
from ecgfast.model.cnn import EcgCnn, Head, ResNet1dWang
from ecgfast.model.draws import Draws, kept_paths
from ecgfast.model.vit import Encoder
from ecgfast.settings import FinetuneConfig, ModelConfig
from ecgfast.vocabulary import Pool


class Classifier(nn.Module):
    """Encoder and head; what its outputs mean is a `runs.task.Task`.

    Args:
        encoder: a ViT gets normalisation + one linear layer, a CNN its own head.
        pool: which ViT tokens are the record's features: the class token, the patches' mean, or
            the mean and the maximum of each lead's patches, side by side.
        drop_path: share of branches that training leaves out in a ViT's last block.
        num_outputs: K.
        head_norm: whether a ViT's head normalises the features of each record.
    """

    def __init__(
        self,
        encoder: Encoder | EcgCnn | ResNet1dWang,
        *,
        pool: Pool = "cls",
        drop_path: float = 0.0,
        num_outputs: int = 1,
        head_norm: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = pool
        self.drop_path = drop_path
        self.is_frozen = False
        if isinstance(encoder, Encoder):
            width = num_features(encoder.config, pool)
            norm = [nn.LayerNorm(width, eps=NORM_EPS)] if head_norm else []
            self.head = Head(*norm, nn.Linear(width, num_outputs))
        else:
            self.head = encoder.head(num_outputs)

    def freeze(self) -> None:
        """Let the head alone learn, from features as they are in evaluation; before spreading."""
        self.is_frozen = True
        self.encoder.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of training or evaluation; a frozen encoder always evaluates."""
        super().train(mode)
        if self.is_frozen:
            self.encoder.eval()
        return self

    @torch.no_grad()
    def begin_at(self, logits_K: Tensor) -> None:
        """Let every record have the same logits: no weights in the last layer, and its bias."""
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        last.weight.zero_()
        last.bias.copy_(logits_K)

    def features(self, patches_BNP: Tensor, draws: Draws | None = None) -> Tensor:
        """Features of each record: (B, D), D = 1024 for ViT-Large and 128 for the CNN."""
        encoder = self.encoder
        if not isinstance(encoder, Encoder):
            out: Tensor = encoder(patches_BNP, draws)
            return out
        kept = None
        if encoder.training and self.drop_path:
            assert draws is not None, "training with drop path needs draws"
            kept = kept_paths(draws, self.drop_path, len(encoder.blocks))
        tokens_BTD = encoder.encode(patches_BNP, kept)
        return pooled(tokens_BTD, self.pool, encoder.config.num_leads)

    def forward(self, patches_BNP: Tensor, draws: Draws | None = None) -> Tensor:
        """Score records.

        Args:
            patches_BNP: (B, N, 256), z-scored units; the last 6 columns are zero.
            draws: of these records, for what training leaves out; None in evaluation.
        Returns:
            (B,) logits of a single output, or (B, K) of several, in the weights' dtype.
        """
        logits: Tensor = self.head(self.features(patches_BNP, draws), draws).squeeze(-1)
        return logits


def num_features(config: ModelConfig, pool: Pool) -> int:
    """Width of what a ViT's head reads of a record."""
    return config.encoder_width * (2 * config.num_leads if pool == "lead_mean_max" else 1)


def pooled(tokens_BTD: Tensor, pool: Pool, num_leads: int) -> Tensor:
    """Features of each record from its tokens (B, 1 + N, D), the class token first.

    Returns:
        (B, D); (B, 2 * num_leads * D) with "lead_mean_max".
    """
    match pool:
        case "cls":
            return tokens_BTD[:, 0]
        case "mean":
            return tokens_BTD[:, 1:].mean(dim=1)
        case "lead_mean_max":
            by_lead_BCND = tokens_BTD[:, 1:].unflatten(1, (num_leads, -1))
            both = (by_lead_BCND.mean(dim=2), by_lead_BCND.amax(dim=2))
            return torch.stack(both, dim=2).flatten(1)


def layer_scale(name: str, depth: int, config: FinetuneConfig) -> float:
    """Factor of the learning rate of a classifier's parameter.

    Args:
        name: of the parameter.
        depth: blocks of its ViT, 0 for a CNN.
        config: of `layer_decay`.
    Returns:
        1 for the head and the norm before it, `layer_decay` less for each block on the way down;
        patch embedding and class token are below the first block.
    Source: Clark et al. 2020, appendix; as He et al. 2022 fine-tune, appendix A.1.
    """
    parts = name.split(".")
    if not depth or parts[0] != "encoder" or parts[1] == "norm":
        return 1.0
    place = int(parts[2]) if parts[1] == "blocks" else -1
    return config.layer_decay ** (depth - place)


def encoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep the encoder's part of a masked autoencoder's state dict."""
    decoder = ("decoder_", "mask_token")
    return {name: value for name, value in state.items() if not name.startswith(decoder)}
