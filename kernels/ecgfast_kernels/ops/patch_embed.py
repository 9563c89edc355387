"""patch_embed_masked: only the visible patches are gathered and embedded, in one pass.

Shapes: B records, N patches, K kept patches, L and P patch length bare and padded,
D encoder width, T = 1 + K.
"""

# ruff: noqa: ANN401 (PyTorch hands an autograd.Function its ctx untyped)

from typing import Any

import torch
from torch import Tensor

from ecgfast_kernels.ops import library, reference
from ecgfast_kernels.ops.backend import resolve

# Two padding columns carry the bias and class-token gradients through the weight-gradient GEMM.
MIN_PADDING = 2


def patch_embed_masked(
    patches_BNP: Tensor,
    ids_keep_BK: Tensor,
    weight_DL: Tensor,
    bias_D: Tensor,
    pos_ND: Tensor,
    cls_token_D: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Embed the kept patches, add positions, put the class token in front.

    Args:
        patches_BNP: (B, N, P) fp16 (fp32 or fp64 too), z-scored units; the columns from the
            weight's second size on are zero.
        ids_keep_BK: (B, K) int64, in [0, N).
        weight_DL: (D, patch_length) in the dtype to compute in; patches are cast to it.
        bias_D: (D,).
        pos_ND: (1 + N, D) fixed positions; row 0 belongs to the class token.
        cls_token_D: (D,).
        backend: "auto", "triton" or "reference".
    Returns:
        (B, 1 + K, D) in the weight's dtype. Differentiable in weight, bias and class token.
    Raises:
        ValueError: the shapes disagree, or patches or positions ask for a gradient.
    Source: He et al. 2022, section 3 (the encoder sees visible patches only).
    """
    width, patch_length = weight_DL.shape
    library.require(
        patches_BNP.ndim == 3 and patches_BNP.shape[2] >= patch_length + MIN_PADDING,
        f"patches must be (B, N, P) with P >= {patch_length + MIN_PADDING} for this weight, "
        f"got {tuple(patches_BNP.shape)}; pad each patch with zeros",
    )
    num_patches = patches_BNP.shape[1]
    library.require(
        ids_keep_BK.ndim == 2 and ids_keep_BK.shape[0] == patches_BNP.shape[0],
        f"ids_keep must be ({patches_BNP.shape[0]}, K), got {tuple(ids_keep_BK.shape)}",
    )
    library.require(
        tuple(pos_ND.shape) == (1 + num_patches, width),
        f"pos must be {(1 + num_patches, width)}, got {tuple(pos_ND.shape)}",
    )
    library.require(
        tuple(bias_D.shape) == (width,) and tuple(cls_token_D.shape) == (width,),
        f"bias and cls_token must be ({width},), got {tuple(bias_D.shape)} and "
        f"{tuple(cls_token_D.shape)}",
    )
    library.require(
        not (patches_BNP.requires_grad or pos_ND.requires_grad),
        "patches and pos are fixed here, but one requires a gradient; detach it",
    )
    if resolve(backend, patches_BNP.device) == "reference":
        return reference.patch_embed_masked(
            patches_BNP, ids_keep_BK, weight_DL, bias_D, pos_ND, cls_token_D
        )
    tokens_BTD: Tensor = _PatchEmbedMasked.apply(  # type: ignore[no-untyped-call]  # no types in PyTorch
        patches_BNP, ids_keep_BK, weight_DL, bias_D, pos_ND, cls_token_D
    )
    return tokens_BTD


class _PatchEmbedMasked(torch.autograd.Function):
    """Autograd around the two operators."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        patches_BNP, ids_keep_BK, weight_DL, bias_D, pos_ND, cls_token_D = tensors
        dtype = weight_DL.dtype
        ctx.save_for_backward(patches_BNP, ids_keep_BK)
        ctx.patch_length = weight_DL.shape[1]
        tokens_BTD: Tensor = torch.ops.ecgfast.patch_embed_masked(
            patches_BNP.contiguous(),
            ids_keep_BK.contiguous(),
            weight_DL.contiguous(),
            bias_D.to(dtype).contiguous(),
            pos_ND.contiguous(),
            cls_token_D.to(dtype).contiguous(),
        )
        return tokens_BTD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        patches_BNP, ids_keep_BK = ctx.saved_tensors
        weight_DL, bias_D, cls_token_D = torch.ops.ecgfast.patch_embed_masked_backward(
            grads[0].contiguous(),
            patches_BNP.contiguous(),
            ids_keep_BK.contiguous(),
            ctx.patch_length,
        )
        return None, None, weight_DL, bias_D, None, cls_token_D


def _triton(*tensors: Tensor) -> Tensor:
    from ecgfast_kernels.ops import patch_embed_triton

    return patch_embed_triton.forward(*tensors)


def _triton_backward(
    grad_BTD: Tensor, patches_BNP: Tensor, ids_keep_BK: Tensor, patch_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    from ecgfast_kernels.ops import patch_embed_triton

    return patch_embed_triton.backward(grad_BTD, patches_BNP, ids_keep_BK, patch_length)


def _fake(patches_BNP: Tensor, ids_keep_BK: Tensor, weight_DL: Tensor, *rest: Tensor) -> Tensor:
    batch, num_keep = ids_keep_BK.shape
    return weight_DL.new_empty(batch, 1 + num_keep, weight_DL.shape[0])


def _fake_backward(
    grad_BTD: Tensor, patches_BNP: Tensor, ids_keep_BK: Tensor, patch_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    width = grad_BTD.shape[2]
    return (
        grad_BTD.new_empty(width, patch_length),
        grad_BTD.new_empty(width),
        grad_BTD.new_empty(width),
    )


library.register(
    "patch_embed_masked(Tensor patches, Tensor ids_keep, Tensor weight, Tensor bias,"
    " Tensor pos, Tensor cls_token) -> Tensor",
    triton=_triton,
    reference=reference.patch_embed_masked,
    fake=_fake,
)
library.register(
    "patch_embed_masked_backward(Tensor grad, Tensor patches, Tensor ids_keep, int patch_length)"
    " -> (Tensor, Tensor, Tensor)",
    triton=_triton_backward,
    reference=reference.patch_embed_masked_backward,
    fake=_fake_backward,
)
