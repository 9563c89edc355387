"""Triton kernels of random_mask and unshuffle.

random_mask finds the threshold key of each record bit by bit: the K-th smallest key is the largest
t with fewer than K keys below t, so 32 counts find it. No key is sorted or compared with another:
the 240 keys of a record stay in one warp's registers.

unshuffle is a gather that adds positions, and its backward. A class token is treated as a kept
patch with restore index -1: its source row is 1 + (-1) = 0.
"""

# ruff: noqa: ANN001, ANN201 (Triton types its kernels itself)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgfast_kernels.ops.library import block_config
from ecgfast_kernels.ops.norm_triton import column_sums


# Seed and epoch change all the time; specialised on their values, they would compile again.
@triton.jit(do_not_specialize=["seed", "epoch"])
def mask_kernel(
    record_index_ptr,  # (B,) int64
    ids_keep_ptr,  # (B, K) int64, out
    ids_restore_ptr,  # (B, N) int64, out
    mask_ptr,  # (B, N) bool, out
    seed,
    epoch,
    num_records,
    num_patches,
    num_keep,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Keys, threshold, ranks and the three outputs of BLOCK_B records."""
    row = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    row_valid = row < num_records
    record = tl.load(record_index_ptr + row, mask=row_valid, other=0)[:, None]
    patch = tl.arange(0, BLOCK_N)[None, :]
    in_record = patch < num_patches
    zero = tl.zeros([BLOCK_B, BLOCK_N], tl.uint32)
    word0, word1, word2, word3 = tl.philox(
        seed,
        zero + (record & 0xFFFFFFFF).to(tl.uint32),
        zero + ((record >> 32) & 0xFFFFFFFF).to(tl.uint32),
        zero + epoch.to(tl.uint32),
        zero + (patch // 4).to(tl.uint32),
    )
    word = patch % 4
    key = tl.where(word < 2, tl.where(word == 0, word0, word1), tl.where(word == 2, word2, word3))

    threshold = tl.zeros([BLOCK_B, 1], tl.uint32)
    bit = tl.full([BLOCK_B, 1], 1 << 31, tl.uint32)
    for _ in range(32):
        candidate = threshold | bit
        below = tl.sum(((key < candidate) & in_record).to(tl.int32), axis=1, keep_dims=True)
        threshold = tl.where(below < num_keep, candidate, threshold)
        bit = bit >> 1

    smaller = ((key < threshold) & in_record).to(tl.int32)
    equal = ((key == threshold) & in_record).to(tl.int32)
    # Of the keys that equal the threshold the first so many stay.
    num_ties = num_keep - tl.sum(smaller, axis=1, keep_dims=True)
    kept = (smaller == 1) | ((equal == 1) & (tl.cumsum(equal, axis=1) <= num_ties))
    kept_up_to = tl.cumsum(kept.to(tl.int32), axis=1)
    position = tl.where(kept, kept_up_to - 1, num_keep + patch - kept_up_to)
    valid = in_record & row_valid[:, None]
    first = row.to(tl.int64)[:, None] * num_patches
    tl.store(ids_restore_ptr + first + patch, position.to(tl.int64), mask=valid)
    tl.store(mask_ptr + first + patch, kept == 0, mask=valid)
    ids_keep_row_ptr = ids_keep_ptr + row.to(tl.int64)[:, None] * num_keep
    tl.store(ids_keep_row_ptr + position, zero.to(tl.int64) + patch, mask=valid & kept)


def random_mask(
    record_index_B: Tensor, seed: int, epoch: int, num_patches: int, num_keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel; see `masking.random_mask`."""
    batch = record_index_B.shape[0]
    ids_keep_BK = record_index_B.new_empty(batch, num_keep)
    ids_restore_BN = record_index_B.new_empty(batch, num_patches)
    mask_BN = record_index_B.new_empty(batch, num_patches, dtype=torch.bool)
    config = block_config("random_mask", record_index_B)
    if batch > 0:  # an empty launch grid is an error
        with torch.cuda.device_of(record_index_B):
            mask_kernel[(triton.cdiv(batch, config["BLOCK_B"]),)](
                record_index_B.contiguous(),
                ids_keep_BK,
                ids_restore_BN,
                mask_BN,
                seed,
                epoch,
                batch,
                num_patches,
                num_keep,
                BLOCK_N=triton.next_power_of_2(num_patches),
                **config,
            )
    return ids_keep_BK, ids_restore_BN, mask_BN


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


def unshuffle(
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


def unshuffle_backward(
    grad_BNE: Tensor, ids_restore_BN: Tensor, num_keep: int
) -> tuple[Tensor, Tensor]:
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
