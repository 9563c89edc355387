"""LayerNorm fused with the residual addition before it, forward and backward.

A pre-norm transformer adds a branch to its stream and normalises the sum. Done apart, the stream is
read and written five times forward and backward and the gradients of two biases are sums over rows
of their own; here each row is read once, the sums ride along, and nothing uses atomics, so results
are bit-equal from run to run.

Shapes: R rows (records x tokens), D width.
"""

# ruff: noqa: ANN401 (PyTorch hands an autograd.Function its ctx untyped)

from typing import Any

import torch
from torch import Tensor

from ecgfast_kernels.ops import library


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


def reference_forward(
    stream: Tensor,
    branch: Tensor,
    branch_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sum, LayerNorm, and each row's mean and 1 / deviation."""
    total = stream + branch + branch_bias
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, dim=-1, correction=0)
    rstd = (variance + eps).rsqrt()
    out = (wide - mean[..., None]) * rstd[..., None] * weight + bias
    return total, out.to(stream.dtype), mean.flatten(), rstd.flatten()


def reference_backward(
    grad_total: Tensor, grad_out: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of the stream, and the sums (3, D) for weight, bias and branch bias."""
    width = total.shape[-1]
    wide = rstd.dtype
    normal = (total.to(wide).reshape(-1, width) - mean[:, None]) * rstd[:, None]
    grad_rows = grad_out.to(wide).reshape(-1, width)
    scaled = grad_rows * weight.to(wide)
    centred = scaled - scaled.mean(1, keepdim=True)
    grad = (centred - normal * (scaled * normal).mean(1, keepdim=True)) * rstd[:, None]
    grad = grad + grad_total.to(wide).reshape(-1, width)
    sums = torch.stack([(grad_rows * normal).sum(0), grad_rows.sum(0), grad.sum(0)])
    return grad.reshape(total.shape).to(total.dtype), sums.to(weight.dtype)


def _fake_forward(
    stream: Tensor,
    branch: Tensor,
    branch_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(stream.dtype, torch.float32)
    rows = stream.numel() // stream.shape[-1]
    statistics = [stream.new_empty(rows, dtype=wide) for _ in range(2)]
    return torch.empty_like(stream), torch.empty_like(stream), statistics[0], statistics[1]


def _fake_backward(
    grad_total: Tensor, grad_out: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(total), weight.new_empty((3, total.shape[-1]))


def _launch_forward(
    stream: Tensor,
    branch: Tensor,
    branch_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from ecgfast_kernels.ops import norm_triton  # Triton is optional: imported by its first use

    return norm_triton.forward(stream, branch, branch_bias, weight, bias, eps)


def _launch_backward(
    grad_total: Tensor, grad_out: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    from ecgfast_kernels.ops import norm_triton

    return norm_triton.backward(grad_total, grad_out, total, weight, mean, rstd)


library.register(
    "add_layer_norm(Tensor stream, Tensor branch, Tensor branch_bias, Tensor weight, Tensor bias,"
    " float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    triton=_launch_forward,
    reference=reference_forward,
    fake=_fake_forward,
)
library.register(
    "add_layer_norm_backward(Tensor grad_total, Tensor grad_out, Tensor total, Tensor weight,"
    " Tensor mean, Tensor rstd) -> (Tensor, Tensor)",
    triton=_launch_backward,
    reference=reference_backward,
    fake=_fake_backward,
)
