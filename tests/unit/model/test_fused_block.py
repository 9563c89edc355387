"""Fused blocks give the numbers of plain blocks, on one rank and where FSDP shards them."""

import pytest
import torch
from small_mae import small_masks, small_model, small_patches
from torch import Tensor
from torch.distributed.tensor import DTensor

from ecgfast.config import load_config
from ecgfast.errors import BackendUnavailableError
from ecgfast.model import block
from ecgfast.model.block import FusedBlock
from ecgfast.model.build import build_classifier, build_model
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.model.vit import Encoder
from ecgfast.train.distributed import join, spread
from ecgfast.vocabulary import Fused

FUSED: list[Fused] = ["separate", "triton", "quack"]


@pytest.fixture(autouse=True)
def _quack_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU no product of it is asked for."""
    monkeypatch.setattr(block, "find_spec", lambda name: name)


def test_quack_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match=r"pip install quack-kernels.* fused=triton"):
        build_model(load_config("demo", ["fused=quack"]))
    build_model(load_config("demo", ["fused=triton"]))


def loss_and_gradients(model: MaskedAutoencoder) -> dict[str, Tensor]:
    dtype = next(model.parameters()).dtype
    loss, _ = model(small_patches(3, dtype), *small_masks(3))
    loss.backward()
    named = {name: parameter.grad for name, parameter in model.named_parameters()}
    full = {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in named.items()}
    return {"loss": loss.detach(), **{n: g for n, g in full.items() if g is not None}}


def assert_alike(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        close = torch.allclose(got[name], value, rtol=tolerance, atol=tolerance)
        assert close, f"{name}: {got[name]} and not {value}"


@pytest.mark.parametrize("fused", FUSED)
def test_loss_and_every_gradient_are_the_plain_blocks(fused: Fused) -> None:
    expected = loss_and_gradients(small_model(torch.float32))
    assert_alike(loss_and_gradients(small_model(torch.float32, fused=fused)), expected, 1e-4)


def test_the_setting_chooses_the_blocks() -> None:
    config = load_config("demo", ["fused=separate"])
    for model in (build_model(config), build_classifier(config).encoder):
        assert isinstance(model, Encoder)
        assert all(isinstance(block, FusedBlock) for block in model.blocks)
    assert not any(isinstance(block, FusedBlock) for block in build_model("demo").blocks)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("fused", FUSED)
def test_sharded_blocks_keep_their_last_bias_to_themselves(fused: Fused) -> None:
    expected = loss_and_gradients(small_model(torch.float32))
    with join("cpu", mesh_of_one=True) as ranks:
        model = small_model(torch.float32, fused=fused)
        spread(model, ranks, precision="fp32", compile_blocks=False)
        assert_alike(loss_and_gradients(model), expected, 1e-4)
