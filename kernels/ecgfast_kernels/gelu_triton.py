"""The Triton kernels behind `gelu.bias_gelu`: element by element, with the bias gradient's sums."""

# ruff: noqa: ANN001, ANN201, D103 (Triton types its kernels itself; shapes stand beside)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgfast_kernels.tuning import block_config

INV_SQRT_2 = 0.7071067811865476
INV_SQRT_2_PI = 0.3989422804014327


@triton.jit
def forward_kernel(
    x,  # (R, C)
    bias,  # (C,)
    out,  # (R, C)
    num_rows,
    width,
    INV_SQRT_2: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (rows < num_rows)[:, None] & (c < width)[None, :]
    at = rows[:, None] * width + c[None, :]
    b = tl.load(bias + c, mask=c < width, other=0.0).to(tl.float32)[None, :]
    h = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + b
    y = 0.5 * h * (1.0 + tl.erf(h * INV_SQRT_2))
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    grad,  # (R, C)
    x,  # (R, C)
    bias,  # (C,)
    grad_x,  # (R, C) out
    partial,  # (row programs, C) fp32 out
    num_rows,
    width,
    INV_SQRT_2: tl.constexpr,
    INV_SQRT_2_PI: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    b = tl.load(bias + c, mask=c < width, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)  # summed over rows once, at the end
    first = tl.program_id(0).to(tl.int64) * ROWS
    for start in tl.range(0, ROWS, BLOCK_R, num_stages=STAGES):
        rows = first + start + tl.arange(0, BLOCK_R)
        inside = (rows < num_rows)[:, None] & (c < width)[None, :]
        at = rows[:, None] * width + c[None, :]
        h = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + b
        dy = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        cdf = 0.5 * (1.0 + tl.erf(h * INV_SQRT_2))
        density = tl.exp(-0.5 * h * h) * INV_SQRT_2_PI
        dx = dy * (cdf + h * density)
        tl.store(grad_x + at, dx.to(grad_x.dtype.element_ty), mask=inside)
        total += tl.where(inside, dx, 0.0)
    tl.store(partial + tl.program_id(0) * width + c, tl.sum(total, 0), mask=c < width)


def forward(x: Tensor, bias: Tensor) -> Tensor:
    """Launch the forward kernel; see `gelu.reference_forward`."""
    width = x.shape[-1]
    num_rows = x.numel() // width
    out = torch.empty_like(x)
    config = block_config("bias_gelu_forward", x)
    grid = (triton.cdiv(num_rows, config["BLOCK_R"]), triton.cdiv(width, config["BLOCK_C"]))
    forward_kernel[grid](x, bias, out, num_rows, width, INV_SQRT_2=INV_SQRT_2, **config)
    return out


def backward(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the backward kernel; see `gelu.reference_backward`."""
    width = x.shape[-1]
    num_rows = x.numel() // width
    config = block_config("bias_gelu_backward", x)
    grid = (triton.cdiv(num_rows, config["ROWS"]), triton.cdiv(width, config["BLOCK_C"]))
    grad_x = torch.empty_like(x)
    partial = x.new_empty((grid[0], width), dtype=torch.float32)
    backward_kernel[grid](
        grad,
        x,
        bias,
        grad_x,
        partial,
        num_rows,
        width,
        INV_SQRT_2=INV_SQRT_2,
        INV_SQRT_2_PI=INV_SQRT_2_PI,
        **config,
    )
    return grad_x, partial.sum(0).to(bias.dtype)
