"""The Triton kernels behind `attention.short_attention`, forward, and what launches both ways."""

# ruff: noqa: ANN001, ANN201, D103 (Triton types its kernels itself; shapes stand beside)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgfast_kernels.ops.attention_backward_triton import (
    backward_one_pass_kernel,
    backward_one_tile_kernel,
    backward_tiles_kernel,
    own_head,
)
from ecgfast_kernels.ops.library import block_config
from ecgfast_kernels.ops.norm_triton import column_sums
from ecgfast_kernels.ops.reference import LOG2_E

SHORT = 64  # tokens that one tile can hold


@triton.jit
def forward_kernel(
    qkv,  # (B, T, 3, H, K)
    out,  # (B, T, H, K)
    lse,  # (B, H, T) fp32, base 2
    num_tokens,
    num_heads,
    scale,  # K ** -0.5 * log2(e)
    HEAD: tl.constexpr,
    BLOCK_N: tl.constexpr,  # keys, a power of two >= T
    BLOCK_M: tl.constexpr,  # queries at a time
):
    in_qkv, in_out, in_lse, _ = own_head(num_tokens, num_heads, HEAD)
    qkv, out, lse = qkv + in_qkv, out + in_out, lse + in_lse
    width = num_heads * HEAD
    k = tl.arange(0, HEAD)
    n = tl.arange(0, BLOCK_N)
    rows_n = n[:, None] * (3 * width) + k[None, :]
    valid_n = n < num_tokens
    key = tl.load(qkv + width + rows_n, mask=valid_n[:, None], other=0.0)
    value = tl.load(qkv + 2 * width + rows_n, mask=valid_n[:, None], other=0.0)
    for start in range(0, num_tokens, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        valid_m = m < num_tokens
        rows_qkv = m[:, None] * (3 * width) + k[None, :]
        query = tl.load(qkv + rows_qkv, mask=valid_m[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(valid_n[None, :], scores, float("-inf"))
        peak = tl.max(scores, 1)
        weight = tl.exp2(scores - peak[:, None])
        total = tl.sum(weight, 1)
        mixed = tl.dot(weight.to(value.dtype), value, input_precision="ieee") / total[:, None]
        rows_out = m[:, None] * width + k[None, :]
        tl.store(out + rows_out, mixed.to(out.dtype.element_ty), mask=valid_m[:, None])
        tl.store(lse + m, peak + tl.log2(total), mask=valid_m)


@triton.jit
def forward_halves_kernel(
    qkv,  # (B, T, 3, H, K)
    out,  # (B, T, H, K)
    lse,  # (B, H, T) fp32, base 2
    num_tokens,
    num_heads,
    scale,  # K ** -0.5 * log2(e)
    HEAD: tl.constexpr,
    BLOCK_N: tl.constexpr,  # half of the keys' tile: BLOCK_N < T <= 2 * BLOCK_N
    BLOCK_M: tl.constexpr,  # queries at a time
):
    """Keys in two halves: half the registers for scores, and no mask on the first half."""
    in_qkv, in_out, in_lse, _ = own_head(num_tokens, num_heads, HEAD)
    qkv, out, lse = qkv + in_qkv, out + in_out, lse + in_lse
    width = num_heads * HEAD
    k = tl.arange(0, HEAD)
    n = tl.arange(0, BLOCK_N)
    rows_n = n[:, None] * (3 * width) + k[None, :]
    key = tl.load(qkv + width + rows_n)
    value = tl.load(qkv + 2 * width + rows_n)
    far = n + BLOCK_N < num_tokens
    rows_far = rows_n + BLOCK_N * 3 * width
    far_key = tl.load(qkv + width + rows_far, mask=far[:, None], other=0.0)
    far_value = tl.load(qkv + 2 * width + rows_far, mask=far[:, None], other=0.0)
    for start in range(0, num_tokens, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        valid_m = m < num_tokens
        rows_qkv = m[:, None] * (3 * width) + k[None, :]
        query = tl.load(qkv + rows_qkv, mask=valid_m[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee")
        near_peak = tl.max(scores, 1) * scale
        weight = tl.exp2(scores * scale - near_peak[:, None])
        near_total = tl.sum(weight, 1)
        mixed = tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        scores = tl.dot(query, tl.trans(far_key), input_precision="ieee")
        scores = tl.where(far[None, :], scores, float("-inf"))
        peak = tl.maximum(near_peak, tl.max(scores, 1) * scale)
        weight = tl.exp2(scores * scale - peak[:, None])
        shrink = tl.exp2(near_peak - peak)
        total = near_total * shrink + tl.sum(weight, 1)
        mixed *= shrink[:, None]
        mixed = tl.dot(weight.to(value.dtype), far_value, mixed, input_precision="ieee")
        mixed *= (1.0 / total)[:, None]
        rows_out = m[:, None] * width + k[None, :]
        tl.store(out + rows_out, mixed.to(out.dtype.element_ty), mask=valid_m[:, None])
        tl.store(lse + m, peak + tl.log2(total), mask=valid_m)


def forward(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Launch a forward kernel; see `reference.short_attention`."""
    num_records, num_tokens, _, num_heads, head_width = qkv.shape
    out = qkv.new_empty((num_records, num_tokens, num_heads, head_width))
    lse = qkv.new_empty((num_records, num_heads, num_tokens), dtype=torch.float32)
    config = block_config(f"attention_forward_{_length(num_tokens)}", qkv)
    block_n = max(16, triton.next_power_of_2(num_tokens))
    config["BLOCK_M"] = min(config["BLOCK_M"], block_n)
    # halves of 16 keys at least, of which the first is full
    halves = config.pop("HALVES") and num_tokens > 16
    kernel = forward_halves_kernel if halves else forward_kernel
    kernel[(num_records * num_heads,)](
        qkv,
        out,
        lse,
        num_tokens,
        num_heads,
        head_width**-0.5 * LOG2_E,
        HEAD=head_width,
        BLOCK_N=block_n // 2 if halves else block_n,
        **config,
    )
    return out, lse


def backward(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Launch a backward kernel; see `reference.short_attention_backward`."""
    num_records, num_tokens, _, num_heads, head_width = qkv.shape
    grad_qkv = torch.empty_like(qkv)
    partial = qkv.new_empty((num_records, 3, num_heads, head_width), dtype=torch.float32)
    config = block_config(f"attention_backward_{_length(num_tokens)}_{max(32, head_width)}", qkv)
    one_pass = config.pop("ONE_PASS")
    if num_tokens <= config["BLOCK"]:
        kernel = backward_one_tile_kernel
    elif one_pass:
        kernel = backward_one_pass_kernel
        config["BLOCK_N"] = max(16, triton.next_power_of_2(num_tokens))
    else:
        kernel = backward_tiles_kernel
    kernel[(num_records * num_heads,)](
        grad,
        qkv,
        out,
        lse,
        grad_qkv,
        partial,
        num_tokens,
        num_heads,
        head_width**-0.5,
        LOG2_E,
        HEAD=head_width,
        **config,
    )
    return grad_qkv, column_sums(partial, qkv.dtype)


def _length(num_tokens: int) -> str:
    return "short" if num_tokens <= SHORT else "long"
