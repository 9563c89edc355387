"""The Triton kernels of `fused_block`: GELU with its bias, and GELU inside a matrix product.

The product is persistent, with an epilogue for each direction.
"""

# ruff: noqa: ANN001, ANN201, D103 (Triton types its kernels itself; shapes stand beside)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import importlib
from types import ModuleType

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ecgfast_kernels.ops import library
from ecgfast_kernels.ops.library import INTERPRETED, block_config
from ecgfast_kernels.ops.norm_triton import column_sums

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
    """Launch the forward kernel; see `reference.bias_gelu`."""
    width = x.shape[-1]
    num_rows = x.numel() // width
    out = torch.empty_like(x)
    config = block_config("bias_gelu_forward", x)
    grid = (triton.cdiv(num_rows, config["BLOCK_R"]), triton.cdiv(width, config["BLOCK_C"]))
    forward_kernel[grid](x, bias, out, num_rows, width, **config)
    return out


def backward(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the backward kernel; see `reference.bias_gelu_backward`."""
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


@triton.jit
def product_kernel(
    a,  # descriptor of (M, K), blocks of BLOCK_M x BLOCK_K
    b,  # of (N, K), BLOCK_N x BLOCK_K, when FORWARD; else of (K, N), BLOCK_K x BLOCK_N
    bias,  # (N,), or anything unless FORWARD
    out,  # of (M, N), BLOCK_M x BLOCK_N / 2: GELU(a b^T + bias), or (a b) * slope
    slope,  # of (M, N), BLOCK_M x BLOCK_N / 2: the derivative of GELU; out when FORWARD, else in
    partial,  # (M tiles, N) fp32 out: column sums of `out`; anything when FORWARD
    num_rows,
    num_columns,
    depth,
    PROGRAMS: tl.constexpr,
    FORWARD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    HALF: tl.constexpr = BLOCK_N // 2
    tiles_n = tl.cdiv(num_columns, BLOCK_N)
    num_tiles = tl.cdiv(num_rows, BLOCK_M) * tiles_n
    for tile in tl.range(tl.program_id(0), num_tiles, PROGRAMS, flatten=True):
        m = (tile // tiles_n) * BLOCK_M
        n = (tile % tiles_n) * BLOCK_N
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, depth, BLOCK_K):
            right = b.load([n, k]).T if FORWARD else b.load([k, n])
            total = tl.dot(a.load([m, k]), right, total, input_precision="ieee")
        # two halves of the columns: half the registers and shared memory for what is written
        halves = tl.split(tl.permute(tl.reshape(total, (BLOCK_M, 2, HALF)), (0, 2, 1)))
        for side in tl.static_range(2):
            part = halves[side]
            first = n + side * HALF
            columns = first + tl.arange(0, HALF)
            if FORWARD:
                added = tl.load(bias + columns, mask=columns < num_columns, other=0.0)
                h = part + added.to(tl.float32)[None, :]
                cdf, h_density = cdf_density(h)
                out.store([m, first], (h * cdf).to(out.dtype))
                slope.store([m, first], (cdf + h_density).to(slope.dtype))
            else:
                # rows and columns beyond the end were read as zeros
                part *= slope.load([m, first]).to(tl.float32)
                out.store([m, first], part.to(out.dtype))
                share = partial + (m // BLOCK_M) * num_columns + columns
                tl.store(share, tl.sum(part, 0), mask=columns < num_columns)


def linear_forward(
    x: Tensor, weight: Tensor, bias: Tensor, provider: str = "triton"
) -> tuple[Tensor, Tensor]:
    """Launch the product with GELU; see `reference.linear_gelu`."""
    if provider == "quack" and x.is_cuda:
        results: tuple[Tensor, Tensor] = _quack().forward(x, weight, bias)
        return results
    act = x.new_empty((x.shape[0], weight.shape[0]))
    slope = torch.empty_like(act)
    _launch(x, weight, bias, act, slope, partial=None)
    return act, slope


def linear_backward(
    grad: Tensor, out_weight: Tensor, slope: Tensor, provider: str = "triton"
) -> tuple[Tensor, Tensor]:
    """Launch the product with GELU's derivative; see `reference.linear_gelu_backward`."""
    if provider == "quack" and grad.is_cuda:
        results: tuple[Tensor, Tensor] = _quack().backward(grad, out_weight, slope)
        return results
    grad_hidden = torch.empty_like(slope)
    block_m = block_config("linear_gelu_backward", grad)["BLOCK_M"]
    tiles = triton.cdiv(slope.shape[0], block_m)
    partial = slope.new_empty((tiles, slope.shape[1]), dtype=torch.float32)
    _launch(grad, out_weight, None, grad_hidden, slope, partial=partial)
    return grad_hidden, column_sums(partial, grad.dtype)


def _quack() -> ModuleType:
    """The products of quack, an optional package: imported by their first use."""
    return importlib.import_module("ecgfast_kernels.ops.gelu_quack")


def _require_support(tensor: Tensor) -> None:
    library.require(
        tensor.dtype != torch.float64,
        "gelu_mlp has no kernel for float64; use fused=separate",
    )
    if tensor.is_cuda:
        major, minor = torch.cuda.get_device_capability(tensor.device)
        library.require(
            major >= 9 and tensor.element_size() == 2,
            "gelu_mlp needs bf16 or fp16 and compute capability 9.0 or newer (its tiles move by "
            f"TMA), got {tensor.dtype} and {major}.{minor}; use fused=separate",
        )


def _launch(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    out: Tensor,
    slope: Tensor,
    *,
    partial: Tensor | None,
) -> None:
    _require_support(a)
    forward = partial is None
    config = block_config(f"linear_gelu_{'forward' if forward else 'backward'}", a)
    block_m, block_n, block_k = (config[f"BLOCK_{axis}"] for axis in "MNK")
    num_rows, num_columns = out.shape
    tiles = triton.cdiv(num_rows, block_m) * triton.cdiv(num_columns, block_n)
    programs = min(tiles, config.pop("PROGRAMS"))
    half = [block_m, block_n // 2]
    product_kernel[(programs,)](
        TensorDescriptor.from_tensor(a, [block_m, block_k]),
        TensorDescriptor.from_tensor(b, [block_n, block_k] if forward else [block_k, block_n]),
        a if bias is None else bias,
        TensorDescriptor.from_tensor(out, half),
        TensorDescriptor.from_tensor(slope, half),
        out if partial is None else partial,
        num_rows,
        num_columns,
        a.shape[1],
        PROGRAMS=programs,
        FORWARD=forward,
        **config,
    )
