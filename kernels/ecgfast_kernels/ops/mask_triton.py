"""Triton kernel of random_mask: the threshold key of each record is found bit by bit.

The K-th smallest key is the largest t with fewer than K keys below t, so 32 counts find it. No key
is sorted or compared with another: the 240 keys of a record stay in one warp's registers.
"""

# ruff: noqa: ANN001, ANN201 (Triton types its kernels itself)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgfast_kernels.ops.tuning import block_config


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
    """Launch the kernel; see `mask.random_mask`."""
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
