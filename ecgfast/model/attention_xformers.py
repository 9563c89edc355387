"""xformers' attention as one operator: its own calls would break a compiled graph."""

# B records, T tokens, H heads, K width of a head

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def xformers_attention(qkv_BT3HK: Tensor) -> Tensor:
    """Attention by xformers' flash operators; CUDA and half precision only.

    Args:
        qkv_BT3HK: (B, T, 3, H, K) fp16 or bf16 on a CUDA device.
    Returns:
        (B, T, H, K).
    """
    out, _ = torch.ops.ecgfast.xformers_attention(qkv_BT3HK)
    assert isinstance(out, Tensor)
    return out


def explain_unavailable(device: torch.device) -> str | None:
    """Say why xformers cannot run here, with the cure; None when it can be tried."""
    if device.type != "cuda":
        return "xformers has no CPU operator"
    try:
        importlib.import_module("xformers.ops.fmha")
    except (ImportError, OSError, RuntimeError) as error:
        first_line = str(error).split("\n")[0]
        return (
            f"xformers cannot be imported ({first_line}); install xformers>=0.0.35, and "
            "nvidia-cuda-runtime-cu12 beside a torch built for CUDA 13"
        )
    return None


@torch.library.custom_op("ecgfast::xformers_attention", mutates_args=())
def _forward(qkv_BT3HK: Tensor) -> tuple[Tensor, Tensor]:
    fmha = importlib.import_module("xformers.ops.fmha")
    q, k, v = qkv_BT3HK.unbind(2)
    operator, _ = _operators(fmha, q, k, v)
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(q, k, v, op=operator)
    return out.contiguous(), lse.contiguous()


@_forward.register_fake
def _(qkv_BT3HK: Tensor) -> tuple[Tensor, Tensor]:
    batch, num_tokens, _, heads, width = qkv_BT3HK.shape
    out = qkv_BT3HK.new_empty(batch, num_tokens, heads, width)
    return out, qkv_BT3HK.new_empty(batch, heads, num_tokens, dtype=torch.float32)


@torch.library.custom_op("ecgfast::xformers_attention_backward", mutates_args=())
def _backward(grad_BTHK: Tensor, qkv_BT3HK: Tensor, out_BTHK: Tensor, lse_BHT: Tensor) -> Tensor:
    fmha = importlib.import_module("xformers.ops.fmha")
    q, k, v = qkv_BT3HK.unbind(2)
    _, operator = _operators(fmha, q, k, v)
    grads = fmha.memory_efficient_attention_backward(
        grad_BTHK.contiguous(), out_BTHK, lse_BHT, q, k, v, op=operator
    )
    return pack_gradients(*grads)


@_backward.register_fake
def _(grad_BTHK: Tensor, qkv_BT3HK: Tensor, out_BTHK: Tensor, lse_BHT: Tensor) -> Tensor:
    return torch.empty_like(qkv_BT3HK, memory_format=torch.contiguous_format)


def pack_gradients(dq: Tensor, dk: Tensor, dv: Tensor) -> Tensor:
    """Join the three gradients; free where the kernel has written them side by side already."""
    base = dq._base
    if base is not None and dk._base is base and dv._base is base and base.is_contiguous():
        shape = (*dq.shape[:2], 3, *dq.shape[2:])
        if base.shape == shape and dk.storage_offset() - dq.storage_offset() == base.stride(2):
            return base
    return torch.stack((dq, dk, dv), dim=2)


def _operators(fmha: ModuleType, q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, Any]:
    """Flash 3 (Hopper) where forward and backward both take the shapes, else flash 2."""
    inputs = fmha.Inputs(query=q, key=k, value=v)
    for module in (fmha.flash3, fmha.flash):
        if module.FwOp.supports(inputs) and module.BwOp.supports(inputs):
            return module.FwOp, module.BwOp
    reasons = fmha.flash.FwOp.not_supported_reasons(inputs)
    raise RuntimeError(f"xformers refuses {tuple(q.shape)} {q.dtype}: {'; '.join(reasons)}")


def _save(
    ctx: Any,  # noqa: ANN401 - torch names no type with both attributes
    inputs: tuple[Tensor],
    output: tuple[Tensor, Tensor],
) -> None:
    ctx.save_for_backward(inputs[0], *output)
    ctx.set_materialize_grads(False)  # nobody asks for the gradient of lse


def _differentiate(
    ctx: Any,  # noqa: ANN401 - as above
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Tensor:
    qkv, out, lse = ctx.saved_tensors
    grad: Tensor = torch.ops.ecgfast.xformers_attention_backward(grad_out, qkv, out, lse)
    return grad


_forward.register_autograd(_differentiate, setup_context=_save)
