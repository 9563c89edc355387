"""The Triton kernels behind `attention.short_attention`: one program per record and head."""

# ruff: noqa: ANN001, ANN201, D103 (Triton types its kernels itself; shapes stand beside)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from ecgfast_kernels.ops.column_sums_triton import column_sums
from ecgfast_kernels.ops.tuning import block_config

LOG2_E = 1.4426950408889634
SHORT = 64  # tokens that one tile can hold


@triton.jit
def own_head(num_tokens, num_heads, HEAD: tl.constexpr):
    """Where the record and head of this program begin in qkv, out, lse and grad_bias."""
    record = tl.program_id(0).to(tl.int64) // num_heads
    head = tl.program_id(0) % num_heads
    width = num_heads * HEAD
    column = head * HEAD
    row = record * num_tokens * width
    in_lse = (record * num_heads + head) * num_tokens
    return 3 * row + column, row + column, in_lse, record * 3 * width + column


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


@triton.jit
def backward_tile(
    qkv,
    grad,
    out,
    lse,
    key,
    value,
    m,
    n,
    num_tokens,
    width,
    scale,
    log2_e,
    HEAD: tl.constexpr,
):
    """One tile of queries m against keys n: what both passes of the backward recompute."""
    k = tl.arange(0, HEAD)
    valid_m = m < num_tokens
    rows_m = m[:, None] * width + k[None, :]
    rows_qkv = m[:, None] * (3 * width) + k[None, :]
    query = tl.load(qkv + rows_qkv, mask=valid_m[:, None], other=0.0)
    grad_m = tl.load(grad + rows_m, mask=valid_m[:, None], other=0.0)
    out_m = tl.load(out + rows_m, mask=valid_m[:, None], other=0.0)
    lse_m = tl.load(lse + m, mask=valid_m, other=0.0)
    delta = tl.sum(grad_m.to(tl.float32) * out_m.to(tl.float32), 1)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale * log2_e)
    weight = tl.exp2(scores - lse_m[:, None])
    weight = tl.where((n < num_tokens)[None, :] & valid_m[:, None], weight, 0.0)
    grad_weight = tl.dot(grad_m, tl.trans(value), input_precision="ieee")
    grad_scores = (weight * (grad_weight - delta[:, None]) * scale).to(key.dtype)
    return query, grad_m, weight.to(key.dtype), grad_scores


@triton.jit
def backward_one_tile_kernel(
    grad,  # (B, T, H, K)
    qkv,  # (B, T, 3, H, K)
    out,  # (B, T, H, K)
    lse,  # (B, H, T) fp32, base 2
    grad_qkv,  # (B, T, 3, H, K)
    grad_bias,  # (B, 3, H, K) fp32, each record's sum over its tokens
    num_tokens,
    num_heads,
    scale,  # K ** -0.5
    log2_e,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,  # a power of two >= T
):
    in_qkv, in_out, in_lse, in_grad_bias = own_head(num_tokens, num_heads, HEAD)
    qkv, grad_qkv = qkv + in_qkv, grad_qkv + in_qkv
    grad, out, lse = grad + in_out, out + in_out, lse + in_lse
    width = num_heads * HEAD
    element = grad_qkv.dtype.element_ty
    k = tl.arange(0, HEAD)
    grad_bias += in_grad_bias + k
    n = tl.arange(0, BLOCK)
    rows = n[:, None] * (3 * width) + k[None, :]
    valid = n < num_tokens
    key = tl.load(qkv + width + rows, mask=valid[:, None], other=0.0)
    value = tl.load(qkv + 2 * width + rows, mask=valid[:, None], other=0.0)
    query, grad_m, weight, grad_scores = backward_tile(
        qkv, grad, out, lse, key, value, n, n, num_tokens, width, scale, log2_e, HEAD
    )
    grad_value = tl.dot(tl.trans(weight), grad_m, input_precision="ieee")
    tl.store(grad_qkv + 2 * width + rows, grad_value.to(element), mask=valid[:, None])
    tl.store(grad_bias + 2 * width, tl.sum(grad_value, 0))
    grad_key = tl.dot(tl.trans(grad_scores), query, input_precision="ieee")
    tl.store(grad_qkv + width + rows, grad_key.to(element), mask=valid[:, None])
    tl.store(grad_bias + width, tl.sum(grad_key, 0))
    grad_query = tl.dot(grad_scores, key, input_precision="ieee")
    tl.store(grad_qkv + rows, grad_query.to(element), mask=valid[:, None])
    tl.store(grad_bias, tl.sum(grad_query, 0))


