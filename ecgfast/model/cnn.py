"""The convolutional baseline: six temporal blocks, one spatial block, 128 features."""

# B records, C leads, T timesteps, F filters

from torch import Tensor, nn

from ecgfast.config import ModelConfig
from ecgfast.model.patch import unpatchify

# (filters, kernel, pooling) of each temporal block, shared by the 12 leads.
TEMPORAL = ((16, 5, 2), (16, 5, 2), (32, 5, 4), (32, 3, 2), (64, 3, 2), (64, 3, 4))
SPATIAL_FILTERS = 128
NUM_FEATURES = 128


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
