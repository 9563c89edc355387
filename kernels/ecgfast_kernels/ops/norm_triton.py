"""The Triton kernels of `fused_block.add_layer_norm`, and sums over rows, as its gradients need.

The norm takes whole rows, one pass each way. `column_sums` is the last step of the gradients of all
vectors (biases, norms, the mask token): it adds fp32 shares in fixed order.
"""

# ruff: noqa: ANN001, ANN201, D103 (Triton types its kernels itself; shapes stand beside)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgfast_kernels.ops.library import block_config

NARROW = 512  # the widest rows that two warps hold at 16 bytes a thread


@triton.jit
def column_sums_kernel(
    partial,  # (P, C) fp32
    out,  # (C,)
    num_rows,
    num_columns,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)  # summed over rows once, at the end
    for start in range(0, num_rows, BLOCK_R):
        rows = start + tl.arange(0, BLOCK_R)
        inside = (rows < num_rows)[:, None] & (c < num_columns)[None, :]
        at = rows.to(tl.int64)[:, None] * num_columns + c[None, :]
        total += tl.load(partial + at, mask=inside, other=0.0)
    tl.store(out + c, tl.sum(total, 0).to(out.dtype.element_ty), mask=c < num_columns)


def column_sums(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Add the rows of `partial` and round once; bit-equal from run to run.

    Args:
        partial: (P, ...) fp32 contiguous, one row of shares for each program that made them.
        dtype: of the result.
    Returns:
        (...), the other dimensions of `partial`.
    """
    out = partial.new_empty(partial.shape[1:], dtype=dtype)
    config = block_config("column_sums", partial)
    with torch.cuda.device_of(partial):
        column_sums_kernel[(triton.cdiv(out.numel(), config["BLOCK_C"]),)](
            partial, out, partial.shape[0], out.numel(), **config
        )
    return out


@triton.jit
def forward_kernel(
    stream,  # (R, D)
    branch,  # (R, D)
    branch_bias,  # (D,)
    weight,  # (D,)
    bias,  # (D,)
    total,  # (R, D) out: stream + branch + branch_bias
    out,  # (R, D) out
    mean,  # (R,) fp32 out
    rstd,  # (R,) fp32 out
    num_rows,
    width,
    eps,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,  # a power of two >= D
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    inside = (rows < num_rows)[:, None] & (d < width)[None, :]
    at = rows[:, None] * width + d[None, :]
    x = tl.load(stream + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(branch_bias + d, mask=d < width, other=0.0).to(tl.float32)[None, :]
    # what the next layers see is the rounded sum, so normalise that
    x = x.to(total.dtype.element_ty)
    tl.store(total + at, x, mask=inside)
    x = tl.where(inside, x.to(tl.float32), 0.0)
    average = tl.sum(x, 1) / width
    centred = tl.where(inside, x - average[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    w = tl.load(weight + d, mask=d < width, other=0.0).to(tl.float32)[None, :]
    b = tl.load(bias + d, mask=d < width, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, (centred * inverse[:, None] * w + b).to(out.dtype.element_ty), mask=inside)
    tl.store(mean + rows, average, mask=rows < num_rows)
    tl.store(rstd + rows, inverse, mask=rows < num_rows)


@triton.jit
def backward_kernel(
    grad_total,  # (R, D) gradient that reaches the sum past the norm
    grad_out,  # (R, D)
    total,  # (R, D)
    weight,  # (D,)
    mean,  # (R,) fp32
    rstd,  # (R,) fp32
    grad_stream,  # (R, D) out, also the gradient of the branch
    partial,  # (PROGRAMS, 3, D) fp32 out: sums for weight, bias and branch bias
    num_rows,
    width,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    d = tl.arange(0, BLOCK_D)
    w = tl.load(weight + d, mask=d < width, other=0.0).to(tl.float32)[None, :]
    # Summed over rows once, at the end: a sum of each step's tile would go through shared memory,
    # behind a barrier, wherever two warps have rows of the same columns.
    sum_weight = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    sum_bias = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    sum_branch = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    first = tl.program_id(0) * BLOCK_R
    for start in tl.range(first, num_rows, tl.num_programs(0) * BLOCK_R, num_stages=STAGES):
        rows = (start + tl.arange(0, BLOCK_R)).to(tl.int64)
        inside = (rows < num_rows)[:, None] & (d < width)[None, :]
        at = rows[:, None] * width + d[None, :]
        x = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
        dx = tl.load(grad_total + at, mask=inside, other=0.0).to(tl.float32)
        average = tl.load(mean + rows, mask=rows < num_rows, other=0.0)[:, None]
        inverse = tl.load(rstd + rows, mask=rows < num_rows, other=0.0)[:, None]
        normal = tl.where(inside, (x - average) * inverse, 0.0)
        scaled = dy * w
        along_one = tl.sum(scaled, 1)[:, None] / width
        along_normal = tl.sum(scaled * normal, 1)[:, None] / width
        dx += (scaled - along_one - normal * along_normal) * inverse
        dx = tl.where(inside, dx, 0.0)
        tl.store(grad_stream + at, dx.to(grad_stream.dtype.element_ty), mask=inside)
        sum_weight += dy * normal
        sum_bias += dy
        sum_branch += dx
    row = partial + tl.program_id(0) * 3 * width + d
    tl.store(row, tl.sum(sum_weight, 0), mask=d < width)
    tl.store(row + width, tl.sum(sum_bias, 0), mask=d < width)
    tl.store(row + 2 * width, tl.sum(sum_branch, 0), mask=d < width)


def _config(op: str, rows: Tensor) -> dict[str, Any]:
    """Launch settings with BLOCK_R and BLOCK_D; rows of up to 512 have their own in the table."""
    block_d = triton.next_power_of_2(rows.shape[-1])
    config = block_config(f"{op}_{'narrow' if block_d <= NARROW else 'wide'}", rows)
    return {"BLOCK_R": max(1, config.pop("ELEMENTS") // block_d), "BLOCK_D": block_d, **config}


def forward(
    stream: Tensor,
    branch: Tensor,
    branch_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward kernel; see `reference.add_layer_norm`."""
    width = stream.shape[-1]
    num_rows = stream.numel() // width
    total, out = torch.empty_like(stream), torch.empty_like(stream)
    mean, rstd = (stream.new_empty(num_rows, dtype=torch.float32) for _ in range(2))
    config = _config("add_layer_norm_forward", stream)
    forward_kernel[(triton.cdiv(num_rows, config["BLOCK_R"]),)](
        stream,
        branch,
        branch_bias,
        weight,
        bias,
        total,
        out,
        mean,
        rstd,
        num_rows,
        width,
        eps,
        **config,
    )
    return total, out, mean, rstd


def backward(
    grad_total: Tensor, grad_out: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Launch the backward kernel; see `reference.add_layer_norm_backward`."""
    width = total.shape[-1]
    num_rows = total.numel() // width
    config = _config("add_layer_norm_backward", total)
    programs = min(config.pop("PROGRAMS"), triton.cdiv(num_rows, config["BLOCK_R"]))
    grad_stream = torch.empty_like(total)
    partial = total.new_empty((programs, 3, width), dtype=torch.float32)
    backward_kernel[(programs,)](
        grad_total,
        grad_out,
        total,
        weight,
        mean,
        rstd,
        grad_stream,
        partial,
        num_rows,
        width,
        **config,
    )
    return grad_stream, column_sums(partial, weight.dtype)
