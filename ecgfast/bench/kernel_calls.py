"""Calls of each kernel at ViT-Large's sizes, by which its block sizes are measured."""

# ruff: noqa: D103 (each is named after the op that it calls)

# B records, N patches, K kept, T tokens, D width, H heads, R rows (records x tokens)

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ecgfast_kernels.ops import attention, gelu, linear_gelu, norm  # noqa: F401 (they define operators)
from ecgfast_kernels.ops.adamw import factors
from torch import Tensor

from ecgfast.bench.kernel_cases import OpCase, op_cases

Call = Callable[[], Any]
EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Encoder or decoder of ViT-Large; tiny on a CPU, where only a test runs this."""

    batch: int
    tokens: int
    heads: int
    head_width: int

    @property
    def width(self) -> int:
        return self.heads * self.head_width


def _encoder(device: str) -> _Part:
    return _Part(batch=256 if device == "cuda" else 1, tokens=61, heads=16, head_width=64)


def _decoder(device: str) -> _Part:
    return _Part(batch=256 if device == "cuda" else 1, tokens=241, heads=16, head_width=32)


def _finetuned(device: str) -> _Part:
    return _Part(batch=64 if device == "cuda" else 1, tokens=241, heads=16, head_width=64)


def _random(*shape: int, device: str) -> Tensor:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return torch.randn(shape, device=device, dtype=dtype)


def encoder_layer(build: Callable[[_Part, str], Call]) -> Callable[[str], Call]:
    return lambda device: build(_encoder(device), device)


def decoder_layer(build: Callable[[_Part, str], Call]) -> Callable[[str], Call]:
    return lambda device: build(_decoder(device), device)


def finetuned_layer(build: Callable[[_Part, str], Call]) -> Callable[[str], Call]:
    return lambda device: build(_finetuned(device), device)


def layers(build: Callable[[_Part, str], Call]) -> Callable[[str], Call]:
    """Three encoder layers for each decoder layer, as in ViT-Large: one row serves both."""

    def prepare(device: str) -> Call:
        encoder, decoder = build(_encoder(device), device), build(_decoder(device), device)
        return lambda: (encoder(), encoder(), encoder(), decoder())

    return prepare


def _case(name: str, device: str) -> OpCase:
    return next(case for case in op_cases(device) if case.name == name)


def random_mask(device: str) -> Call:
    case = _case("random_mask", device)
    return lambda: case.function(*case.arguments, **case.options, backend="auto")


def patch_embed_forward(device: str) -> Call:
    inputs = [tensor.detach() for tensor in _case("patch_embed_masked", device).arguments]
    return lambda: torch.ops.ecgfast.patch_embed_masked(*inputs)


def patch_embed_backward(device: str) -> Call:
    patches_BNP, ids_keep_BK, weight_DL, *_ = _case("patch_embed_masked", device).arguments
    batch, num_keep = ids_keep_BK.shape
    width, length = weight_DL.shape
    grad_BTD = _random(batch, 1 + num_keep, width, device=device)
    op = torch.ops.ecgfast.patch_embed_masked_backward
    return lambda: op(grad_BTD, patches_BNP, ids_keep_BK, length)


def unshuffle_forward(device: str) -> Call:
    inputs = [tensor.detach() for tensor in _case("unshuffle", device).arguments]
    return lambda: torch.ops.ecgfast.unshuffle(*inputs)


def unshuffle_backward(device: str) -> Call:
    tokens_BKE, ids_restore_BN, *_ = _case("unshuffle", device).arguments
    batch, num_patches = ids_restore_BN.shape
    grad_BNE = _random(batch, 1 + num_patches, tokens_BKE.shape[2], device=device)
    num_keep = tokens_BKE.shape[1] - 1
    return lambda: torch.ops.ecgfast.unshuffle_backward(grad_BNE, ids_restore_BN, num_keep)


def masked_mse(device: str) -> Call:
    case = _case("masked_mse", device)

    def call() -> tuple[Tensor, ...]:
        loss: Tensor = case.function(*case.arguments, **case.options, backend="auto")
        return torch.autograd.grad(loss, case.arguments[0], loss.detach())

    return call


def _qkv(part: _Part, device: str) -> Tensor:
    return _random(part.batch, part.tokens, 3, part.heads, part.head_width, device=device)


def attention_forward(part: _Part, device: str) -> Call:
    qkv = _qkv(part, device)
    return lambda: torch.ops.ecgfast.short_attention(qkv)


def attention_backward(part: _Part, device: str) -> Call:
    qkv = _qkv(part, device)
    out, lse = torch.ops.ecgfast.short_attention(qkv)
    grad = torch.randn_like(out)
    return lambda: torch.ops.ecgfast.short_attention_backward(grad, qkv, out, lse)


def _rows(part: _Part, device: str, count: int, *, widen: int = 1) -> list[Tensor]:
    shape = (part.batch * part.tokens, part.width * widen)
    return [_random(*shape, device=device) for _ in range(count)]


def norm_forward(part: _Part, device: str) -> Call:
    stream, branch = _rows(part, device, 2)
    vectors = [_random(part.width, device=device) for _ in range(3)]
    return lambda: torch.ops.ecgfast.add_layer_norm(stream, branch, *vectors, EPS)


def norm_backward(part: _Part, device: str) -> Call:
    grad_total, grad_out, total = _rows(part, device, 3)
    variance, mean = torch.var_mean(total.float(), dim=1, correction=0)
    inputs = (total, _random(part.width, device=device), mean, (variance + EPS).rsqrt())
    return lambda: torch.ops.ecgfast.add_layer_norm_backward(grad_total, grad_out, *inputs)


def gelu_forward(part: _Part, device: str) -> Call:
    (x,) = _rows(part, device, 1, widen=4)
    bias = _random(x.shape[1], device=device)
    return lambda: torch.ops.ecgfast.bias_gelu(x, bias)


def gelu_backward(part: _Part, device: str) -> Call:
    grad, x = _rows(part, device, 2, widen=4)
    bias = _random(x.shape[1], device=device)
    return lambda: torch.ops.ecgfast.bias_gelu_backward(grad, x, bias)


def linear_gelu_forward(part: _Part, device: str, provider: str = "triton") -> Call:
    (x,) = _rows(part, device, 1)
    weight = _random(4 * part.width, part.width, device=device) * part.width**-0.5
    bias = _random(4 * part.width, device=device)
    return lambda: torch.ops.ecgfast.linear_gelu(x, weight, bias, provider)


def linear_gelu_backward(part: _Part, device: str, provider: str = "triton") -> Call:
    (grad,), (slope,) = _rows(part, device, 1), _rows(part, device, 1, widen=4)
    weight = _random(part.width, 4 * part.width, device=device) * part.width**-0.5
    return lambda: torch.ops.ecgfast.linear_gelu_backward(grad, weight, slope, provider)


def column_sums(device: str) -> Call:
    from ecgfast_kernels.ops.column_sums_triton import column_sums  # Triton is optional

    shape = (528, 3, 1024) if device == "cuda" else (5, 3, 40)
    partial = torch.randn(shape, device=device)
    return lambda: column_sums(partial, torch.bfloat16)


def adamw(device: str) -> Call:
    shapes = [(1024, 4096)] * 16 if device == "cuda" else [(3, 100)]
    weights, exp_avg = ([torch.randn(s, device=device) for s in shapes] for _ in range(2))
    exp_avg_sq = [torch.rand(s, device=device) for s in shapes]
    copies, gradients = ([_random(*s, device=device) for s in shapes] for _ in range(2))
    lists = (weights, copies, gradients, exp_avg, exp_avg_sq)
    one, zero = torch.ones((), device=device), torch.zeros((), device=device)
    # a learning rate of 0: calls that are compared and timed start from the same weights
    shared = factors(one, one, betas=(0.9, 0.95), learning_rate=0.0)
    decays = [0.05] * len(shapes)

    def call() -> list[Tensor]:
        torch.ops.ecgfast.adamw_(*lists, decays, 0.9, 0.95, 1e-8, shared, zero)
        return weights

    return call
