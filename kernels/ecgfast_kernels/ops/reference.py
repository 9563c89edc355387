"""The reference of every op in plain PyTorch: any device, any float dtype, differentiable.

Shapes: B records, N patches, K kept patches, P padded patch length, D and E encoder and
decoder width. In a transformer's block: T tokens, H heads, K head width, M rows (records x tokens),
D width, F hidden width.

The ``*_backward`` functions state each gradient in closed form; the operators use them on a CPU and
tests hold them against autograd in fp64.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ecgfast_kernels.codec.philox import philox_rounds, split_seed

LOG2_E = 1.4426950408889634
TARGET_EPS = 1e-6  # of the targets' variance, as in the MAE reference


def random_mask(
    record_index_B: Tensor, seed: int, epoch: int, num_patches: int, num_keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the `num_keep` patches with the smallest Philox keys; see `masking.random_mask`."""
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
    """Embed the kept patches behind a class token; see `masking.patch_embed_masked`."""
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
    """Put kept tokens back in place and mask tokens elsewhere; see `masking.unshuffle`."""
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
    pred_BNP: Tensor, patches_BNP: Tensor, mask_BN: Tensor, norm_patch: bool
) -> tuple[Tensor, Tensor]:
    """Mean squared error over the removed patches, and how many these are."""
    error_BNP = _error(pred_BNP, patches_BNP, norm_patch=norm_patch)
    per_patch_BN = error_BNP.square().mean(dim=-1)
    # where, not a product: a NaN outside the removed patches must not reach the loss.
    removed_sum = torch.where(mask_BN, per_patch_BN, torch.zeros_like(per_patch_BN)).sum()
    return removed_sum / mask_BN.sum().clamp(min=1), mask_BN.sum(dtype=torch.int32)


def masked_mse_backward(
    grad: Tensor,
    pred_BNP: Tensor,
    patches_BNP: Tensor,
    mask_BN: Tensor,
    num_removed: Tensor,
    norm_patch: bool,
) -> Tensor:
    """Gradient of the prediction (B, N, patch_length), in the prediction's dtype."""
    error_BNP = _error(pred_BNP, patches_BNP, norm_patch=norm_patch)
    scale = 2.0 * grad / (pred_BNP.shape[-1] * num_removed.long().clamp(min=1))
    zero = torch.zeros_like(error_BNP)
    return torch.where(mask_BN[..., None], error_BNP * scale, zero).to(pred_BNP.dtype)


def short_attention(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, T, H, K) and the base-2 log of each softmax denominator, (B, H, T)."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
    scores = query @ key.transpose(-1, -2) * qkv.shape[-1] ** -0.5
    lse = scores.to(torch.promote_types(scores.dtype, torch.float32)).logsumexp(-1) * LOG2_E
    out = scores.softmax(-1) @ value
    return out.transpose(1, 2).contiguous(), lse


