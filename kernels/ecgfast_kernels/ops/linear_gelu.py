"""Two linear layers with GELU between, whose GELU runs inside the matrix products.

The first product's epilogue writes GELU and its derivative, in the bytes that GELU and its input
would take; the gradient of the second one's input is multiplied by that derivative in its own
epilogue, which also sums the first bias's gradient. So the four passes of GELU over the widest
tensor of a block are gone. No atomics: bit-equal from run to run.

Shapes: M rows (records x tokens), D width, F hidden width.
"""

# ruff: noqa: ANN401 (PyTorch hands an autograd.Function its ctx untyped)

import importlib
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from ecgfast_kernels.ops import gelu, library

Provider = Literal["triton", "quack"]


def gelu_mlp(
    x: Tensor,
    weight_FD: Tensor,
    bias_F: Tensor,
    out_weight_DF: Tensor,
    *,
    provider: Provider = "triton",
) -> Tensor:
    """GELU(x W^T + b) V^T, with the error function and not its tanh approximation.

    Args:
        x: (..., D) fp16 or bf16, D and F multiples of 8, on Hopper or newer; on a CPU the
            reference takes any floating dtype, the interpreter fp32 and fp16.
        weight_FD: (F, D), W.
        bias_F: (F,), b.
        out_weight_DF: (D, F), V; its layer's bias is added elsewhere.
        provider: whose products run on a GPU; quack is a package of its own, for Hopper.
    Returns:
        (..., D) in the dtype of `x`.
    Raises:
        ValueError: the shapes disagree.
    Source: Hendrycks and Gimpel 2016, equation 1.
    """
    hidden, width = weight_FD.shape
    library.require(
        x.shape[-1] == width and out_weight_DF.shape[1] == hidden,
        f"x (..., {width}) and out_weight (D, {hidden}) must fit the weight {(hidden, width)}, got "
        f"{tuple(x.shape)} and {tuple(out_weight_DF.shape)}",
    )
    library.require(
        tuple(bias_F.shape) == (hidden,), f"bias must be ({hidden},), got {tuple(bias_F.shape)}"
    )
    library.require(
        not x.is_cuda or (width % 8 == 0 and hidden % 8 == 0),
        f"gelu_mlp needs widths that are multiples of 8, got {width} and {hidden}; use "
        "fused=separate",
    )
    out: Tensor = _GeluMlp.apply(x, weight_FD, bias_F, out_weight_DF, provider)  # type: ignore[no-untyped-call]  # no types in PyTorch
    return out


class _GeluMlp(torch.autograd.Function):
    """Autograd around the two operators and the four plain products."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor, provider: Provider
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        act, slope = torch.ops.ecgfast.linear_gelu(rows, weight.contiguous(), bias, provider)
        ctx.save_for_backward(rows, weight, out_weight, act, slope)
        ctx.shape, ctx.provider = x.shape, provider
        out: Tensor = (act @ out_weight.t()).reshape(*x.shape[:-1], -1)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, out_weight, act, slope = ctx.saved_tensors
        grad = grads[0].reshape(len(rows), -1).contiguous()
        grad_hidden, grad_bias = torch.ops.ecgfast.linear_gelu_backward(
            grad, out_weight.contiguous(), slope, ctx.provider
        )
        grad_x = (grad_hidden @ weight).reshape(ctx.shape)
        return grad_x, grad_hidden.t() @ rows, grad_bias, grad.t() @ act, None


def reference_forward(
    x: Tensor, weight: Tensor, bias: Tensor, provider: str = "triton"
) -> tuple[Tensor, Tensor]:
    """Return GELU of the linear layer, and its derivative there, both (M, F)."""
    hidden = x @ weight.t() + bias
    act = gelu.reference_forward(hidden, torch.zeros_like(bias))
    return act, gelu.reference_backward(torch.ones_like(hidden), hidden, torch.zeros_like(bias))[0]


def reference_backward(
    grad: Tensor, out_weight: Tensor, slope: Tensor, provider: str = "triton"
) -> tuple[Tensor, Tensor]:
    """Gradients of the linear layer's output (M, F), and of its bias (F,)."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    grad_hidden = (grad @ out_weight).to(wide) * slope.to(wide)
    return grad_hidden.to(grad.dtype), grad_hidden.sum(0).to(grad.dtype)


def _fake_forward(
    x: Tensor, weight: Tensor, bias: Tensor, provider: str = "triton"
) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape)


def _fake_backward(
    grad: Tensor, out_weight: Tensor, slope: Tensor, provider: str = "triton"
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(slope), slope.new_empty(slope.shape[1])


def _launchers(provider: str, tensor: Tensor) -> ModuleType:
    """The module that launches the products; both are optional: imported by their first use."""
    if provider == "quack" and tensor.is_cuda:
        return importlib.import_module("ecgfast_kernels.ops.linear_gelu_quack")
    return importlib.import_module("ecgfast_kernels.ops.linear_gelu_triton")


def _launch_forward(
    x: Tensor, weight: Tensor, bias: Tensor, provider: str = "triton"
) -> tuple[Tensor, Tensor]:
    results: tuple[Tensor, Tensor] = _launchers(provider, x).forward(x, weight, bias)
    return results


def _launch_backward(
    grad: Tensor, out_weight: Tensor, slope: Tensor, provider: str = "triton"
) -> tuple[Tensor, Tensor]:
    launchers = _launchers(provider, grad)
    results: tuple[Tensor, Tensor] = launchers.backward(grad, out_weight, slope)
    return results


library.register(
    "linear_gelu(Tensor x, Tensor weight, Tensor bias, str provider='triton') -> (Tensor, Tensor)",
    triton=_launch_forward,
    reference=reference_forward,
    fake=_fake_forward,
)
library.register(
    "linear_gelu_backward(Tensor grad, Tensor out_weight, Tensor slope, str provider='triton')"
    " -> (Tensor, Tensor)",
    triton=_launch_backward,
    reference=reference_backward,
    fake=_fake_backward,
)
