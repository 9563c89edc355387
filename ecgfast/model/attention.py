"""Self-attention through one function, whatever kernel runs it."""

# B records, T tokens, H heads, K width of a head

from typing import Any

import torch
from ecgfast_kernels.ops.attention import short_attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ecgfast.model.attention_xformers import xformers_attention
from ecgfast.vocabulary import AttentionKernel

# In the order in which `auto` tries them. Each names one kernel; "auto" is PyTorch's own choice.
KERNELS: tuple[AttentionKernel, ...] = (
    "triton",
    "sdpa_flash",
    "sdpa_cudnn",
    "sdpa_efficient",
    "xformers",
    "math",
)


def attention(
    qkv_BT3HK: Tensor, backend: AttentionKernel, *, bias_3HK: Tensor | None = None
) -> Tensor:
    """Softmax attention of every token on every token.

    Queries, keys and values come packed as the qkv projection writes them, so that no kernel needs
    a copy of them and xformers' gradient can be written in the same layout.

    Args:
        qkv_BT3HK: (B, T, 3, H, K).
        backend: one of `KERNELS`, or "auto" for what PyTorch would choose.
        bias_3HK: (3, H, K) bias that `qkv` holds already, added there detached, to get its gradient
            here; for "triton" only, which sums it without a pass of its own.
    Returns:
        (B, T, H * K), dtype of the input.
    Raises:
        RuntimeError: the kernel cannot run on this device, dtype or shape; ask
            `attention_choice.probe` before.
    """
    if backend == "triton":
        return short_attention(qkv_BT3HK, bias_3HK).flatten(2)
    assert bias_3HK is None, f"{backend} gives the projection's bias no gradient"
    if backend == "xformers":
        return xformers_attention(qkv_BT3HK).flatten(2)
    q_BHTK, k_BHTK, v_BHTK = (part.transpose(1, 2) for part in qkv_BT3HK.unbind(2))
    return _sdpa(q_BHTK, k_BHTK, v_BHTK, backend).transpose(1, 2).flatten(2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, backend: AttentionKernel) -> Tensor:
    """Call one kernel by name: `sdpa_kernel` contexts are lost on compiled code's guards."""
    aten: Any = torch.ops.aten
    match backend:
        case "auto":
            return scaled_dot_product_attention(q, k, v)
        case "sdpa_flash":
            out = aten._scaled_dot_product_flash_attention(q, k, v)[0]
        case "sdpa_cudnn":
            out = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[0]
        case "sdpa_efficient":
            out = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0]
        case "math":
            scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
            out = scores.softmax(dim=-1) @ v
        case _:
            raise AssertionError(f"{backend} is not an SDPA kernel")
    assert isinstance(out, Tensor)
    return out
