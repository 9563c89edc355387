"""masked_mse: the pretraining loss, which reads and differentiates removed patches only.

Shapes: B records, N patches, P padded patch length; pred has the true patch length (250).
"""

# ruff: noqa: ANN401 (PyTorch hands an autograd.Function its ctx untyped)

from typing import Any

import torch
from torch import Tensor

from ecgfast_kernels.ops import library, reference
from ecgfast_kernels.ops.library import resolve


def masked_mse(
    pred_BNP: Tensor,
    patches_BNP: Tensor,
    mask_BN: Tensor,
    *,
    norm_patch: bool,
    backend: str = "auto",
) -> Tensor:
    """Mean squared error over the removed patches.

    Args:
        pred_BNP: (B, N, patch_length) bf16, fp16, fp32 or fp64, in units of the target. Its last
            dimension must be dense; the others may be strided, so a slice of padded rows is free.
        patches_BNP: (B, N, P) fp16 (fp32 or fp64 too), z-scored units; columns from patch_length
            on are padding.
        mask_BN: (B, N) bool, True = removed.
        norm_patch: normalise each target patch to zero mean and unit variance (unbiased, + 1e-6).
        backend: "auto", "triton" or "reference".
    Returns:
        fp32 scalar (fp64 for a fp64 prediction); 0 when nothing was removed.
    Raises:
        ValueError: the shapes disagree, or the patches ask for a gradient.
    Source: He et al. 2022, section 3 (reconstruction target).
    """
    library.require(
        pred_BNP.ndim == 3
        and patches_BNP.ndim == 3
        and pred_BNP.shape[:2] == patches_BNP.shape[:2] == mask_BN.shape
        and pred_BNP.shape[2] <= patches_BNP.shape[2],
        "pred (B, N, patch_length), patches (B, N, P >= patch_length) and mask (B, N) disagree: "
        f"got {tuple(pred_BNP.shape)}, {tuple(patches_BNP.shape)} and {tuple(mask_BN.shape)}",
    )
    library.require(mask_BN.dtype == torch.bool, f"mask must be bool, got {mask_BN.dtype}")
    library.require(
        not patches_BNP.requires_grad, "patches are fixed here, but require a gradient; detach them"
    )
    if resolve(backend, pred_BNP.device) == "reference":
        return reference.masked_mse(pred_BNP, patches_BNP, mask_BN, norm_patch)[0]
    loss: Tensor = _MaskedMse.apply(pred_BNP, patches_BNP, mask_BN, norm_patch)  # type: ignore[no-untyped-call]  # no types in PyTorch
    return loss


class _MaskedMse(torch.autograd.Function):
    """Autograd around the two operators.

    The backward pass computes the error again: reading prediction and target twice moves fewer
    bytes than writing an unscaled gradient now and reading it back.
    """

    @staticmethod
    def forward(
        ctx: Any, pred_BNP: Tensor, patches_BNP: Tensor, mask_BN: Tensor, norm_patch: bool
    ) -> Tensor:
        pred_BNP = pred_BNP if pred_BNP.stride(2) == 1 else pred_BNP.contiguous()
        patches_BNP, mask_BN = patches_BNP.contiguous(), mask_BN.contiguous()
        loss, num_removed = torch.ops.ecgfast.masked_mse(pred_BNP, patches_BNP, mask_BN, norm_patch)
        ctx.save_for_backward(pred_BNP, patches_BNP, mask_BN, num_removed)
        ctx.norm_patch = norm_patch
        value: Tensor = loss
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pred_BNP, patches_BNP, mask_BN, num_removed = ctx.saved_tensors
        grad_BNP: Tensor = torch.ops.ecgfast.masked_mse_backward(
            grads[0], pred_BNP, patches_BNP, mask_BN, num_removed, ctx.norm_patch
        )
        return grad_BNP, None, None, None


def _fake(pred: Tensor, patches: Tensor, mask: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(pred.dtype, torch.float32)
    return pred.new_empty((), dtype=dtype), mask.new_empty((), dtype=torch.int32)


def _backward_fake(grad: Tensor, pred: Tensor, *_: object) -> Tensor:
    return pred.new_empty(pred.shape)


library.register("masked_mse", _fake, triton="masked_loss_triton.forward")
library.register("masked_mse_backward", _backward_fake, triton="masked_loss_triton.backward")
