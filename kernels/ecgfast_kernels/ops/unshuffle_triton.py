"""Triton kernels of unshuffle: a gather that adds positions, and the way back.

A class token is treated as a kept patch with restore index -1: its source row is 1 + (-1) = 0.
"""

# ruff: noqa: ANN001, ANN201 (Triton types its kernels itself)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgfast_kernels.ops.column_sums_triton import column_sums
from ecgfast_kernels.ops.tuning import block_config


@triton.jit
def forward_kernel(
    tokens_ptr,  # (B, 1 + K, E)
    ids_restore_ptr,  # (B, N) int64
    mask_token_ptr,  # (E,)
    pos_ptr,  # (1 + N, E)
    out_ptr,  # (B, 1 + N, E), out
    num_patches,
    num_keep,
    width,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """BLOCK_T rows and BLOCK_E columns of one record."""
    record = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.program_id(2) * BLOCK_E + tl.arange(0, BLOCK_E)
    column_valid = column < width
    row_valid = row <= num_patches
    restore = tl.load(
        ids_restore_ptr + record * num_patches + row - 1, mask=row_valid & (row > 0), other=-1
    )
    removed = (restore >= num_keep)[:, None]
    valid = row_valid[:, None] & column_valid[None, :]
    source_row = record * (1 + num_keep) + 1 + restore
    dtype = tokens_ptr.dtype.element_ty
    kept = tl.load(
        tokens_ptr + source_row[:, None] * width + column[None, :],
        mask=valid & (removed == 0),
        other=0.0,
    )
    mask_token = tl.load(mask_token_ptr + column, mask=column_valid, other=0.0)
    pos = tl.load(pos_ptr + row[:, None] * width + column[None, :], mask=valid, other=0.0)
    value = tl.where(removed, mask_token[None, :], kept).to(tl.float32)
    # The position is rounded first, then the sum: the same two roundings as the reference.
    value += pos.to(dtype).to(tl.float32)
    target_row = record * (1 + num_patches) + row
    tl.store(out_ptr + target_row[:, None] * width + column[None, :], value.to(dtype), mask=valid)


@triton.jit
def backward_kernel(
    grad_ptr,  # (B, 1 + N, E)
    ids_restore_ptr,  # (B, N) int64
    grad_tokens_ptr,  # (B, 1 + K, E), out
    partial_ptr,  # (B, E) fp32, out: this record's share of the mask token's gradient
    num_patches,
    num_keep,
    width,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """All rows and BLOCK_E columns of one record."""
    record = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    column_valid = column < width
    total = tl.zeros([BLOCK_T, BLOCK_E], tl.float32)
    for start in range(0, 1 + num_patches, BLOCK_T):
        row = start + tl.arange(0, BLOCK_T)
        row_valid = row <= num_patches
        restore = tl.load(
            ids_restore_ptr + record * num_patches + row - 1, mask=row_valid & (row > 0), other=-1
        )
        removed = (restore >= num_keep)[:, None]
        valid = row_valid[:, None] & column_valid[None, :]
        source_row = record * (1 + num_patches) + row
        grad = tl.load(
            grad_ptr + source_row[:, None] * width + column[None, :], mask=valid, other=0.0
        )
        target_row = record * (1 + num_keep) + 1 + restore
        tl.store(
            grad_tokens_ptr + target_row[:, None] * width + column[None, :],
            grad,
            mask=valid & (removed == 0),
        )
        total += tl.where(removed, grad.to(tl.float32), 0.0)
    tl.store(partial_ptr + record * width + column, tl.sum(total, axis=0), mask=column_valid)


def forward(
    tokens_BKE: Tensor, ids_restore_BN: Tensor, mask_token_E: Tensor, pos_NE: Tensor
) -> Tensor:
    """Launch the forward kernel; contiguous tensors."""
    batch, num_tokens, width = tokens_BKE.shape
    num_patches = ids_restore_BN.shape[1]
    output_BNE = tokens_BKE.new_empty(batch, 1 + num_patches, width)
    config = block_config("unshuffle_forward", tokens_BKE)
    grid = (
        batch,
        triton.cdiv(1 + num_patches, config["BLOCK_T"]),
        triton.cdiv(width, config["BLOCK_E"]),
    )
    with torch.cuda.device_of(tokens_BKE):
        forward_kernel[grid](
            tokens_BKE,
            ids_restore_BN,
            mask_token_E,
            pos_NE,
            output_BNE,
            num_patches,
            num_tokens - 1,
            width,
            **config,
        )
    return output_BNE


def backward(grad_BNE: Tensor, ids_restore_BN: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    """Gradients of tokens and mask token."""
    batch, num_tokens, width = grad_BNE.shape
    grad_tokens_BKE = grad_BNE.new_empty(batch, 1 + num_keep, width)
    partial_BE = grad_BNE.new_empty(batch, width, dtype=torch.float32)
    config = block_config("unshuffle_backward", grad_BNE)
    with torch.cuda.device_of(grad_BNE):
        backward_kernel[(batch, triton.cdiv(width, config["BLOCK_E"]))](
            grad_BNE,
            ids_restore_BN,
            grad_tokens_BKE,
            partial_BE,
            num_tokens - 1,
            num_keep,
            width,
            **config,
        )
    return grad_tokens_BKE, column_sums(partial_BE, grad_BNE.dtype)
