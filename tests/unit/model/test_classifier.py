"""Classifiers: shapes, pooled features, weights taken over from pretraining."""

import math

import pytest
import torch
from small_mae import SMALL, small_model, small_patches
from torch import nn

from ecgfast.config import load_config
from ecgfast.model import Classifier, EcgCnn, Encoder, build_classifier, encoder_state
from ecgfast.model.classifier import layer_scale
from ecgfast.model.draws import Draws
from ecgfast.model.vit import unpatchify
from ecgfast.settings import FinetuneConfig


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


def test_features_by_lead_are_mean_and_maximum_over_its_patches() -> None:
    patches = small_patches(3)
    model = Classifier(small_classifier("cls").encoder, pool="lead_mean_max").double()
    tokens = small_model().encode(patches)[:, 1:]
    columns = SMALL.num_patches // SMALL.num_leads
    leads = [tokens[:, n * columns : (n + 1) * columns] for n in range(SMALL.num_leads)]
    expected = [part for lead in leads for part in (lead.mean(1), lead.max(1).values)]
    torch.testing.assert_close(model.features(patches), torch.cat(expected, dim=1))
    assert model(patches).shape == (3,)


def test_a_frozen_encoder_learns_nothing_and_leaves_nothing_out() -> None:
    config = load_config("cnn", ["model.dense_norm=true", "model.dense_dropout=0.5"])
    model = build_classifier(config)
    model.freeze()
    patches = torch.randn(4, 240, 256, generator=torch.Generator().manual_seed(0))
    draws = Draws(seed=0, record_index=torch.arange(4), epoch=0)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model.train()(patches, draws).sum().backward()
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {"head"}
    assert all(
        torch.equal(t, before[n]) for n, t in model.state_dict().items() if "encoder" in n
    )  # running statistics too
    features = model.features(patches, draws)
    assert torch.equal(features, model.eval().features(patches))


def test_every_record_begins_at_the_prevalence() -> None:
    model = build_classifier("demo")
    model.begin_at(torch.logit(torch.tensor([0.08])))
    probability = torch.sigmoid(model(torch.randn(3, 240, 256)))
    assert probability.tolist() == pytest.approx([0.08] * 3)
    assert model.head[-1].bias.item() == pytest.approx(math.log(0.08 / 0.92))


def test_a_branch_that_is_left_out_leaves_the_tokens_as_they_are() -> None:
    model = Classifier(Encoder(SMALL), drop_path=1 - 1e-7)
    block, tokens = model.encoder.blocks[0], torch.randn(3, 13, 16)
    kept = torch.tensor([[0.0, 1, 2], [0, 1, 0]])
    out = block(tokens, kept)
    assert torch.equal(out[0], tokens[0])
    torch.testing.assert_close(out[1], block(tokens)[1])
    torch.testing.assert_close(out[2], tokens[2] + 2 * block.attn(block.norm1(tokens))[2])


def test_drop_path_is_for_training_alone() -> None:
    config = load_config("demo", ["finetune.drop_path=0.5"])
    model, plain = build_classifier(config), build_classifier("demo")
    patches = torch.randn(8, 240, 256, generator=torch.Generator().manual_seed(0))
    draws = Draws(seed=0, record_index=torch.arange(8), epoch=0)
    assert not torch.equal(model(patches, draws), plain(patches, draws))
    assert torch.equal(model(patches, draws), model(patches, draws))
    assert torch.equal(model.eval()(patches), plain.eval()(patches))
    with pytest.raises(AssertionError, match="needs draws"):
        model.train()(patches)


def test_layers_further_down_learn_more_slowly() -> None:
    names = dict(build_classifier("demo").named_parameters())
    scale = {n: layer_scale(n, 4, FinetuneConfig(layer_decay=0.5)) for n in names}
    assert scale["head.1.weight"] == scale["head.0.bias"] == scale["encoder.norm.weight"] == 1
    blocks = [scale[f"encoder.blocks.{n}.mlp.fc1.weight"] for n in range(4)]
    assert blocks == [0.0625, 0.125, 0.25, 0.5]
    assert scale["encoder.cls_token"] == scale["encoder.patch_embed.proj.weight"] == 0.03125
    assert {layer_scale(n, 4, FinetuneConfig()) for n in names} == {1.0}
    cnn = dict(build_classifier("cnn").named_parameters())
    assert {layer_scale(n, 0, FinetuneConfig(layer_decay=0.5)) for n in cnn} == {1.0}