@triton.jit
def backward_tiles_kernel(
    grad,  # (B, T, H, K)
    qkv,  # (B, T, 3, H, K)
    out,  # (B, T, H, K)
    lse,  # (B, H, T) fp32, base 2
    grad_qkv,  # (B, T, 3, H, K)
    grad_bias,  # (B, 3, H, K) fp32, each record's sum over its tokens
    num_tokens,
    num_heads,
    scale,  # K ** -0.5
    log2_e,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,  # queries and keys at a time
):
    """Two passes, keys outside and then queries outside: no atomics, so bit-equal between runs."""
    in_qkv, in_out, in_lse, in_grad_bias = own_head(num_tokens, num_heads, HEAD)
    qkv, grad_qkv = qkv + in_qkv, grad_qkv + in_qkv
    grad, out, lse = grad + in_out, out + in_out, lse + in_lse
    width = num_heads * HEAD
    element = grad_qkv.dtype.element_ty
    k = tl.arange(0, HEAD)
    grad_bias += in_grad_bias + k
    sum_key = tl.zeros((HEAD,), tl.float32)
    sum_value = tl.zeros((HEAD,), tl.float32)
    for start_n in range(0, num_tokens, BLOCK):
        n = start_n + tl.arange(0, BLOCK)
        rows_n = n[:, None] * (3 * width) + k[None, :]
        valid_n = n < num_tokens
        key = tl.load(qkv + width + rows_n, mask=valid_n[:, None], other=0.0)
        value = tl.load(qkv + 2 * width + rows_n, mask=valid_n[:, None], other=0.0)
        grad_key = tl.zeros((BLOCK, HEAD), tl.float32)
        grad_value = tl.zeros((BLOCK, HEAD), tl.float32)
        for start_m in range(0, num_tokens, BLOCK):
            m = start_m + tl.arange(0, BLOCK)
            query, grad_m, weight, grad_scores = backward_tile(
                qkv, grad, out, lse, key, value, m, n, num_tokens, width, scale, log2_e, HEAD
            )
            grad_value += tl.dot(tl.trans(weight), grad_m, input_precision="ieee")
            grad_key += tl.dot(tl.trans(grad_scores), query, input_precision="ieee")
        tl.store(grad_qkv + width + rows_n, grad_key.to(element), mask=valid_n[:, None])
        tl.store(grad_qkv + 2 * width + rows_n, grad_value.to(element), mask=valid_n[:, None])
        sum_key += tl.sum(grad_key, 0)
        sum_value += tl.sum(grad_value, 0)
    tl.store(grad_bias + width, sum_key)
    tl.store(grad_bias + 2 * width, sum_value)
    sum_query = tl.zeros((HEAD,), tl.float32)
    for start_m in range(0, num_tokens, BLOCK):
        m = start_m + tl.arange(0, BLOCK)
        grad_query = tl.zeros((BLOCK, HEAD), tl.float32)
        for start_n in range(0, num_tokens, BLOCK):
            n = start_n + tl.arange(0, BLOCK)
            rows_n = n[:, None] * (3 * width) + k[None, :]
            valid_n = n < num_tokens
            key = tl.load(qkv + width + rows_n, mask=valid_n[:, None], other=0.0)
            value = tl.load(qkv + 2 * width + rows_n, mask=valid_n[:, None], other=0.0)
            query, grad_m, weight, grad_scores = backward_tile(
                qkv, grad, out, lse, key, value, m, n, num_tokens, width, scale, log2_e, HEAD
            )
            grad_query += tl.dot(grad_scores, key, input_precision="ieee")
        rows_m = m[:, None] * (3 * width) + k[None, :]
        tl.store(grad_qkv + rows_m, grad_query.to(element), mask=(m < num_tokens)[:, None])
        sum_query += tl.sum(grad_query, 0)
    tl.store(grad_bias, sum_query)


