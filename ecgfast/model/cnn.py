"""Convolutional baselines: the study's, and a strong one of the public PTB-XL benchmark."""

# B records, C leads, T timesteps, N patches, P padded patch length, F filters, D features

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d

from ecgfast.model.draws import Draws, Dropout
from ecgfast.model.vit import unpatchify
from ecgfast.settings import ModelConfig

# (filters, kernel, pooling) of each temporal block, shared by the 12 leads.
TEMPORAL = ((16, 5, 2), (16, 5, 2), (32, 5, 4), (32, 3, 2), (64, 3, 2), (64, 3, 4))
SPATIAL_FILTERS = 128
NUM_FEATURES = 128
HIDDEN = 64  # between the baseline's two last fully connected layers

WANG_STRIDES = (1, 2, 2)  # of its three blocks
WANG_DROPOUT = 0.5
WANG_POOLING = 5  # timesteps: from 500 Hz to the 100 Hz of the benchmark


class Head(nn.Sequential):
    """Layers on features, some of which may be `Dropout`."""

    def forward(self, features_BD: Tensor, draws: Draws | None = None) -> Tensor:
        """Run the layers one after the other."""
        for layer in self:
            is_dropout = isinstance(layer, Dropout)
            features_BD = layer(features_BD, draws) if is_dropout else layer(features_BD)
        return features_BD


class EcgCnn(nn.Module):
    """12-lead convolutional network; `forward` gives features, `head` logits.

    Args:
        config: the record's shape, and what lies between the dense layers; widths are those of the
            source. Two public implementations of it have batch normalisation behind each dense
            layer but the last, one of them dropout of 0.5 too: `dense_norm` and `dense_dropout`.

    Source: Attia et al. 2019, supplementary figure on the network's architecture.
    """

    num_features = NUM_FEATURES

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
        self.after_fc = Head(*_after_dense(config, NUM_FEATURES, number=0))

    def forward(self, patches_BNP: Tensor, draws: Draws | None = None) -> Tensor:
        """Turn patches (B, N, 256) into features (B, 128) in the weights' dtype."""
        signal_BCT = unpatchify(patches_BNP, num_leads=self.config.num_leads)
        image_B1CT = signal_BCT.to(self.fc.weight.dtype)[:, None]
        features_BF1T = self.spatial(self.temporal(image_B1CT))
        out: Tensor = self.after_fc(self.fc(features_BF1T.flatten(1)), draws)
        return out

    def head(self, num_outputs: int) -> Head:
        """The two last dense layers."""
        after = _after_dense(self.config, HIDDEN, number=1)
        return Head(nn.Linear(NUM_FEATURES, HIDDEN), *after, nn.Linear(HIDDEN, num_outputs))


def _temporal_block(filters_in: int, filters: int, kernel: int, pooling: int) -> list[nn.Module]:
    return [
        nn.Conv2d(filters_in, filters, (1, kernel), padding=(0, kernel // 2), bias=False),
        nn.BatchNorm2d(filters),
        nn.ReLU(),
        nn.MaxPool2d((1, pooling)),
    ]


def _after_dense(config: ModelConfig, width: int, *, number: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.BatchNorm1d(width)] if config.dense_norm else []
    layers.append(nn.ReLU())
    return [*layers, Dropout(config.dense_dropout, number)] if config.dense_dropout else layers


class ResNet1dWang(nn.Module):
    """Residual network on all leads together; `forward` gives features, `head` logits.

    Its records have 100 Hz: timesteps are averaged by fives.

    Args:
        config: the record's shape, `filters` and `stem_stride`; their defaults are the source's.
            Half the filters and twice the stride take a sixth of the time.

    Source: `resnet1d_wang` of Strodthoff et al. 2020 (PTB-XL benchmark, macro AUROC of the five
        superclasses 0.930), after Wang et al. 2017, figure 1.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        filters, stride = config.filters, config.stem_stride
        self.num_features = 2 * filters
        self.stem = nn.Sequential(
            nn.Conv1d(config.num_leads, filters, 7, stride=stride, padding=3, bias=False),
            nn.BatchNorm1d(filters),
            nn.ReLU(),
        )
        self.stages = nn.Sequential(*(ResidualBlock(filters, stride) for stride in WANG_STRIDES))

    def forward(self, patches_BNP: Tensor, draws: Draws | None = None) -> Tensor:
        """Turn patches (B, N, 256) into the maximum and mean of each of F filters: (B, 2 F)."""
        signal_BCT = unpatchify(patches_BNP, num_leads=self.config.num_leads)
        dtype = next(self.parameters()).dtype
        signal_BCT = avg_pool1d(signal_BCT.to(dtype), WANG_POOLING)
        features_BFT = self.stages(self.stem(signal_BCT))
        return torch.cat([features_BFT.amax(-1), features_BFT.mean(-1)], dim=1)

    def head(self, num_outputs: int) -> Head:
        """Batch normalisation, dropout and a dense layer."""
        width = self.num_features
        return Head(nn.BatchNorm1d(width), Dropout(WANG_DROPOUT, 0), nn.Linear(width, num_outputs))


class ResidualBlock(nn.Module):
    """Two convolutions of widths 5 and 3, beside a short cut.

    Args:
        filters: in and out.
        stride: of the first convolution; the short cut has a convolution too where it is not 1.
    """

    def __init__(self, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(filters, filters, 5, stride=stride, padding=2, bias=False)
        self.norm1 = nn.BatchNorm1d(filters)
        self.conv2 = nn.Conv1d(filters, filters, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm1d(filters)
        self.short_cut = nn.Sequential()
        if stride != 1:
            self.short_cut.append(nn.Conv1d(filters, filters, 1, stride=stride, bias=False))
            self.short_cut.append(nn.BatchNorm1d(filters))

    def forward(self, features_BFT: Tensor) -> Tensor:
        """(B, F, T) to (B, F, T / stride)."""
        hidden = self.norm1(self.conv1(features_BFT)).relu()
        out: Tensor = (self.norm2(self.conv2(hidden)) + self.short_cut(features_BFT)).relu()
        return out
