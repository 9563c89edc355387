"""The Triton kernels behind the gradient of `attention.short_attention`."""

# ruff: noqa: ANN001, ANN201, D103 (Triton types its kernels itself; shapes stand beside)
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import triton
import triton.language as tl


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
