"""Triton kernels of patch_embed_masked: gather + GEMM + bias + position + class token, and back.

Rows are those of the output (B * (1 + K), class tokens included), so tiles of it are contiguous. A
class token is a row without a patch: its patch index is -1, which also makes its position row 0.
"""

# ruff: noqa: ANN001, ANN201 (Triton types its kernels itself)
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# mypy: allow-redefinition

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgfast_kernels.ops.library import block_config

TUNED_LENGTH = 256  # padded patch that the block sizes are meant for
_REDUCE_BLOCK = 512
# Of fp32 operands only: three TF32 products per product, within a few fp32 roundings of exact. The
# obvious "ieee" runs without tensor cores on sm_80 and sm_90, and as one TF32 product on sm_100.
PRECISION = tl.constexpr("tf32x3")


@triton.jit
def kept_patch(row, ids_keep_ptr, num_rows, num_keep):
    """Patch that a row of the tokens embeds; -1 for a class token and behind the last row."""
    record = row // (1 + num_keep)
    token = row % (1 + num_keep)
    has_patch = (row < num_rows) & (token > 0)
    return tl.load(ids_keep_ptr + record * num_keep + token - 1, mask=has_patch, other=-1)


@triton.jit
def forward_kernel(
    patches_ptr,  # (B, N, P) fp16 or fp32
    ids_keep_ptr,  # (B, K) int64
    weight_ptr,  # (D, L) fp16, bf16 or fp32
    bias_ptr,  # (D,)
    pos_ptr,  # (1 + N, D)
    cls_token_ptr,  # (D,)
    tokens_ptr,  # (B, 1 + K, D), out
    num_rows,  # B * (1 + K)
    num_patches,
    num_keep,
    width,
    L: tl.constexpr,
    P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """BLOCK_D columns of the tokens, one tile of rows after the other.

    The columns' weights are read once and stay on chip; while a tile is computed, the patches of
    the next ones are under way. A program for each tile would read weights as often as patches.
    """
    # Column tiles are neighbours in launch order: they gather the same patches, from cache.
    num_column_tiles = tl.cdiv(width, BLOCK_D)
    column = (tl.program_id(0) % num_column_tiles) * BLOCK_D + tl.arange(0, BLOCK_D)
    column_valid = column < width
    timestep = tl.arange(0, BLOCK_P)
    weights = ()
    for at in tl.static_range(0, P, BLOCK_P):
        inside = column_valid[:, None] & (at + timestep < L)[None, :]
        offset = column[:, None] * L + at + timestep[None, :]
        weights += (tl.load(weight_ptr + offset, mask=inside, other=0.0),)
    bias = tl.load(bias_ptr + column, mask=column_valid, other=0.0).to(tl.float32)
    cls_token = tl.load(cls_token_ptr + column, mask=column_valid, other=0.0).to(tl.float32)

    first = (tl.program_id(0) // num_column_tiles) * BLOCK_R
    step = (tl.num_programs(0) // num_column_tiles) * BLOCK_R
    patch = kept_patch(first + tl.arange(0, BLOCK_R), ids_keep_ptr, num_rows, num_keep)
    for start in range(first, num_rows, step):
        row = start + tl.arange(0, BLOCK_R)
        has_patch = patch >= 0
        record = row // (1 + num_keep)
        patch_row_ptr = patches_ptr + (record.to(tl.int64) * num_patches + patch) * P
        valid = (row < num_rows)[:, None] & column_valid[None, :]
        pos_offset = (1 + patch)[:, None] * width + column[None, :]
        tile = tl.load(pos_ptr + pos_offset, mask=valid, other=0.0).to(tl.float32)
        tile += tl.where(has_patch[:, None], bias[None, :], cls_token[None, :])
        for chunk in tl.static_range(P // BLOCK_P):
            patches = tl.load(
                patch_row_ptr[:, None] + chunk * BLOCK_P + timestep[None, :],
                mask=has_patch[:, None],
                other=0.0,
            )
            weight = weights[chunk]
            tile = tl.dot(patches.to(weight.dtype), weight.T, tile, input_precision=PRECISION)
        # One step ahead: an address that waits for a load of its own step cannot be prefetched.
        patch = kept_patch(row + step, ids_keep_ptr, num_rows, num_keep)
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
    L: tl.constexpr,
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
    is_bias = (timestep == L)[None, :]
    is_cls_token = (timestep == L + 1)[None, :]

    tile = tl.zeros([BLOCK_D, BLOCK_P], tl.float32)
    first = split * rows_per_split
    patch = kept_patch(first + tl.arange(0, BLOCK_R), ids_keep_ptr, num_rows, num_keep)
    for start in range(first, tl.minimum(first + rows_per_split, num_rows), BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        record = row // (1 + num_keep)
        row_valid = row < num_rows
        has_patch = patch >= 0
        patches = tl.load(
            patches_ptr
            + ((record.to(tl.int64) * num_patches + patch) * P)[:, None]
            + timestep[None, :],
            mask=has_patch[:, None],
            other=0.0,
        )
        ones = tl.where(has_patch[:, None], is_bias, is_cls_token & row_valid[:, None])
        # One step ahead: an address that waits for a load of its own step cannot be prefetched,
        # and a step then waits for the whole way to memory and back.
        patch = kept_patch(row + BLOCK_R, ids_keep_ptr, num_rows, num_keep)
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
    partial_ptr,  # (SPLITS, D, P) fp32
    weight_ptr,  # (D, L), out
    bias_ptr,  # (D,), out
    cls_token_ptr,  # (D,), out
    num_elements,  # D * P
    SPLITS: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the partials, first split first, and part the padding columns from the weight."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = element < num_elements
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):  # unrolled: the loads wait together, not in turn
        start = partial_ptr + split * num_elements.to(tl.int64)
        total += tl.load(start + element, mask=valid, other=0.0)
    column = element // P
    timestep = element % P
    value = total.to(weight_ptr.dtype.element_ty)
    tl.store(weight_ptr + column * L + timestep, value, mask=valid & (timestep < L))
    tl.store(bias_ptr + column, value, mask=valid & (timestep == L))
    tl.store(cls_token_ptr + column, value, mask=valid & (timestep == L + 1))


def forward(
    patches_BNP: Tensor,
    ids_keep_BK: Tensor,
    weight_DL: Tensor,
    bias_D: Tensor,
    pos_ND: Tensor,
    cls_token_D: Tensor,
) -> Tensor:
    """Launch the forward kernel on contiguous tensors."""
    batch, num_patches, padded_length = patches_BNP.shape
    num_keep = ids_keep_BK.shape[1]
    width, patch_length = weight_DL.shape
    tokens_BTD = weight_DL.new_empty(batch, 1 + num_keep, width)
    num_rows = batch * (1 + num_keep)
    config = block_config("patch_embed_forward", weight_DL)
    num_programs = config.pop("PROGRAMS")
    shrink = max(1, padded_length // TUNED_LENGTH)  # longer patches in the same shared memory
    for name in ("BLOCK_R", "BLOCK_D"):
        config[name] = max(16, config[name] // shrink)
    num_column_tiles = triton.cdiv(width, config["BLOCK_D"])
    num_row_tiles = triton.cdiv(num_rows, config["BLOCK_R"])
    num_groups = min(max(1, num_programs // num_column_tiles), num_row_tiles)
    with torch.cuda.device_of(patches_BNP):
        forward_kernel[(num_groups * num_column_tiles,)](
            patches_BNP,
            ids_keep_BK,
            weight_DL,
            bias_D,
            pos_ND,
            cls_token_D,
            tokens_BTD,
            num_rows,
            num_patches,
            num_keep,
            width,
            L=patch_length,
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
    weight_DL = grad_BTD.new_empty(width, patch_length)
    bias_D = grad_BTD.new_empty(width)
    cls_token_D = grad_BTD.new_empty(width)
    lengths = {"L": patch_length, "P": padded_length}
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
            **lengths,
            **config,
        )
        num_elements = width * padded_length
        reduce_kernel[(triton.cdiv(num_elements, _REDUCE_BLOCK),)](
            partial,
            weight_DL,
            bias_D,
            cls_token_D,
            num_elements,
            SPLITS=num_splits,
            BLOCK=_REDUCE_BLOCK,
            **lengths,
        )
    return weight_DL, bias_D, cls_token_D
