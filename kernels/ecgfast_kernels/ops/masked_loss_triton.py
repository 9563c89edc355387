"""Triton kernels of masked_mse: the target is normalised in registers, never stored.

Rows are patches (B * N). Rows that were not removed are not read, neither prediction nor target.
"""

# ruff: noqa: ANN001, ANN201 (Triton types its kernels itself)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgfast_kernels.ops.library import block_config
from ecgfast_kernels.ops.reference import TARGET_EPS

_REDUCE_BLOCK = 1024
_EPS = tl.constexpr(TARGET_EPS)


@triton.jit
def removed_rows_error(
    pred_ptr,  # (B, N, L) strided
    patches_ptr,  # (B, N, P)
    mask_ptr,  # (B, N) bool
    row,
    num_rows,
    num_patches,
    L: tl.constexpr,
    P: tl.constexpr,
    STRIDE_B: tl.constexpr,
    STRIDE_N: tl.constexpr,
    PRED_IS_PADDED: tl.constexpr,
    NORM: tl.constexpr,
):
    """Prediction minus target of some rows in fp32, 0 where not removed; and which were removed."""
    timestep = tl.arange(0, P)
    inside = (timestep < L)[None, :]
    removed = tl.load(mask_ptr + row, mask=row < num_rows, other=0) != 0
    # A mask that ends at column 250 allows 4-byte loads only, so whole rows are read where they
    # exist and the padding is dropped in registers.
    whole_row = removed[:, None] & (timestep < P)[None, :]
    wide_row = row.to(tl.int64)
    target = tl.load(
        patches_ptr + wide_row[:, None] * P + timestep[None, :], mask=whole_row, other=0.0
    )
    target = tl.where(inside, target.to(tl.float32), 0.0)
    pred_row = (wide_row // num_patches) * STRIDE_B + (wide_row % num_patches) * STRIDE_N
    pred = tl.load(
        pred_ptr + pred_row[:, None] + timestep[None, :],
        mask=whole_row if PRED_IS_PADDED else removed[:, None] & inside,
        other=0.0,
    )
    pred = tl.where(inside, pred.to(tl.float32), 0.0)
    if NORM:
        mean = tl.sum(target, axis=1) / L
        centred = tl.where(inside, target - mean[:, None], 0.0)
        variance = tl.sum(centred * centred, axis=1) / (L - 1)
        target = centred * tl.rsqrt(variance + _EPS)[:, None]
    return pred - target, removed


@triton.jit
def forward_kernel(
    pred_ptr,  # (B, N, L) strided
    patches_ptr,  # (B, N, P)
    mask_ptr,  # (B, N) bool
    sum_ptr,  # (programs,) fp32, out
    count_ptr,  # (programs,) int32, out
    num_rows,
    num_patches,
    L: tl.constexpr,
    P: tl.constexpr,
    STRIDE_B: tl.constexpr,
    STRIDE_N: tl.constexpr,
    PRED_IS_PADDED: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Sum of squared errors and number of removed rows among BLOCK_R rows."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    error, removed = removed_rows_error(
        pred_ptr, patches_ptr, mask_ptr, row, num_rows, num_patches,
        L, P, STRIDE_B, STRIDE_N, PRED_IS_PADDED, NORM,
    )  # fmt: skip
    tl.store(sum_ptr + tl.program_id(0), tl.sum(error * error))
    tl.store(count_ptr + tl.program_id(0), tl.sum(removed.to(tl.int32)))


@triton.jit
def finish_kernel(
    sum_ptr,  # (programs,) fp32
    count_ptr,  # (programs,) int32
    loss_ptr,  # () fp32, out
    num_removed_ptr,  # () int32, out
    num_programs,
    L: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the programs' shares in fixed order and divide."""
    total = tl.zeros([BLOCK], tl.float32)
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_programs, BLOCK):
        program = start + tl.arange(0, BLOCK)
        total += tl.load(sum_ptr + program, mask=program < num_programs, other=0.0)
        count += tl.load(count_ptr + program, mask=program < num_programs, other=0)
    num_removed = tl.sum(count)
    tl.store(loss_ptr, tl.sum(total) / L / tl.maximum(num_removed, 1).to(tl.float32))
    tl.store(num_removed_ptr, num_removed)


@triton.jit
def backward_kernel(
    grad_ptr,  # () fp32, gradient of the loss
    pred_ptr,  # (B, N, L) strided
    patches_ptr,  # (B, N, P)
    mask_ptr,  # (B, N) bool
    num_removed_ptr,  # () int32
    grad_pred_ptr,  # (B, N, L), out
    num_rows,
    num_patches,
    L: tl.constexpr,
    P: tl.constexpr,
    STRIDE_B: tl.constexpr,
    STRIDE_N: tl.constexpr,
    PRED_IS_PADDED: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Gradient of BLOCK_R rows; zeros where nothing was removed."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    error, removed = removed_rows_error(
        pred_ptr, patches_ptr, mask_ptr, row, num_rows, num_patches,
        L, P, STRIDE_B, STRIDE_N, PRED_IS_PADDED, NORM,
    )  # fmt: skip
    num_removed = tl.maximum(tl.load(num_removed_ptr), 1).to(tl.float32)
    scale = 2.0 * tl.load(grad_ptr).to(tl.float32) / (L * num_removed)
    grad = tl.where(removed[:, None], error * scale, 0.0)
    timestep = tl.arange(0, P)
    tl.store(
        grad_pred_ptr + row.to(tl.int64)[:, None] * L + timestep[None, :],
        grad.to(grad_pred_ptr.dtype.element_ty),
        mask=(row < num_rows)[:, None] & (timestep < L)[None, :],
    )


def forward(
    pred_BNP: Tensor, patches_BNP: Tensor, mask_BN: Tensor, norm_patch: bool
) -> tuple[Tensor, Tensor]:
    """Loss (fp32 scalar) and number of removed patches (int32 scalar)."""
    num_rows = mask_BN.numel()
    config = block_config("masked_mse", pred_BNP)
    num_programs = triton.cdiv(num_rows, config["BLOCK_R"])
    sums = pred_BNP.new_empty(num_programs, dtype=torch.float32)
    counts = pred_BNP.new_empty(num_programs, dtype=torch.int32)
    loss = pred_BNP.new_empty((), dtype=torch.float32)
    num_removed = pred_BNP.new_empty((), dtype=torch.int32)
    with torch.cuda.device_of(pred_BNP):
        forward_kernel[(num_programs,)](
            pred_BNP,
            patches_BNP,
            mask_BN,
            sums,
            counts,
            num_rows,
            mask_BN.shape[1],
            **_shape_arguments(pred_BNP, patches_BNP, norm_patch),
            **config,
        )
        finish_kernel[(1,)](
            sums,
            counts,
            loss,
            num_removed,
            num_programs,
            L=pred_BNP.shape[2],
            BLOCK=_REDUCE_BLOCK,
        )
    return loss, num_removed


def backward(
    grad: Tensor,
    pred_BNP: Tensor,
    patches_BNP: Tensor,
    mask_BN: Tensor,
    num_removed: Tensor,
    norm_patch: bool,
) -> Tensor:
    """Gradient of the prediction, contiguous."""
    num_rows = mask_BN.numel()
    config = block_config("masked_mse", pred_BNP)
    grad_pred_BNP = pred_BNP.new_empty(pred_BNP.shape)
    with torch.cuda.device_of(pred_BNP):
        backward_kernel[(triton.cdiv(num_rows, config["BLOCK_R"]),)](
            grad,
            pred_BNP,
            patches_BNP,
            mask_BN,
            num_removed,
            grad_pred_BNP,
            num_rows,
            mask_BN.shape[1],
            **_shape_arguments(pred_BNP, patches_BNP, norm_patch),
            **config,
        )
    return grad_pred_BNP


def _shape_arguments(pred_BNP: Tensor, patches_BNP: Tensor, norm_patch: bool) -> dict[str, int]:
    # Strides are compile-time constants: the compiler then knows what divides them.
    batch, num_patches, patch_length = pred_BNP.shape
    stride_b, stride_n = pred_BNP.stride()[:2]
    padded_length = patches_BNP.shape[2]
    last_row = pred_BNP.storage_offset() + (batch - 1) * stride_b + (num_patches - 1) * stride_n
    storage_length = pred_BNP.untyped_storage().nbytes() // pred_BNP.element_size()
    return {
        "L": patch_length,
        "P": padded_length,
        "STRIDE_B": stride_b,
        "STRIDE_N": stride_n,
        "PRED_IS_PADDED": stride_n >= padded_length and last_row + padded_length <= storage_length,
        "NORM": norm_patch,
    }
