"""One logit per record, from an encoder or from the convolutional baseline."""

# B records, N patches, P padded patch length, D features

from torch import Tensor, nn

from ecgfast.model.block import NORM_EPS
from ecgfast.model.cnn import NUM_FEATURES, EcgCnn
from ecgfast.model.vit import Encoder
from ecgfast.vocabulary import Pool

HIDDEN = 64  # between the baseline's two last fully connected layers


class Classifier(nn.Module):
    """Binary classifier; a probability is the logit's sigmoid.

    Args:
        encoder: a ViT gets normalisation + one linear layer, a CNN two linear layers.
        pool: which ViT tokens are the record's features: the class token, or the patches' mean.
    """

    def __init__(self, encoder: Encoder | EcgCnn, *, pool: Pool = "cls") -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = pool
        self.head: nn.Sequential
        if isinstance(encoder, EcgCnn):
            self.head = nn.Sequential(
                nn.Linear(NUM_FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
            )
        else:
            width = encoder.config.encoder_width
            self.head = nn.Sequential(nn.LayerNorm(width, eps=NORM_EPS), nn.Linear(width, 1))

    def features(self, patches_BNP: Tensor) -> Tensor:
        """Features of each record: (B, D), D = 1024 for ViT-Large and 128 for the CNN."""
        if isinstance(self.encoder, EcgCnn):
            out: Tensor = self.encoder(patches_BNP)
            return out
        tokens_BTD = self.encoder.encode(patches_BNP)
        return tokens_BTD[:, 0] if self.pool == "cls" else tokens_BTD[:, 1:].mean(dim=1)

    def forward(self, patches_BNP: Tensor) -> Tensor:
        """Score records.

        Args:
            patches_BNP: (B, N, 256), z-scored units; the last 6 columns are zero.
        Returns:
            (B,) logits in the weights' dtype.
        """
        logits: Tensor = self.head(self.features(patches_BNP)).squeeze(-1)
        return logits


def encoder_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep the encoder's part of a masked autoencoder's state dict."""
    decoder = ("decoder_", "mask_token")
    return {name: value for name, value in state.items() if not name.startswith(decoder)}
