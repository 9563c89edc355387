"""Self-attention through one function, whatever kernel runs it: ours, PyTorch's or xformers'."""

# B records, T tokens, H heads, K width of a head

import importlib
from types import ModuleType
from typing import Any

import torch
from ecgfast_kernels.ops.attention import short_attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

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
    """Why xformers cannot run here, with the cure; None when it can be tried."""
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
    ctx.set_materialize_grads(False)  # the gradient of lse is not used


def _differentiate(
    ctx: Any,  # noqa: ANN401 - as above
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Tensor:
    qkv, out, lse = ctx.saved_tensors
    grad: Tensor = torch.ops.ecgfast.xformers_attention_backward(grad_out, qkv, out, lse)
    return grad


_forward.register_autograd(_differentiate, setup_context=_save)
