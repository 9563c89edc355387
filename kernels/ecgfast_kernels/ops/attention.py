"""Self-attention for short sequences: a whole head's keys and values stay on chip.

At 61 tokens a kernel for long sequences wastes most of its 128 x 128 tiles, and its backward adds
with atomics. Here one program owns one head of one record: no tile is wasted at 61 tokens, there
are no atomics (bit-equal from run to run), and the packed projection (B, T, 3, H, K) is read and
written as it stands, so that nothing is permuted, split or concatenated. The projection adds its
own bias, which costs it nothing, but the bias's gradient comes from here: it is a sum over what the
backward has in registers anyway.

Shapes: B records, T tokens, H heads, K head width.
"""

# ruff: noqa: ANN401 (PyTorch hands an autograd.Function its ctx untyped)

from typing import Any

import torch
from torch import Tensor

from ecgfast_kernels.ops import library
from ecgfast_kernels.ops.library import HAS_TRITON

MAX_TOKENS = 256  # two passes over the tiles of longer sequences lose to kernels made for them
HEAD_WIDTHS = (16, 32, 64)


def supports(num_tokens: int, head_width: int) -> bool:
    """Whether `short_attention` has a kernel for this shape."""
    return HAS_TRITON and num_tokens <= MAX_TOKENS and head_width in HEAD_WIDTHS


def short_attention(qkv_BT3HK: Tensor, bias_3HK: Tensor | None = None) -> Tensor:
    """Softmax attention of every token to every token of its record.

    Args:
        qkv_BT3HK: (B, T, 3, H, K); query, key and value; fp16, bf16 or (reference, interpreter)
            fp32 and fp64.
        bias_3HK: (3, H, K) bias that `qkv` holds already, added there detached: it gets its
            gradient here, the sum of `qkv`'s over records and tokens.
    Returns:
        (B, T, H, K), dtype of `qkv`. Differentiable; gradients are bit-equal between runs.
    Raises:
        ValueError: the shapes disagree, or T or K is out of the kernel's range.
    Source: Vaswani et al. 2017, section 3.2.1; softmax statistics kept for the backward as in
        Dao et al. 2022, section 3.1.
    """
    library.require(
        qkv_BT3HK.ndim == 5 and qkv_BT3HK.shape[2] == 3,
        f"qkv must be (B, T, 3, H, K), got {tuple(qkv_BT3HK.shape)}",
    )
    library.require(
        bias_3HK is None or bias_3HK.shape == qkv_BT3HK.shape[2:],
        f"bias must be {tuple(qkv_BT3HK.shape[2:])}, got "
        f"{None if bias_3HK is None else tuple(bias_3HK.shape)}",
    )
    num_tokens, head_width = qkv_BT3HK.shape[1], qkv_BT3HK.shape[-1]
    library.require(
        not qkv_BT3HK.is_cuda or supports(num_tokens, head_width),
        f"short_attention needs T <= {MAX_TOKENS} and K in {HEAD_WIDTHS}, got T={num_tokens}, "
        f"K={head_width}; take another attention",
    )
    out: Tensor = _ShortAttention.apply(qkv_BT3HK, bias_3HK)  # type: ignore[no-untyped-call]  # no types in PyTorch
    return out


class _ShortAttention(torch.autograd.Function):
    """Autograd around the two operators; of the bias only the gradient matters."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor | None) -> Tensor:
        qkv = qkv.contiguous()
        out: Tensor
        out, lse = torch.ops.ecgfast.short_attention(qkv)
        ctx.has_bias = bias is not None
        ctx.save_for_backward(qkv, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:
        grad_qkv, grad_bias = torch.ops.ecgfast.short_attention_backward(
            grads[0].contiguous(), *ctx.saved_tensors
        )
        return grad_qkv, grad_bias if ctx.has_bias else None


def _fake(qkv: Tensor) -> tuple[Tensor, Tensor]:
    num_records, num_tokens, _, num_heads, head_width = qkv.shape
    wide = torch.promote_types(qkv.dtype, torch.float32)
    return (
        qkv.new_empty((num_records, num_tokens, num_heads, head_width)),
        qkv.new_empty((num_records, num_heads, num_tokens), dtype=wide),
    )


def _backward_fake(grad: Tensor, qkv: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv), qkv.new_empty(qkv.shape[2:])


library.register("short_attention", _fake, triton="attention_triton.forward")
library.register("short_attention_backward", _backward_fake, triton="attention_triton.backward")
