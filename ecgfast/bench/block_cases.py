"""Cases of the kernels bench between a block's products: ours beside what torch.compile fuses."""

# B records, T tokens, D width, H heads, K width of a head, F hidden width, R rows (B x T)

from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import torch
from ecgfast_kernels.ops.attention import short_attention
from ecgfast_kernels.ops.gelu import bias_gelu
from ecgfast_kernels.ops.linear_gelu import gelu_mlp
from ecgfast_kernels.ops.norm import add_layer_norm
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from ecgfast.bench.kernel_cases import OpCase

_EPS = 1e-6


def block_cases(device: str) -> list[OpCase]:
    """Attention, norm, GELU and MLP of ViT-Large's encoder and decoder; tiny on a CPU."""
    parts = {"encoder": (256, 61, 16, 64), "decoder": (256, 241, 16, 32)}
    if device != "cuda":
        parts = {"encoder": (2, 61, 2, 64), "decoder": (1, 241, 2, 32)}
    return [
        case
        for part, sizes in parts.items()
        for case in (
            _mlp_case(part, *sizes, device),
            _norm_case(part, *sizes, device),
            _gelu_case(part, *sizes, device),
            _attention_case(part, *sizes, device),
        )
    ]


def _leaf(*shape: int, device: str, scale: float = 1.0) -> Tensor:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return (scale * torch.randn(shape, device=device)).to(dtype).requires_grad_()


def _case(
    name: str, function: object, arguments: tuple[Tensor, ...], passes: tuple[int, int]
) -> OpCase:
    """One case; `passes` counts how often forward and backward must move the first argument."""
    assert callable(function)
    size = arguments[0].numel() * arguments[0].element_size()
    shape = "x".join(map(str, arguments[0].shape))
    return OpCase(
        name=name,
        shape=f"{shape} {str(arguments[0].dtype).removeprefix('torch.')}",
        function=function,
        arguments=arguments,
        leaves=tuple(range(len(arguments))),
        forward_bytes=passes[0] * size,
        backward_bytes=passes[1] * size,
    )


def _mlp_case(
    part: str, batch: int, tokens: int, heads: int, head_width: int, device: str
) -> OpCase:
    width = heads * head_width
    arguments = (
        _leaf(batch * tokens, width, device=device),
        _leaf(4 * width, width, device=device, scale=width**-0.5),
        _leaf(4 * width, device=device),
        _leaf(width, 4 * width, device=device, scale=(4 * width) ** -0.5),
    )
    # input, output, and two tensors four times as wide; backward both of them and their gradient
    case = _case(f"gelu_mlp_{part}", _mlp, arguments, (10, 16))
    others = {"products": _products, "ecgfast-separate": _separate}
    if find_spec("quack"):
        others["ecgfast-quack"] = partial(gelu_mlp, provider="quack")
    return replace(case, others=others)


def _norm_case(
    part: str, batch: int, tokens: int, heads: int, head_width: int, device: str
) -> OpCase:
    width = heads * head_width
    rows = (_leaf(batch * tokens, width, device=device) for _ in range(2))
    vectors = (_leaf(width, device=device) for _ in range(3))
    return _case(f"add_layer_norm_{part}", _norm, (*rows, *vectors), (4, 4))


def _gelu_case(
    part: str, batch: int, tokens: int, heads: int, head_width: int, device: str
) -> OpCase:
    hidden = 4 * heads * head_width
    arguments = (_leaf(batch * tokens, hidden, device=device), _leaf(hidden, device=device))
    return _case(f"bias_gelu_{part}", _gelu, arguments, (2, 3))


def _attention_case(
    part: str, batch: int, tokens: int, heads: int, head_width: int, device: str
) -> OpCase:
    qkv = _leaf(batch, tokens, 3, heads, head_width, device=device)
    # in thirds: q, k, v in and the output; backward reads them and its gradient, writes three
    return _case(f"short_attention_{part}", _attention, (qkv,), (2, 3))


def _mlp(x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor, *, backend: str) -> Tensor:
    if backend == "triton":
        return gelu_mlp(x, weight, bias, out_weight)
    return linear(gelu(linear(x, weight, bias)), out_weight)


def _separate(x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor) -> Tensor:
    return linear(bias_gelu(linear(x, weight), bias), out_weight)


def _products(x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor) -> Tensor:
    """What no GELU can be faster than; the bias adds 0.1 % of the time."""
    return linear(linear(x, weight, bias), out_weight)


def _norm(
    stream: Tensor, branch: Tensor, added: Tensor, weight: Tensor, bias: Tensor, *, backend: str
) -> tuple[Tensor, Tensor]:
    if backend == "triton":
        return add_layer_norm(stream, branch, added, weight, bias, eps=_EPS)
    total = stream + (branch + added)
    return total, layer_norm(total, weight.shape, weight, bias, _EPS)


def _gelu(x: Tensor, bias: Tensor, *, backend: str) -> Tensor:
    return bias_gelu(x, bias) if backend == "triton" else gelu(x + bias)


def _attention(qkv: Tensor, *, backend: str) -> Tensor:
    if backend == "triton":
        return short_attention(qkv)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return scaled_dot_product_attention(query, key, value).transpose(1, 2)
