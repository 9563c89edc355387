"""The Triton kernels behind `gelu.bias_gelu`: element by element, with the bias gradient's sums."""

# ruff: noqa: ANN001, ANN201, D103 (Triton types its kernels itself; shapes stand beside)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgfast_kernels.ops.backend import INTERPRETED
from ecgfast_kernels.ops.column_sums_triton import column_sums
from ecgfast_kernels.ops.tuning import block_config

# One instruction each on the GPU; tl.exp2 and a division handle denormals in three to eight more.
APPROXIMATE = tl.constexpr(not INTERPRETED)


@triton.jit
def exp2(x):
    if APPROXIMATE:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def reciprocal(x):
    if APPROXIMATE:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return 1.0 / x


@triton.jit
def cdf_density(h):
    """Normal distribution function, and h times its density, from one exponential.

    For h >= 0, erf(h / sqrt(2)) = 1 - (a1 t + ... + a5 t^5) exp(-h^2 / 2) with t = 1 / (1 + p h /
    sqrt(2)), off by 1.5e-7 at most; the exponential is the density's too. libdevice's erf beside
    a second exponential takes twice the instructions, more than the memory leaves time for.

    Source: Abramowitz and Stegun 1964, equation 7.1.26.
    """
    e = exp2(h * h * -0.7213475204444817)  # exp(-h^2 / 2)
    t = reciprocal(1.0 + 0.23164189017 * tl.abs(h))  # p / sqrt(2)
    tail = 0.5307027145 * t - 0.7265760135  # halves of a5, a4 ... a1
    tail = tail * t + 0.7107068705
    tail = tail * t - 0.142248368
    tail = tail * t + 0.127414796
    tail = tail * t * e
    return tl.where(h >= 0, 1.0 - tail, tail), h * e * 0.3989422804014327


@triton.jit
def forward_kernel(
    x,  # (R, C)
    bias,  # (C,)
    out,  # (R, C)
    num_rows,
    width,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (rows < num_rows)[:, None] & (c < width)[None, :]
    at = rows[:, None] * width + c[None, :]
    b = tl.load(bias + c, mask=c < width, other=0.0).to(tl.float32)[None, :]
    h = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + b
    cdf, _ = cdf_density(h)
    tl.store(out + at, (h * cdf).to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    grad,  # (R, C)
    x,  # (R, C)
    bias,  # (C,)
    grad_x,  # (R, C) out
    partial,  # (row programs, C) fp32 out
    num_rows,
    width,
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
        cdf, h_density = cdf_density(h)
        dx = dy * (cdf + h_density)
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
    forward_kernel[grid](x, bias, out, num_rows, width, **config)
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
        **config,
    )
    return grad_x, column_sums(partial, bias.dtype)
