"""The Triton kernels behind `attention.short_attention`: one program per record and head."""

# ruff: noqa: ANN001, ANN201, D103 (kernels: Triton reads their annotations; shapes stand beside)

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634


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
    record = tl.program_id(0).to(tl.int64) // num_heads
    head = tl.program_id(0) % num_heads
    width = num_heads * HEAD
    qkv += record * num_tokens * 3 * width + head * HEAD
    out += record * num_tokens * width + head * HEAD
    lse += (record * num_heads + head) * num_tokens
    k = tl.arange(0, HEAD)
    n = tl.arange(0, BLOCK_N)
    rows_n = n[:, None] * (3 * width) + k[None, :]
    valid_n = n < num_tokens
    key = tl.load(qkv + width + rows_n, mask=valid_n[:, None], other=0.0)
    value = tl.load(qkv + 2 * width + rows_n, mask=valid_n[:, None], other=0.0)
    for start in range(0, num_tokens, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        valid_m = m < num_tokens
        rows_m = m[:, None] * (3 * width) + k[None, :]
        query = tl.load(qkv + rows_m, mask=valid_m[:, None], other=0.0)
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
    query = tl.load(qkv + m[:, None] * (3 * width) + k[None, :], mask=valid_m[:, None], other=0.0)
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
    num_tokens,
    num_heads,
    scale,  # K ** -0.5
    log2_e,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,  # a power of two >= T
):
    record = tl.program_id(0).to(tl.int64) // num_heads
    head = tl.program_id(0) % num_heads
    width = num_heads * HEAD
    element = grad_qkv.dtype.element_ty
    n = tl.arange(0, BLOCK)
    rows = n[:, None] * (3 * width) + tl.arange(0, HEAD)[None, :]
    valid = (n < num_tokens)[:, None]
    qkv += record * num_tokens * 3 * width + head * HEAD
    grad_qkv += record * num_tokens * 3 * width + head * HEAD
    start = record * num_tokens * width + head * HEAD
    lse += (record * num_heads + head) * num_tokens
    key = tl.load(qkv + width + rows, mask=valid, other=0.0)
    value = tl.load(qkv + 2 * width + rows, mask=valid, other=0.0)
    query, grad_m, weight, grad_scores = backward_tile(
        qkv,
        grad + start,
        out + start,
        lse,
        key,
        value,
        n,
        n,
        num_tokens,
        width,
        scale,
        log2_e,
        HEAD,
    )
    grad_value = tl.dot(tl.trans(weight), grad_m, input_precision="ieee").to(element)
    tl.store(grad_qkv + 2 * width + rows, grad_value, mask=valid)
    grad_key = tl.dot(tl.trans(grad_scores), query, input_precision="ieee").to(element)
    tl.store(grad_qkv + width + rows, grad_key, mask=valid)
    grad_query = tl.dot(grad_scores, key, input_precision="ieee").to(element)
    tl.store(grad_qkv + rows, grad_query, mask=valid)


