"""Sums over rows of fp32 shares, in fixed order: the last step of gradients of biases and norms."""

# ruff: noqa: ANN001, ANN201, D103 (Triton types its kernels itself; shapes stand beside)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgfast_kernels.ops.library import block_config


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