@triton.jit
def backward_one_pass_kernel(
    grad,  # (B, T, H, K)
    qkv,  # (B, T, 3, H, K)
    out,  # (B, T, H, K)
    lse,  # (B, H, T) fp32, base 2
    grad_qkv,  # (B, T, 3, H, K)
    grad_bias,  # (B, 3, H, K) fp32, each record's sum over its tokens
    num_tokens,
    num_heads,
    scale,  # K ** -0.5
    log2_e,
    HEAD: tl.constexpr,
    BLOCK_N: tl.constexpr,  # keys, a power of two >= T
    BLOCK: tl.constexpr,  # queries at a time
):
    """All keys in one tile, so that scores are computed once; they lie transposed, in registers."""
    in_qkv, in_out, in_lse, in_grad_bias = own_head(num_tokens, num_heads, HEAD)
    qkv, grad_qkv = qkv + in_qkv, grad_qkv + in_qkv
    grad, out, lse = grad + in_out, out + in_out, lse + in_lse
    width = num_heads * HEAD
    element = grad_qkv.dtype.element_ty
    k = tl.arange(0, HEAD)
    grad_bias += in_grad_bias + k
    n = tl.arange(0, BLOCK_N)
    rows_n = n[:, None] * (3 * width) + k[None, :]
    valid_n = n < num_tokens
    key = tl.load(qkv + width + rows_n, mask=valid_n[:, None], other=0.0)
    value = tl.load(qkv + 2 * width + rows_n, mask=valid_n[:, None], other=0.0)
    grad_key = tl.zeros((BLOCK_N, HEAD), tl.float32)
    grad_value = tl.zeros((BLOCK_N, HEAD), tl.float32)
    sum_query = tl.zeros((HEAD,), tl.float32)
    for start in range(0, num_tokens, BLOCK):
        m = start + tl.arange(0, BLOCK)
        valid_m = m < num_tokens
        rows_m = m[:, None] * width + k[None, :]
        rows_qkv = m[:, None] * (3 * width) + k[None, :]
        query = tl.load(qkv + rows_qkv, mask=valid_m[:, None], other=0.0)
        grad_m = tl.load(grad + rows_m, mask=valid_m[:, None], other=0.0)
        out_m = tl.load(out + rows_m, mask=valid_m[:, None], other=0.0)
        # queries beyond the end: exp2(-inf) is 0, so they add nothing
        lse_m = tl.load(lse + m, mask=valid_m, other=float("inf"))
        delta = tl.sum(grad_m.to(tl.float32) * out_m.to(tl.float32), 1)
        scores = tl.dot(key, tl.trans(query), input_precision="ieee")
        weight = tl.exp2(scores * (scale * log2_e) - lse_m[None, :])
        weight = tl.where(valid_n[:, None], weight, 0.0)
        grad_weight = tl.dot(value, tl.trans(grad_m), input_precision="ieee")
        grad_scores = (weight * (grad_weight - delta[None, :])).to(key.dtype)
        grad_value = tl.dot(weight.to(key.dtype), grad_m, grad_value, input_precision="ieee")
        grad_key = tl.dot(grad_scores, query, grad_key, input_precision="ieee")
        grad_query = tl.dot(tl.trans(grad_scores), key, input_precision="ieee") * scale
        tl.store(grad_qkv + rows_qkv, grad_query.to(element), mask=valid_m[:, None])
        sum_query += tl.sum(grad_query, 0)
    grad_key *= scale
    tl.store(grad_qkv + width + rows_n, grad_key.to(element), mask=valid_n[:, None])
    tl.store(grad_qkv + 2 * width + rows_n, grad_value.to(element), mask=valid_n[:, None])
    tl.store(grad_bias, sum_query)
    tl.store(grad_bias + width, tl.sum(grad_key, 0))
    tl.store(grad_bias + 2 * width, tl.sum(grad_value, 0))


def forward(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Launch a forward kernel; see `attention.reference_forward`."""
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
    """Launch a backward kernel; see `attention.reference_backward`."""
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