@triton.jit
def backward_tiles_kernel(
    grad,  # (B, T, H, K)
    qkv,  # (B, T, 3, H, K)
    out,  # (B, T, H, K)
    lse,  # (B, H, T) fp32, base 2
    grad_qkv,  # (B, T, 3, H, K)
    num_tokens,
    num_heads,
    scale,  # K ** -0.5
    log2_e,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,  # queries and keys at a time
):
    """Two passes, keys outside and then queries outside: no atomics, so bit-equal between runs."""
    record = tl.program_id(0).to(tl.int64) // num_heads
    head = tl.program_id(0) % num_heads
    width = num_heads * HEAD
    element = grad_qkv.dtype.element_ty
    qkv += record * num_tokens * 3 * width + head * HEAD
    grad_qkv += record * num_tokens * 3 * width + head * HEAD
    out += record * num_tokens * width + head * HEAD
    grad += record * num_tokens * width + head * HEAD
    lse += (record * num_heads + head) * num_tokens
    k = tl.arange(0, HEAD)
    for start_n in range(0, num_tokens, BLOCK):
        n = start_n + tl.arange(0, BLOCK)
        rows_n = n[:, None] * (3 * width) + k[None, :]
        valid_n = (n < num_tokens)[:, None]
        key = tl.load(qkv + width + rows_n, mask=valid_n, other=0.0)
        value = tl.load(qkv + 2 * width + rows_n, mask=valid_n, other=0.0)
        grad_key = tl.zeros((BLOCK, HEAD), tl.float32)
        grad_value = tl.zeros((BLOCK, HEAD), tl.float32)
        for start_m in range(0, num_tokens, BLOCK):
            m = start_m + tl.arange(0, BLOCK)
            query, grad_m, weight, grad_scores = backward_tile(
                qkv, grad, out, lse, key, value, m, n, num_tokens, width, scale, log2_e, HEAD
            )
            grad_value += tl.dot(tl.trans(weight), grad_m, input_precision="ieee")
            grad_key += tl.dot(tl.trans(grad_scores), query, input_precision="ieee")
        tl.store(grad_qkv + width + rows_n, grad_key.to(element), mask=valid_n)
        tl.store(grad_qkv + 2 * width + rows_n, grad_value.to(element), mask=valid_n)
    for start_m in range(0, num_tokens, BLOCK):
        m = start_m + tl.arange(0, BLOCK)
        grad_query = tl.zeros((BLOCK, HEAD), tl.float32)
        for start_n in range(0, num_tokens, BLOCK):
            n = start_n + tl.arange(0, BLOCK)
            rows_n = n[:, None] * (3 * width) + k[None, :]
            valid_n = (n < num_tokens)[:, None]
            key = tl.load(qkv + width + rows_n, mask=valid_n, other=0.0)
            value = tl.load(qkv + 2 * width + rows_n, mask=valid_n, other=0.0)
            query, grad_m, weight, grad_scores = backward_tile(
                qkv, grad, out, lse, key, value, m, n, num_tokens, width, scale, log2_e, HEAD
            )
            grad_query += tl.dot(grad_scores, key, input_precision="ieee")
        rows_m = m[:, None] * (3 * width) + k[None, :]
        tl.store(grad_qkv + rows_m, grad_query.to(element), mask=(m < num_tokens)[:, None])


def forward(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel; see `attention.reference_forward`."""
    qkv = qkv.contiguous()
    num_records, num_tokens, _, num_heads, head_width = qkv.shape
    out = qkv.new_empty((num_records, num_tokens, num_heads, head_width))
    lse = qkv.new_empty((num_records, num_heads, num_tokens), dtype=torch.float32)
    block_n = _block_n(num_tokens)
    forward_kernel[(num_records * num_heads,)](
        qkv,
        out,
        lse,
        num_tokens,
        num_heads,
        head_width**-0.5 * LOG2_E,
        HEAD=head_width,
        BLOCK_N=block_n,
        BLOCK_M=min(block_n, 64),
        num_warps=4,
    )
    return out, lse


def backward(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    """Launch the backward kernel; see `attention.reference_backward`."""
    qkv = qkv.contiguous()
    num_records, num_tokens, _, num_heads, head_width = qkv.shape
    grad_qkv = torch.empty_like(qkv)
    block = min(_block_n(num_tokens), 64)
    kernel = backward_one_tile_kernel if num_tokens <= block else backward_tiles_kernel
    kernel[(num_records * num_heads,)](
        grad.contiguous(),
        qkv,
        out,
        lse,
        grad_qkv,
        num_tokens,
        num_heads,
        head_width**-0.5,
        LOG2_E,
        HEAD=head_width,
        BLOCK=block,
        num_warps=8 if num_tokens > block and head_width > 32 else 4,  # 4 would spill there
    )
    return grad_qkv


def _block_n(num_tokens: int) -> int:
    return max(16, triton.next_power_of_2(num_tokens))
