"""What lies between a transformer block's matrix products: add_layer_norm, bias_gelu, gelu_mlp.

A pre-norm transformer adds a branch to its stream and normalises the sum. Done apart, the stream is
read and written five times forward and backward, and the gradients of two biases are sums over rows
of their own; in `add_layer_norm` each row is read once and the sums are made in the same pass.

The backward of `bias_gelu` gives the bias gradient in the same pass. `gelu_mlp` runs GELU inside
the matrix products: the first product's epilogue writes GELU and its derivative, in the bytes that
GELU and its input would take; the gradient of the second one's input is multiplied by that
derivative in its own epilogue, which also sums the first bias's gradient. So the four passes of
GELU over the widest tensor of a block are gone.

Nothing uses atomics: results are bit-equal from run to run.
Shapes: M rows (records x tokens), D width, F hidden width.
"""

# ruff: noqa: ANN401 (PyTorch hands an autograd.Function its ctx untyped)

from typing import Any, Literal

import torch
from torch import Tensor

from ecgfast_kernels.ops import library

Provider = Literal["triton", "quack"]


def add_layer_norm(
    stream: Tensor,
    branch: Tensor,
    branch_bias_D: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    *,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return stream + branch + branch bias, and the LayerNorm of that sum.

    Args:
        stream: (..., D) floating point.
        branch: (..., D), what a linear layer without its bias gave.
        branch_bias_D: (D,), that layer's bias.
        weight_D: (D,).
        bias_D: (D,).
        eps: added to the variance.
    Returns:
        The sum and its LayerNorm, both (..., D) in the stream's dtype.
    Raises:
        ValueError: the shapes disagree.
    Source: Ba et al. 2016, section 3.1.
    """
    library.require(
        branch.shape == stream.shape,
        f"branch must be {tuple(stream.shape)} like the stream, got {tuple(branch.shape)}",
    )
    _check(stream, branch_bias_D=branch_bias_D, weight_D=weight_D, bias_D=bias_D)
    total, out = _LayerNorm.apply(stream, branch, branch_bias_D, weight_D, bias_D, eps)  # type: ignore[no-untyped-call]  # no types in PyTorch
    return total, out


def _check(stream: Tensor, **vectors: Tensor) -> None:
    for name, vector in vectors.items():
        library.require(
            tuple(vector.shape) == (stream.shape[-1],),
            f"{name} must be ({stream.shape[-1]},), got {tuple(vector.shape)}",
        )


class _LayerNorm(torch.autograd.Function):
    """Autograd around the two operators."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        stream, branch, branch_bias, weight, bias, eps = inputs
        total: Tensor
        out: Tensor
        total, out, mean, rstd = torch.ops.ecgfast.add_layer_norm(
            stream.contiguous(), branch.contiguous(), branch_bias, weight, bias, eps
        )
        ctx.save_for_backward(total, weight, mean, rstd)
        return total, out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total, weight, mean, rstd = ctx.saved_tensors
        grad_stream, sums_3D = torch.ops.ecgfast.add_layer_norm_backward(
            grads[0].contiguous(), grads[1].contiguous(), total, weight, mean, rstd
        )
        grad_weight, grad_bias, grad_branch_bias = sums_3D.unbind(0)
        return grad_stream, grad_stream, grad_branch_bias, grad_weight, grad_bias, None


def bias_gelu(x: Tensor, bias_F: Tensor) -> Tensor:
    """GELU(x + bias), with the error function and not its tanh approximation.

    Args:
        x: (..., F) floating point, what a linear layer without its bias gave.
        bias_F: (F,), that layer's bias.
    Returns:
        (..., F) in the dtype of `x`.
    Raises:
        ValueError: the shapes disagree.
    Source: Hendrycks and Gimpel 2016, equation 1.
    """
    library.require(
        tuple(bias_F.shape) == (x.shape[-1],),
        f"bias must be ({x.shape[-1]},), got {tuple(bias_F.shape)}",
    )
    out: Tensor = _BiasGelu.apply(x, bias_F)  # type: ignore[no-untyped-call]  # no types in PyTorch
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


def _norm_fake(stream: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(stream.dtype, torch.float32)
    rows = stream.numel() // stream.shape[-1]
    statistics = [stream.new_empty(rows, dtype=wide) for _ in range(2)]
    return torch.empty_like(stream), torch.empty_like(stream), statistics[0], statistics[1]


def _norm_backward_fake(
    grad_total: Tensor, grad_out: Tensor, total: Tensor, weight: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(total), weight.new_empty((3, total.shape[-1]))


def _gelu_fake(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _gelu_backward_fake(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(bias)


def _linear_gelu_fake(x: Tensor, weight: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape)


def _linear_gelu_backward_fake(
    grad: Tensor, out_weight: Tensor, slope: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(slope), slope.new_empty(slope.shape[1])


library.register("add_layer_norm", _norm_fake, triton="norm_triton.forward")
library.register("add_layer_norm_backward", _norm_backward_fake, triton="norm_triton.backward")
library.register("bias_gelu", _gelu_fake, triton="gelu_triton.forward")
library.register("bias_gelu_backward", _gelu_backward_fake, triton="gelu_triton.backward")
library.register("linear_gelu", _linear_gelu_fake, triton="gelu_triton.linear_forward")
library.register(
    "linear_gelu_backward", _linear_gelu_backward_fake, triton="gelu_triton.linear_backward"
)
