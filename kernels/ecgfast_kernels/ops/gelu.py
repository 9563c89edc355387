"""Exact GELU of x + bias, whose backward gives the bias gradient in the same pass.

Shapes: R rows (records x tokens), C columns.
"""

# ruff: noqa: ANN401 (PyTorch hands an autograd.Function its ctx untyped)

import math
from typing import Any

import torch
from torch import Tensor

from ecgfast_kernels.ops import library


def bias_gelu(x: Tensor, bias_C: Tensor) -> Tensor:
    """GELU(x + bias), with the error function and not its tanh approximation.

    Args:
        x: (..., C) floating point, what a linear layer without its bias gave.
        bias_C: (C,), that layer's bias.
    Returns:
        (..., C) in the dtype of `x`.
    Raises:
        ValueError: the shapes disagree.
    Source: Hendrycks and Gimpel 2016, equation 1.
    """
    library.require(
        tuple(bias_C.shape) == (x.shape[-1],),
        f"bias must be ({x.shape[-1]},), got {tuple(bias_C.shape)}",
    )
    out: Tensor = _BiasGelu.apply(x, bias_C)  # type: ignore[no-untyped-call]  # no types in PyTorch
    return out


class _BiasGelu(torch.autograd.Function):
    """Autograd around the two operators."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        x, bias = (tensor.contiguous() for tensor in tensors)
        ctx.save_for_backward(x, bias)
        out: Tensor = torch.ops.ecgfast.bias_gelu(x, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        grad_x, grad_bias = torch.ops.ecgfast.bias_gelu_backward(
            grads[0].contiguous(), *ctx.saved_tensors
        )
        return grad_x, grad_bias


def reference_forward(x: Tensor, bias: Tensor) -> Tensor:
    """Return GELU(x + bias)."""
    return torch.nn.functional.gelu(x + bias)


def reference_backward(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the bias, in closed form."""
    wide = torch.promote_types(x.dtype, torch.float32)
    h = x.to(wide) + bias.to(wide)
    cdf = 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    density = torch.exp(-0.5 * h * h) / math.sqrt(2 * math.pi)
    grad_x = grad.to(wide) * (cdf + h * density)
    return grad_x.to(x.dtype), grad_x.flatten(0, -2).sum(0).to(bias.dtype)


def _fake_forward(x: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(bias)


def _launch_forward(x: Tensor, bias: Tensor) -> Tensor:
    from ecgfast_kernels.ops import gelu_triton  # Triton is optional: imported by its first use

    return gelu_triton.forward(x, bias)


def _launch_backward(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    from ecgfast_kernels.ops import gelu_triton

    return gelu_triton.backward(grad, x, bias)


library.register(
    "bias_gelu(Tensor x, Tensor bias) -> Tensor",
    triton=_launch_forward,
    reference=reference_forward,
    fake=_fake_forward,
)
library.register(
    "bias_gelu_backward(Tensor grad, Tensor x, Tensor bias) -> (Tensor, Tensor)",
    triton=_launch_backward,
    reference=reference_backward,
    fake=_fake_backward,
)
