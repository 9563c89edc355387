"""Convolutional baselines: as published, with what may lie between their dense layers."""

import pytest
import torch
from torch import nn

from ecgfast.config import load_config
from ecgfast.model import build_classifier
from ecgfast.model.cnn import ResNet1dWang
from ecgfast.model.draws import Draws, Dropout


def test_dense_layers_may_have_batch_norm_and_dropout() -> None:
    plain = build_classifier("cnn")
    model = build_classifier(
        load_config("cnn", ["model.dense_norm=true", "model.dense_dropout=0.5"])
    )
    between = [nn.BatchNorm1d, nn.ReLU, Dropout]
    assert [type(layer) for layer in model.encoder.after_fc] == between
    assert [type(layer) for layer in model.head] == [nn.Linear, *between, nn.Linear]
    assert not any(isinstance(m, nn.BatchNorm1d | Dropout) for m in plain.modules())
    assert plain.state_dict().keys() < model.state_dict().keys() | {"head.2.weight", "head.2.bias"}
    numbers = [m.number for m in model.modules() if isinstance(m, Dropout)]
    assert sorted(numbers) == [0, 1]


def test_training_with_dropout_needs_draws() -> None:
    model = build_classifier(load_config("cnn", ["model.dense_dropout=0.5"]))
    patches = torch.randn(2, 240, 256, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError, match="needs draws"):
        model(patches)
    draws = Draws(seed=0, record_index=torch.arange(2), epoch=0)
    assert not torch.equal(model(patches, draws), model.eval()(patches))


def test_the_residual_network_is_the_published_one() -> None:
    model = build_classifier("resnet1d_wang")
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv1d)]
    block, short_cut = [(128, 128, 5), (128, 128, 3)], (128, 128, 1)
    assert shapes == [(128, 12, 7), *block, *block, short_cut, *block, short_cut]
    strides = [m.stride[0] for m in model.modules() if isinstance(m, nn.Conv1d)]
    assert strides == [1, 1, 1, 2, 1, 2, 2, 1, 2]
    assert [type(layer) for layer in model.head] == [nn.BatchNorm1d, Dropout, nn.Linear]
    assert tuple(model.head[-1].weight.shape) == (1, 256)


def test_the_residual_network_reads_100_hz() -> None:
    """What has no mean over five timesteps is not seen; the features are maximum and mean."""
    model = build_classifier("resnet1d_wang").eval()
    patches = torch.randn(2, 240, 256, generator=torch.Generator().manual_seed(0))
    waves = torch.tensor([0.0, 1.0, -1.0, 1.0, -1.0]).repeat(50)
    other = patches.clone()
    other[..., :250] += waves
    torch.testing.assert_close(model(patches), model(other), rtol=0, atol=1e-4)
    encoder = model.encoder
    assert isinstance(encoder, ResNet1dWang)
    features = encoder(patches)
    assert features.shape == (2, 256)
    assert (features[:, :128] >= features[:, 128:]).all()
    assert model(patches).unique().numel() == 2


def test_the_small_residual_network_has_fewer_filters_and_timesteps() -> None:
    model = build_classifier("resnet1d_small").eval()
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv1d)]
    assert shapes[:3] == [(64, 12, 7), (64, 64, 5), (64, 64, 3)]
    assert tuple(model.head[-1].weight.shape) == (1, 128)
    encoder = model.encoder
    assert isinstance(encoder, ResNet1dWang)
    assert encoder.stem(torch.randn(2, 12, 1000)).shape == (2, 64, 500)
    assert encoder(torch.randn(2, 240, 256)).shape == (2, 128)
