"""One logit per record: from the encoder, or from the convolutional baseline that is here too."""

# B records, N patches, P padded patch length, C leads, T timesteps, D features, F filters

from torch import Tensor, nn

from ecgfast.model.block import NORM_EPS
from ecgfast.model.vit import Encoder, unpatchify
from ecgfast.settings import ModelConfig
from ecgfast.vocabulary import Pool

# (filters, kernel, pooling) of each temporal block, shared by the 12 leads.
TEMPORAL = ((16, 5, 2), (16, 5, 2), (32, 5, 4), (32, 3, 2), (64, 3, 2), (64, 3, 4))
SPATIAL_FILTERS = 128
NUM_FEATURES = 128
HIDDEN = 64  # between the baseline's two last fully connected layers


class EcgCnn(nn.Module):
    """12-lead convolutional network; `forward` gives features, `Classifier` puts the head on.

    Args:
        config: only the record's shape is used; widths are those of the source.

    Source: Attia et al. 2019, supplementary figure on the network's architecture.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        filters, length = 1, config.num_timesteps
        for width, kernel, pooling in TEMPORAL:
            layers += _temporal_block(filters, width, kernel, pooling)
            filters, length = width, length // pooling
        self.temporal = nn.Sequential(*layers)
        self.spatial = nn.Sequential(
            nn.Conv2d(filters, SPATIAL_FILTERS, kernel_size=(config.num_leads, 1), bias=False),
            nn.BatchNorm2d(SPATIAL_FILTERS),
            nn.ReLU(),
        )
        self.fc = nn.Linear(SPATIAL_FILTERS * length, NUM_FEATURES)

    def forward(self, patches_BNP: Tensor) -> Tensor:
        """Turn patches (B, N, 256) into features (B, 128) in the weights' dtype."""
        signal_BCT = unpatchify(
            patches_BNP,
            num_leads=self.config.num_leads,
            patch_timesteps=self.config.patch_timesteps,
        )
        image_B1CT = signal_BCT.to(self.fc.weight.dtype)[:, None]
        features_BF1T = self.spatial(self.temporal(image_B1CT))
        out: Tensor = self.fc(features_BF1T.flatten(1)).relu()
        return out


def _temporal_block(filters_in: int, filters: int, kernel: int, pooling: int) -> list[nn.Module]:
    return [
        nn.Conv2d(filters_in, filters, (1, kernel), padding=(0, kernel // 2), bias=False),
        nn.BatchNorm2d(filters),
        nn.ReLU(),
        nn.MaxPool2d((1, pooling)),
    ]


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
