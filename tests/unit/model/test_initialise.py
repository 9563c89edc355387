"""Initial weights: a function of seed and parameter name, with the right spread."""

import math

import pytest
import torch
from small_mae import SMALL

from ecgfast.config import load_config
from ecgfast.model import Encoder, MaskedAutoencoder, build_classifier, build_model, initialise


def drawn(seed: int) -> dict[str, torch.Tensor]:
    model = MaskedAutoencoder(SMALL)
    initialise(model, seed)
    return model.state_dict()


def test_same_seed_same_weights_whatever_the_global_generator() -> None:
    torch.manual_seed(1)
    first = drawn(7)
    torch.manual_seed(2)
    torch.rand(3)
    second = drawn(7)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_global_generator_is_left_alone_by_initialise() -> None:
    model = MaskedAutoencoder(SMALL)
    state = torch.random.get_rng_state()
    initialise(model, 0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_another_seed_moves_every_random_weight() -> None:
    first, second = drawn(0), drawn(1)
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    fixed = {n for n in first if n.endswith("bias") or "norm" in n or n.endswith("pos_embed")}
    assert moved == set(first) - fixed


def test_other_layers_do_not_matter() -> None:
    shallow, deep = (
        build_model(load_config("demo", [f"model.encoder_depth={depth}"])).state_dict()
        for depth in (2, 4)
    )
    assert set(shallow) < set(deep)
    assert all(torch.equal(value, deep[name]) for name, value in shallow.items())


def test_no_two_parameters_share_their_draw() -> None:
    matrices = {n: v for n, v in drawn(0).items() if v.ndim > 1 and v.numel() >= 64}
    random = {n: v for n, v in matrices.items() if not n.endswith("pos_embed")}
    signs = {tuple((value.flatten()[:64] > 0).tolist()) for value in random.values()}
    assert len(signs) == len(random) == 15


def test_dtype_is_rounding_only() -> None:
    low = MaskedAutoencoder(SMALL).to(torch.bfloat16)
    initialise(low, 7)
    full = drawn(7)
    assert all(torch.equal(v, full[n].bfloat16()) for n, v in low.state_dict().items())


@pytest.mark.parametrize(
    ("name", "fan_sum"),
    [
        ("blocks.0.attn.qkv.weight", 128 + 3 * 128),
        ("blocks.0.mlp.fc2.weight", 4 * 128 + 128),
        ("patch_embed.proj.weight", 250 + 128),
        ("decoder_pred.weight", 96 + 250),
    ],
)
def test_matrices_are_xavier_uniform(name: str, fan_sum: int) -> None:
    weight = build_model("demo").state_dict()[name]
    bound = math.sqrt(6 / fan_sum)
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_tokens_norms_and_biases() -> None:
    state = build_model("demo").state_dict()
    assert state["cls_token"].std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.equal(state["norm.weight"], torch.ones(128))
    assert all(not v.any() for n, v in state.items() if n.endswith("bias"))


def test_convolutions_keep_the_variance_through_relu() -> None:
    weight = build_classifier("cnn").state_dict()["encoder.temporal.20.weight"]  # 64 x 64 x 1 x 3
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 3)), rel=0.05)


def test_encoder_of_a_classifier_draws_like_itself() -> None:
    first, second = (build_classifier("demo").state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert isinstance(build_classifier("demo").encoder, Encoder)
