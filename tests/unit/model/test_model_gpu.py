"""The model on a GPU: attention kernels, fused blocks, compiled blocks, all against fp64."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ecgfast_kernels.ops.masking import random_mask
from torch import Tensor

from ecgfast.config import load_config
from ecgfast.model import MaskedAutoencoder, build_model
from ecgfast.model.attention import KERNELS
from ecgfast.model.attention_choice import (
    Shape,
    cache_path,
    choose_attention,
    probe,
    shapes_of,
    time_kernels,
)
from ecgfast.model.block import Block
from ecgfast.vocabulary import AttentionKernel, Fused

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

LARGE = load_config("vit_large").model
GPU = torch.device("cuda")
LOSS_BF16 = 1e-2  # 8 bits in every activation; the loss averages 10^5 values
GRADIENT_BF16 = 6e-2  # of a matrix's gradient: six layers of roundings, 2^-9 each

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def inputs(num_records: int) -> Inputs:
    patches = torch.randn(num_records, 240, 256, generator=torch.Generator().manual_seed(0))
    patches[..., 250:] = 0
    records = torch.arange(num_records)
    masks = random_mask(records, seed=0, epoch=0, num_patches=240, num_keep=60)
    return patches.half(), *masks


def expected(model: MaskedAutoencoder, given: Inputs) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients in fp64 on the CPU, of the weights as bf16 rounds them."""
    exact = build_model("demo")
    exact.load_state_dict(model.state_dict())
    exact.double()
    loss, _ = exact(given[0].double(), *given[1:])
    loss.backward()
    return loss.item(), {n: p.grad for n, p in exact.named_parameters() if p.grad is not None}


def compare(model: MaskedAutoencoder, given: Inputs, loss: float, grads: dict[str, Tensor]) -> None:
    mine, _ = model(*(tensor.to(GPU) for tensor in given))
    mine.backward()
    assert mine.item() == pytest.approx(loss, rel=LOSS_BF16)
    squares = 0.0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        difference = (parameter.grad.cpu().double() - grads[name]).norm().item()
        squares += difference**2
        if parameter.ndim > 1:  # sums over tokens, as of biases, cancel down to their rounding
            assert difference < GRADIENT_BF16 * grads[name].norm().item(), name
    total = sum(grad.square().sum().item() for grad in grads.values())
    assert squares < GRADIENT_BF16**2 * total


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_every_attention_kernel_works_or_says_why(part: str, backend: AttentionKernel) -> None:
    shape = shapes_of(LARGE, num_keep=60)[part]
    reason = probe(backend, GPU, shape)
    if reason is not None:
        assert "cannot" in reason, reason  # never "is wrong"
        pytest.skip(reason)


def test_auto_takes_the_fastest_and_remembers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shape = Shape(num_tokens=61, num_heads=16, head_width=64)
    choice = choose_attention("auto", GPU, shape)
    assert cache_path().is_file()
    assert choose_attention("auto", GPU, shape) == choice
    times = time_kernels(GPU, shape)
    assert times[choice.backend] < 1.5 * min(times.values())


@pytest.mark.parametrize("fused", ["off", "separate", "triton"])
@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_model_follows_fp64(fused: Fused, compiled: bool) -> None:
    model = build_model(replace(load_config("demo"), fused=fused)).bfloat16()
    given = inputs(4)
    loss, grads = expected(model, given)
    model.to(GPU)
    model.set_attention(encoder="triton", decoder="auto")
    if compiled:
        for module in model.modules():
            if isinstance(module, Block):
                module.compile(fullgraph=True, dynamic=False)
    compare(model, given, loss, grads)
