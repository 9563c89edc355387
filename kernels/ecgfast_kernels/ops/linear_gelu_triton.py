"""The Triton kernel behind `linear_gelu`: a persistent matrix product with two epilogues."""

# ruff: noqa: ANN001, ANN201, D103 (Triton types its kernels itself; shapes stand beside)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ecgfast_kernels.ops import library
from ecgfast_kernels.ops.column_sums_triton import column_sums
from ecgfast_kernels.ops.gelu_triton import cdf_density
from ecgfast_kernels.ops.tuning import block_config


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


def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the product with GELU; see `linear_gelu.reference_forward`."""
    act = x.new_empty((x.shape[0], weight.shape[0]))
    slope = torch.empty_like(act)
    _launch(x, weight, bias, act, slope, partial=None)
    return act, slope


def backward(grad: Tensor, out_weight: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the product with GELU's derivative; see `linear_gelu.reference_backward`."""
    grad_hidden = torch.empty_like(slope)
    block_m = block_config("linear_gelu_backward", grad)["BLOCK_M"]
    tiles = triton.cdiv(slope.shape[0], block_m)
    partial = slope.new_empty((tiles, slope.shape[1]), dtype=torch.float32)
    _launch(grad, out_weight, None, grad_hidden, slope, partial=partial)
    return grad_hidden, column_sums(partial, grad.dtype)


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