def short_attention_backward(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of qkv (B, T, 3, H, K) in closed form, and its sum (3, H, K), the bias's."""
    scale = qkv.shape[-1] ** -0.5
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    grad_out = grad.transpose(1, 2)
    probability = torch.exp2(query @ key.transpose(-1, -2) * (scale * LOG2_E) - lse[..., None])
    probability = probability.to(qkv.dtype)
    delta = (grad * out).sum(-1).transpose(1, 2)[..., None]  # (B, H, T, 1)
    grad_scores = probability * (grad_out @ value.transpose(-1, -2) - delta) * scale
    parts = [
        grad_scores @ key,
        grad_scores.transpose(-1, -2) @ query,
        probability.transpose(-1, -2) @ grad_out,
    ]
    grad_qkv = torch.stack(parts).permute(1, 3, 0, 2, 4).contiguous()
    return grad_qkv, grad_qkv.sum((0, 1))


def add_layer_norm(
    stream: Tensor,
    branch: Tensor,
    branch_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sum, LayerNorm, and each row's mean and 1 / deviation."""
    total = stream + branch + branch_bias
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, dim=-1, correction=0)
    rstd = (variance + eps).rsqrt()
    out = (wide - mean[..., None]) * rstd[..., None] * weight + bias
    return total, out.to(stream.dtype), mean.flatten(), rstd.flatten()


def add_layer_norm_backward(
    grad_total: Tensor, grad_out: Tensor, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of the stream, and the sums (3, D) for weight, bias and branch bias."""
    width = total.shape[-1]
    wide = rstd.dtype
    normal = (total.to(wide).reshape(-1, width) - mean[:, None]) * rstd[:, None]
    grad_rows = grad_out.to(wide).reshape(-1, width)
    scaled = grad_rows * weight.to(wide)
    centred = scaled - scaled.mean(1, keepdim=True)
    grad = (centred - normal * (scaled * normal).mean(1, keepdim=True)) * rstd[:, None]
    grad = grad + grad_total.to(wide).reshape(-1, width)
    sums = torch.stack([(grad_rows * normal).sum(0), grad_rows.sum(0), grad.sum(0)])
    return grad.reshape(total.shape).to(total.dtype), sums.to(weight.dtype)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Return GELU(x + bias)."""
    return functional.gelu(x + bias)


def bias_gelu_backward(grad: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the bias, in closed form."""
    wide = torch.promote_types(x.dtype, torch.float32)
    h = x.to(wide) + bias.to(wide)
    cdf = 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    density = torch.exp(-0.5 * h * h) / math.sqrt(2 * math.pi)
    grad_x = grad.to(wide) * (cdf + h * density)
    return grad_x.to(x.dtype), grad_x.flatten(0, -2).sum(0).to(bias.dtype)


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, provider: str = "triton"
) -> tuple[Tensor, Tensor]:
    """Return GELU of the linear layer, and its derivative there, both (M, F)."""
    hidden = x @ weight.t() + bias
    act = bias_gelu(hidden, torch.zeros_like(bias))
    return act, bias_gelu_backward(torch.ones_like(hidden), hidden, torch.zeros_like(bias))[0]


def linear_gelu_backward(
    grad: Tensor, out_weight: Tensor, slope: Tensor, provider: str = "triton"
) -> tuple[Tensor, Tensor]:
    """Gradients of the linear layer's output (M, F), and of its bias (F,)."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    grad_hidden = (grad @ out_weight).to(wide) * slope.to(wide)
    return grad_hidden.to(grad.dtype), grad_hidden.sum(0).to(grad.dtype)


def adamw_(
    weights: list[Tensor],
    copies: list[Tensor],
    gradients: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    decays: list[float],
    beta1: float,
    beta2: float,
    eps: float,
    factors_4: Tensor,
    skipped: Tensor,
) -> None:
    """Update one tensor after the other; see `adamw.adamw_`."""
    if skipped.item():
        return
    scale, rate, root, learning_rate = factors_4.unbind()
    tensors = (weights, copies, _sums(gradients, len(weights)), exp_avg, exp_avg_sq, decays)
    for weight, copy, gradient, mean, square, decay in zip(*tensors, strict=True):
        grad = gradient * scale
        mean += (grad - mean) * (1 - beta1)
        square += (grad * grad - square) * (1 - beta2)
        weight *= 1 - learning_rate * decay
        weight -= rate * mean / (square.sqrt() * root + eps)
        copy.copy_(weight)


def squares_of_sums(gradients: list[Tensor], num_tensors: int) -> Tensor:
    """Add up one tensor after the other; see `adamw.squares_of_sums`."""
    return torch.stack([g.square().sum() for g in _sums(gradients, num_tensors)]).sum()


def _sums(gradients: list[Tensor], num_tensors: int) -> list[Tensor]:
    first, *others = passes_of(gradients, num_tensors)
    sums = [gradient.float() for gradient in first]
    for group in others:
        sums = [total + gradient.float() for total, gradient in zip(sums, group, strict=True)]
    return sums


def passes_of(gradients: Sequence[Tensor], num_tensors: int) -> list[Sequence[Tensor]]:
    """The gradients of each backward pass."""
    starts = range(0, max(len(gradients), 1), max(num_tensors, 1))
    return [gradients[start : start + num_tensors] for start in starts]


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
