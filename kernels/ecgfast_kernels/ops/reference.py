"""The truth of every op in plain PyTorch: any device, any float dtype, differentiable.

Shapes: B records, N patches, K kept patches, P padded patch length, D and E encoder and
decoder width.
The ``*_backward`` functions state each gradient in closed form; the operators use them on a CPU and
tests hold them against autograd in fp64.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ecgfast_kernels.philox import philox_rounds, split_seed

TARGET_EPS = 1e-6  # of the targets' variance, as in the MAE reference


def random_mask(
    record_index_B: Tensor, *, seed: int, epoch: int, num_patches: int, num_keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the `num_keep` patches with the smallest Philox keys; see `mask.random_mask`."""
    record = record_index_B[:, None]
    block = torch.arange(-(-num_patches // 4), device=record.device)[None, :]
    counter = (record & 0xFFFFFFFF, (record >> 32) & 0xFFFFFFFF, epoch & 0xFFFFFFFF, block)
    zero = torch.zeros_like(record + block)
    words = philox_rounds([zero + word for word in counter], split_seed(seed))
    keys_BN = torch.stack(words, dim=2).flatten(1)[:, :num_patches]
    ids_keep_BK = keys_BN.argsort(dim=1, stable=True)[:, :num_keep].sort(dim=1).values
    mask_BN = torch.ones_like(keys_BN, dtype=torch.bool).scatter_(1, ids_keep_BK, False)
    kept_up_to_BN = (~mask_BN).cumsum(dim=1)
    patch = torch.arange(num_patches, device=record.device)
    ids_restore_BN = torch.where(mask_BN, num_keep + patch - kept_up_to_BN, kept_up_to_BN - 1)
    return ids_keep_BK, ids_restore_BN, mask_BN


def patch_embed_masked(
    patches_BNP: Tensor,
    ids_keep_BK: Tensor,
    weight_DP: Tensor,
    bias_D: Tensor,
    pos_ND: Tensor,
    cls_token_D: Tensor,
) -> Tensor:
    """Embed the kept patches behind a class token; see `patch_embed.patch_embed_masked`."""
    kept_BKP = gather_rows(patches_BNP, ids_keep_BK)[..., : weight_DP.shape[1]]
    embedded_BKD = functional.linear(
        kept_BKP.to(weight_DP.dtype), weight_DP, bias_D.to(weight_DP.dtype)
    )
    pos_ND = pos_ND.to(weight_DP.dtype)
    class_row_D = cls_token_D.to(weight_DP.dtype) + pos_ND[0]
    class_row_B1D = class_row_D.expand(embedded_BKD.shape[0], 1, -1)
    return torch.cat([class_row_B1D, embedded_BKD + pos_ND[1 + ids_keep_BK]], dim=1)


def patch_embed_masked_backward(
    grad_BTD: Tensor, patches_BNP: Tensor, ids_keep_BK: Tensor, patch_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weight (D, patch_length), bias (D,) and class token (D,), in `grad`'s dtype."""
    wide = torch.promote_types(grad_BTD.dtype, torch.float32)
    kept_BKP = gather_rows(patches_BNP, ids_keep_BK)[..., :patch_length].to(wide)
    grad_wide_BTD = grad_BTD.to(wide)
    weight_DP = torch.einsum("bkd,bkp->dp", grad_wide_BTD[:, 1:], kept_BKP)
    bias_D = grad_wide_BTD[:, 1:].sum(dim=(0, 1))
    cls_token_D = grad_wide_BTD[:, 0].sum(dim=0)
    dtype = grad_BTD.dtype
    return weight_DP.to(dtype), bias_D.to(dtype), cls_token_D.to(dtype)


def unshuffle(
    tokens_BKE: Tensor, ids_restore_BN: Tensor, mask_token_E: Tensor, pos_NE: Tensor
) -> Tensor:
    """Put kept tokens back in place and mask tokens elsewhere; see `unshuffle.unshuffle`."""
    num_keep = tokens_BKE.shape[1] - 1
    dtype = tokens_BKE.dtype
    kept_BNE = gather_rows(tokens_BKE, 1 + ids_restore_BN.clamp(max=num_keep - 1))
    removed_BN1 = (ids_restore_BN >= num_keep)[..., None]
    patches_BNE = torch.where(removed_BN1, mask_token_E.to(dtype), kept_BNE)
    return torch.cat([tokens_BKE[:, :1], patches_BNE], dim=1) + pos_NE.to(dtype)


def unshuffle_backward(
    grad_BNE: Tensor, ids_restore_BN: Tensor, num_keep: int
) -> tuple[Tensor, Tensor]:
    """Gradients of tokens (B, 1+K, E) and mask token (E,), in `grad`'s dtype."""
    removed_BN1 = (ids_restore_BN >= num_keep)[..., None]
    ids_keep_BK = ids_restore_BN.argsort(dim=1)[:, :num_keep]
    tokens_BKE = torch.cat([grad_BNE[:, :1], gather_rows(grad_BNE, 1 + ids_keep_BK)], dim=1)
    wide = torch.promote_types(grad_BNE.dtype, torch.float32)
    mask_token_E = (grad_BNE[:, 1:].to(wide) * removed_BN1).sum(dim=(0, 1))
    return tokens_BKE, mask_token_E.to(grad_BNE.dtype)


def masked_mse(
    pred_BNP: Tensor, patches_BNP: Tensor, mask_BN: Tensor, *, norm_patch: bool
) -> Tensor:
    """Mean squared error over the removed patches; see `masked_loss.masked_mse`."""
    error_BNP = _error(pred_BNP, patches_BNP, norm_patch=norm_patch)
    per_patch_BN = error_BNP.square().mean(dim=-1)
    # where, not a product: a NaN outside the removed patches must not reach the loss.
    removed_sum = torch.where(mask_BN, per_patch_BN, torch.zeros_like(per_patch_BN)).sum()
    return removed_sum / mask_BN.sum().clamp(min=1)


def masked_mse_backward(
    grad: Tensor, pred_BNP: Tensor, patches_BNP: Tensor, mask_BN: Tensor, *, norm_patch: bool
) -> Tensor:
    """Gradient of the prediction (B, N, patch_length), in the prediction's dtype."""
    error_BNP = _error(pred_BNP, patches_BNP, norm_patch=norm_patch)
    scale = 2.0 * grad / (pred_BNP.shape[-1] * mask_BN.sum().clamp(min=1))
    zero = torch.zeros_like(error_BNP)
    return torch.where(mask_BN[..., None], error_BNP * scale, zero).to(pred_BNP.dtype)


def gather_rows(rows_BNP: Tensor, ids_BK: Tensor) -> Tensor:
    """Return ``rows_BNP[b, ids_BK[b, k]]`` as (B, K, P)."""
    return rows_BNP.gather(1, ids_BK[..., None].expand(-1, -1, rows_BNP.shape[-1]))


def _error(pred_BNP: Tensor, patches_BNP: Tensor, *, norm_patch: bool) -> Tensor:
    wide = torch.promote_types(pred_BNP.dtype, torch.float32)
    target_BNP = patches_BNP[..., : pred_BNP.shape[-1]].to(wide)
    if norm_patch:
        variance, mean = torch.var_mean(target_BNP, dim=-1, keepdim=True, correction=1)
        target_BNP = (target_BNP - mean) * (variance + TARGET_EPS).rsqrt()
    return pred_BNP.to(wide) - target_BNP
