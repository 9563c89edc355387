"""Classifiers: shapes, pooled features, weights taken over from pretraining."""

import pytest
import torch
from small_mae import SMALL, small_model, small_patches
from torch import nn

from ecgfast.config import load_config
from ecgfast.model import Classifier, EcgCnn, Encoder, build_classifier, encoder_state
from ecgfast.model.vit import unpatchify


def small_classifier(pool: str) -> Classifier:
    encoder = Encoder(SMALL).double()
    encoder.load_state_dict(encoder_state(small_model().state_dict()), strict=True)
    assert pool in ("cls", "mean")
    return Classifier(encoder, pool="cls" if pool == "cls" else "mean").double()


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_features_are_the_pretrained_encoder_tokens(pool: str) -> None:
    patches = small_patches(3)
    tokens = small_model().encode(patches)
    expected = tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1)
    assert torch.equal(small_classifier(pool).features(patches), expected)


def test_encode_is_the_encoder_with_nothing_removed() -> None:
    model, patches = small_model(), small_patches(2)
    everything = torch.arange(SMALL.num_patches).repeat(2, 1)
    assert torch.equal(model.encode(patches), model.encode_kept(patches, everything))
    assert model.encode(patches).shape == (2, 13, 16)


def test_head_is_normalisation_and_one_linear_layer() -> None:
    model, patches = small_classifier("cls"), small_patches(3)
    features = model.features(patches)
    normal = (features - features.mean(1, keepdim=True)) / (
        features.var(1, correction=0, keepdim=True) + 1e-6
    ).sqrt()
    state = model.state_dict()
    expected = normal @ state["head.1.weight"][0] + state["head.1.bias"]
    torch.testing.assert_close(model(patches), expected, rtol=1e-10, atol=1e-12)


def test_encoder_state_leaves_out_the_decoder_and_nothing_else() -> None:
    state = small_model().state_dict()
    kept = encoder_state(state)
    assert set(kept) == set(Encoder(SMALL).state_dict())


def test_every_weight_of_a_vit_classifier_gets_a_gradient() -> None:
    model = small_classifier("cls")
    model(small_patches(2)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_cnn_has_the_blocks_of_the_study() -> None:
    model = build_classifier("cnn")
    cnn = model.encoder
    assert isinstance(cnn, EcgCnn)
    temporal = [m for m in cnn.temporal if isinstance(m, nn.Conv2d)]
    spatial = [m for m in cnn.spatial if isinstance(m, nn.Conv2d)]
    assert [m.kernel_size for m in temporal] == [(1, 5)] * 3 + [(1, 3)] * 3
    assert [m.kernel_size for m in spatial] == [(12, 1)]
    assert cnn.fc.out_features == 128
    assert [type(m) for m in model.head] == [nn.Linear, nn.ReLU, nn.Linear]


def test_cnn_scores_records_one_by_one() -> None:
    model = build_classifier("cnn").eval()
    patches = torch.randn(3, 240, 256, generator=torch.Generator().manual_seed(0)).half()
    scores = model(patches)
    assert scores.shape == (3,)
    assert scores.unique().numel() == 3
    torch.testing.assert_close(scores[1:2], model(patches[1:2]))
    assert model.features(patches).shape == (3, 128)


def test_cnn_reads_the_signal_and_not_its_padding() -> None:
    model = build_classifier("cnn").eval()
    patches = torch.randn(1, 240, 256, generator=torch.Generator().manual_seed(0))
    padded = patches.clone()
    padded[..., 250:] = 99
    assert torch.equal(model(patches), model(padded))


def test_kind_can_be_set() -> None:
    config = load_config("demo", ["model.kind=cnn"])
    assert isinstance(build_classifier(config).encoder, EcgCnn)


def test_unpatchify_puts_leads_and_columns_back() -> None:
    signal = torch.arange(2 * 12 * 5000).reshape(2, 12, 5000)
    patches = nn.functional.pad(signal.reshape(2, 240, 250), (0, 6))
    assert torch.equal(unpatchify(patches, num_leads=12), signal)


def test_the_baseline_is_the_published_network() -> None:
    """Written out: 5,000 timesteps are halved or quartered to 19 by the six poolings."""
    model = EcgCnn(load_config("cnn").model)
    kernels = [
        tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, nn.Conv2d)
    ]
    assert kernels == [
        (16, 1, 1, 5),
        (16, 16, 1, 5),
        (32, 16, 1, 5),
        (32, 32, 1, 3),
        (64, 32, 1, 3),
        (64, 64, 1, 3),
        (128, 64, 12, 1),  # across the leads
    ]
    poolings = [m.kernel_size for m in model.modules() if isinstance(m, nn.MaxPool2d)]
    assert poolings == [(1, 2), (1, 2), (1, 4), (1, 2), (1, 2), (1, 4)]
    assert tuple(model.fc.weight.shape) == (128, 128 * 19)
