"""Two linear layers with GELU between, whose GELU runs inside the matrix products.

The first product's epilogue writes GELU and its derivative, in the bytes that GELU and its input
would take; the gradient of the second one's input is multiplied by that derivative in its own
epilogue, which also sums the first bias's gradient. So the four passes of GELU over the widest
tensor of a block are gone. No atomics: bit-equal from run to run.

Shapes: M rows (records x tokens), D width, F hidden width.
"""

# ruff: noqa: ANN401 (PyTorch hands an autograd.Function its ctx untyped)

from typing import Any

import torch
from torch import Tensor

from ecgfast_kernels import gelu, library


def gelu_mlp(x: Tensor, weight_FD: Tensor, bias_F: Tensor, out_weight_DF: Tensor) -> Tensor:
    """GELU(x W^T + b) V^T, with the error function and not its tanh approximation.

    Args:
        x: (..., D) fp16 or bf16, D and F multiples of 8, on Hopper or newer; on a CPU the
            reference takes any floating dtype, the interpreter fp32 and fp16.
        weight_FD: (F, D), W.
        bias_F: (F,), b.
        out_weight_DF: (D, F), V; its layer's bias is added elsewhere.
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
    out: Tensor = _GeluMlp.apply(x, weight_FD, bias_F, out_weight_DF)  # type: ignore[no-untyped-call]  # no types in PyTorch
    return out


class _GeluMlp(torch.autograd.Function):
    """Autograd around the two operators and the four plain products."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        x, weight, bias, out_weight = inputs
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        act, slope = torch.ops.ecgfast.linear_gelu(rows, weight.contiguous(), bias)
        ctx.save_for_backward(rows, weight, out_weight, act, slope)
        ctx.shape = x.shape
        out: Tensor = (act @ out_weight.t()).reshape(*x.shape[:-1], -1)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        rows, weight, out_weight, act, slope = ctx.saved_tensors
        grad = grads[0].reshape(len(rows), -1).contiguous()
        grad_hidden, grad_bias = torch.ops.ecgfast.linear_gelu_backward(
            grad, out_weight.contiguous(), slope
        )
        grad_x = (grad_hidden @ weight).reshape(ctx.shape)
        return grad_x, grad_hidden.t() @ rows, grad_bias, grad.t() @ act


def reference_forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return GELU of the linear layer, and its derivative there, both (M, F)."""
    hidden = x @ weight.t() + bias
    act = gelu.reference_forward(hidden, torch.zeros_like(bias))
    return act, gelu.reference_backward(torch.ones_like(hidden), hidden, torch.zeros_like(bias))[0]


def reference_backward(grad: Tensor, out_weight: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the linear layer's output (M, F), and of its bias (F,)."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    grad_hidden = (grad @ out_weight).to(wide) * slope.to(wide)
    return grad_hidden.to(grad.dtype), grad_hidden.sum(0).to(grad.dtype)


def _fake_forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape)


def _fake_backward(grad: Tensor, out_weight: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(slope), slope.new_empty(slope.shape[1])


def _launch_forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    from ecgfast_kernels import linear_gelu_triton  # Triton is optional: imported by its first use

    return linear_gelu_triton.forward(x, weight, bias)


def _launch_backward(grad: Tensor, out_weight: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    from ecgfast_kernels import linear_gelu_triton

    return linear_gelu_triton.backward(grad, out_weight, slope)


library.register(
    "linear_gelu(Tensor x, Tensor weight, Tensor bias) -> (Tensor, Tensor)",
    triton=_launch_forward,
    reference=reference_forward,
    fake=_fake_forward,
)
library.register(
    "linear_gelu_backward(Tensor grad, Tensor out_weight, Tensor slope) -> (Tensor, Tensor)",
    triton=_launch_backward,
    reference=reference_backward,
    fake=_fake_backward,
)
