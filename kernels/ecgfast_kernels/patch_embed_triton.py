"""Triton kernels of patch_embed_masked: gather + GEMM + bias + position + class token, and back.

Rows are those of the output (B * (1 + K), class tokens included), so tiles of it are contiguous. A
class token is a row without a patch: its patch index is -1, which also makes its position row 0.
"""

# ruff: noqa: ANN001, ANN201 (Triton types its kernels itself)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgfast_kernels.tuning import block_config

_REDUCE_BLOCK = 1024
# Of fp32 operands only: three TF32 products per product, within a few fp32 roundings of exact. The
# obvious "ieee" runs without tensor cores on sm_80 and sm_90, and as one TF32 product on sm_100.
PRECISION = tl.constexpr("tf32x3")


@triton.jit
def forward_kernel(
    patches_ptr,  # (B, N, P) fp16 or fp32
    ids_keep_ptr,  # (B, K) int64
    weight_ptr,  # (D, P) fp16, bf16 or fp32
    bias_ptr,  # (D,)
    pos_ptr,  # (1 + N, D)
    cls_token_ptr,  # (D,)
    tokens_ptr,  # (B, 1 + K, D), out
    num_rows,  # B * (1 + K)
    num_patches,
    num_keep,
    width,
    P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One (BLOCK_R, BLOCK_D) tile of the tokens."""
    # Column tiles are neighbours in launch order: they gather the same patches, from cache.
    num_column_tiles = tl.cdiv(width, BLOCK_D)
    row = (tl.program_id(0) // num_column_tiles) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = (tl.program_id(0) % num_column_tiles) * BLOCK_D + tl.arange(0, BLOCK_D)
    column_valid = column < width
    record = row // (1 + num_keep)
    token = row % (1 + num_keep)
    has_patch = (row < num_rows) & (token > 0)
    patch = tl.load(ids_keep_ptr + record * num_keep + token - 1, mask=has_patch, other=-1)
    patch_row_ptr = patches_ptr + (record.to(tl.int64) * num_patches + patch) * P

    tile = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for start in range(0, P, BLOCK_P):
        timestep = start + tl.arange(0, BLOCK_P)
        weight = tl.load(
            weight_ptr + column[:, None] * P + timestep[None, :],
            mask=column_valid[:, None],
            other=0.0,
        )
        patches = tl.load(
            patch_row_ptr[:, None] + timestep[None, :], mask=has_patch[:, None], other=0.0
        )
        tile = tl.dot(patches.to(weight.dtype), weight.T, tile, input_precision=PRECISION)

    bias = tl.load(bias_ptr + column, mask=column_valid, other=0.0).to(tl.float32)
    cls_token = tl.load(cls_token_ptr + column, mask=column_valid, other=0.0).to(tl.float32)
    tile += tl.where(has_patch[:, None], bias[None, :], cls_token[None, :])
    valid = (row < num_rows)[:, None] & column_valid[None, :]
    pos_offset = (1 + patch)[:, None] * width + column[None, :]
    tile += tl.load(pos_ptr + pos_offset, mask=valid, other=0.0).to(tl.float32)
    out_offset = row.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(tokens_ptr + out_offset, tile.to(tokens_ptr.dtype.element_ty), mask=valid)


@triton.jit
def weight_gradient_kernel(
    grad_ptr,  # (B, 1 + K, D) fp16, bf16 or fp32
    patches_ptr,  # (B, N, P) fp16 or fp32
    ids_keep_ptr,  # (B, K) int64
    partial_ptr,  # (splits, D, P) fp32, out
    num_rows,  # B * (1 + K)
    rows_per_split,  # a multiple of BLOCK_R
    num_patches,
    num_keep,
    width,
    patch_length,
    P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One (BLOCK_D, BLOCK_P) tile of grad^T @ patches over the rows of one split.

    The first padding column is set to 1 where a row has a patch, the second where it is a class
    token, so the same GEMM yields the gradients of bias and class token.
    """
    tiles_per_row: tl.constexpr = P // BLOCK_P
    split = tl.program_id(1)
    column = (tl.program_id(0) // tiles_per_row) * BLOCK_D + tl.arange(0, BLOCK_D)
    timestep = (tl.program_id(0) % tiles_per_row) * BLOCK_P + tl.arange(0, BLOCK_P)
    column_valid = column < width
    is_bias = (timestep == patch_length)[None, :]
    is_cls_token = (timestep == patch_length + 1)[None, :]

    tile = tl.zeros([BLOCK_D, BLOCK_P], tl.float32)
    first = split * rows_per_split
    for start in range(first, tl.minimum(first + rows_per_split, num_rows), BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        record = row // (1 + num_keep)
        token = row % (1 + num_keep)
        row_valid = row < num_rows
        has_patch = row_valid & (token > 0)
        patch = tl.load(ids_keep_ptr + record * num_keep + token - 1, mask=has_patch, other=0)
        patches = tl.load(
            patches_ptr
            + ((record.to(tl.int64) * num_patches + patch) * P)[:, None]
            + timestep[None, :],
            mask=has_patch[:, None],
            other=0.0,
        )
        ones = (is_bias & has_patch[:, None]) | (is_cls_token & (row_valid & (token == 0))[:, None])
        grad = tl.load(
            grad_ptr + row.to(tl.int64)[:, None] * width + column[None, :],
            mask=row_valid[:, None] & column_valid[None, :],
            other=0.0,
        )
        patches = tl.where(ones, 1.0, patches).to(grad.dtype)
        tile = tl.dot(grad.T, patches, tile, input_precision=PRECISION)

    offset = (split.to(tl.int64) * width + column)[:, None] * P + timestep[None, :]
    tl.store(partial_ptr + offset, tile, mask=column_valid[:, None])


@triton.jit
def reduce_kernel(
    partial_ptr,  # (splits, D, P) fp32
    weight_ptr,  # (D, patch_length), out
    bias_ptr,  # (D,), out
    cls_token_ptr,  # (D,), out
    num_splits,
    num_elements,  # D * P
    patch_length,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the partials, first split first, and part the padding columns from the weight."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = element < num_elements
    total = tl.zeros([BLOCK], tl.float32)
    offset = element.to(tl.int64)
    for _ in range(num_splits):
        total += tl.load(partial_ptr + offset, mask=valid, other=0.0)
        offset += num_elements
    column = element // P
    timestep = element % P
    value = total.to(weight_ptr.dtype.element_ty)
    in_weight = valid & (timestep < patch_length)
    tl.store(weight_ptr + column * patch_length + timestep, value, mask=in_weight)
    tl.store(bias_ptr + column, value, mask=valid & (timestep == patch_length))
    tl.store(cls_token_ptr + column, value, mask=valid & (timestep == patch_length + 1))


def forward(
    patches_BNP: Tensor,
    ids_keep_BK: Tensor,
    weight_DP: Tensor,
    bias_D: Tensor,
    pos_ND: Tensor,
    cls_token_D: Tensor,
) -> Tensor:
    """Launch the forward kernel; contiguous tensors, the weight padded to P columns."""
    batch, num_patches, padded_length = patches_BNP.shape
    num_keep = ids_keep_BK.shape[1]
    width = weight_DP.shape[0]
    tokens_BTD = weight_DP.new_empty(batch, 1 + num_keep, width)
    num_rows = batch * (1 + num_keep)
    config = block_config("patch_embed_forward", weight_DP)
    grid = (triton.cdiv(num_rows, config["BLOCK_R"]) * triton.cdiv(width, config["BLOCK_D"]),)
    with torch.cuda.device_of(patches_BNP):
        forward_kernel[grid](
            patches_BNP,
            ids_keep_BK,
            weight_DP,
            bias_D,
            pos_ND,
            cls_token_D,
            tokens_BTD,
            num_rows,
            num_patches,
            num_keep,
            width,
            P=padded_length,
            **config,
        )
    return tokens_BTD


def backward(
    grad_BTD: Tensor, patches_BNP: Tensor, ids_keep_BK: Tensor, patch_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weight, bias and class token: fp32 partials over rows, added in fixed order."""
    batch, num_tokens, width = grad_BTD.shape
    num_patches, padded_length = patches_BNP.shape[1:]
    num_rows = batch * num_tokens
    config = block_config("patch_embed_backward", grad_BTD)
    num_programs = config.pop("PROGRAMS")
    num_tiles = triton.cdiv(width, config["BLOCK_D"]) * (padded_length // config["BLOCK_P"])
    num_blocks = triton.cdiv(num_rows, config["BLOCK_R"])
    blocks_per_split = triton.cdiv(num_blocks, max(1, num_programs // num_tiles))
    num_splits = triton.cdiv(num_blocks, blocks_per_split)
    partial = grad_BTD.new_empty(num_splits, width, padded_length, dtype=torch.float32)
    weight_DP = grad_BTD.new_empty(width, patch_length)
    bias_D = grad_BTD.new_empty(width)
    cls_token_D = grad_BTD.new_empty(width)
    with torch.cuda.device_of(grad_BTD):
        weight_gradient_kernel[(num_tiles, num_splits)](
            grad_BTD,
            patches_BNP,
            ids_keep_BK,
            partial,
            num_rows,
            blocks_per_split * config["BLOCK_R"],
            num_patches,
            num_tokens - 1,
            width,
            patch_length,
            P=padded_length,
            **config,
        )
        num_elements = width * padded_length
        reduce_kernel[(triton.cdiv(num_elements, _REDUCE_BLOCK),)](
            partial,
            weight_DP,
            bias_D,
            cls_token_D,
            num_splits,
            num_elements,
            patch_length,
            P=padded_length,
            BLOCK=_REDUCE_BLOCK,
        )
    return weight_DP, bias_D, cls_token_D
