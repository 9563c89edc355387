"""Removing patches and putting them back: random_mask, patch_embed_masked and unshuffle.

Shapes: B records, N patches, K kept patches, L and P patch length bare and padded, D and E encoder
and decoder width, T = 1 + K.
"""

# ruff: noqa: ANN401 (PyTorch hands an autograd.Function its ctx untyped)

from typing import Any

import torch
from torch import Tensor

from ecgfast_kernels.ops import library, reference
from ecgfast_kernels.ops.library import resolve

# Two padding columns carry the bias and class-token gradients through the weight-gradient GEMM.
MIN_PADDING = 2

_Masks = tuple[Tensor, Tensor, Tensor]


def random_mask(
    record_index_B: Tensor,
    *,
    seed: int,
    epoch: int,
    num_patches: int,
    num_keep: int,
    backend: str = "auto",
) -> _Masks:
    """Choose `num_keep` of `num_patches` patches per record, uniformly at random.

    Patch n of a record gets a 32-bit Philox key (word n % 4 of the block with counter (record,
    epoch, n // 4) under the key `seed`); the smallest keys stay, ties by the lower index. The
    choice depends on nothing else: not on the batch, the rank, the device or a generator's state.

    Args:
        record_index_B: (B,) int64, indices into the store.
        seed: in [0, 2^63).
        epoch: in [0, 2^32).
        num_patches: N.
        num_keep: K, in [1, N].
        backend: "auto", "triton" or "reference".
    Returns:
        ids_keep (B, K) int64, ascending. ids_restore (B, N) int64: the position of each patch in
        [kept ascending, removed ascending]. mask (B, N) bool, True = removed.
    Raises:
        ValueError: an argument is out of range.
    Source: He et al. 2022, section 3 (random sampling without replacement).
    """
    library.require(
        record_index_B.ndim == 1 and record_index_B.dtype == torch.int64,
        f"record_index must be int64 (B,), got {record_index_B.dtype} "
        f"{tuple(record_index_B.shape)}",
    )
    library.require(
        1 <= num_keep <= num_patches,
        f"num_keep must be in [1, {num_patches}], got {num_keep}; lower the mask ratio",
    )
    library.require(0 <= seed < 1 << 63, f"seed must be in [0, 2^63), got {seed}")
    library.require(0 <= epoch < 1 << 32, f"epoch must be in [0, 2^32), got {epoch}")
    if resolve(backend, record_index_B.device) == "triton":
        masks: _Masks = torch.ops.ecgfast.random_mask(
            record_index_B, seed, epoch, num_patches, num_keep
        )
        return masks
    return reference.random_mask(record_index_B, seed, epoch, num_patches, num_keep)


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


def unshuffle(
    tokens_BKE: Tensor,
    ids_restore_BN: Tensor,
    mask_token_E: Tensor,
    pos_NE: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Put each kept token at its patch, the mask token at every removed one, and add positions.

    Args:
        tokens_BKE: (B, 1 + K, E), class token first.
        ids_restore_BN: (B, N) int64, a permutation per record; values >= K are removed patches.
        mask_token_E: (E,).
        pos_NE: (1 + N, E) fixed positions; row 0 belongs to the class token.
        backend: "auto", "triton" or "reference".
    Returns:
        (B, 1 + N, E) in the tokens' dtype. Differentiable in tokens and mask token.
    Raises:
        ValueError: the shapes disagree, or the positions ask for a gradient.
    Source: He et al. 2022, section 3 (the decoder's input is the full set of tokens).
    """
    width = tokens_BKE.shape[-1]
    library.require(
        tokens_BKE.ndim == 3
        and ids_restore_BN.ndim == 2
        and tokens_BKE.shape[0] == ids_restore_BN.shape[0]
        and 2 <= tokens_BKE.shape[1] <= 1 + ids_restore_BN.shape[1],
        "tokens must be (B, 1 + K, E) with 1 <= K <= N for ids_restore (B, N), "
        f"got {tuple(tokens_BKE.shape)} and {tuple(ids_restore_BN.shape)}",
    )
    library.require(
        tuple(pos_NE.shape) == (1 + ids_restore_BN.shape[1], width),
        f"pos must be {(1 + ids_restore_BN.shape[1], width)}, got {tuple(pos_NE.shape)}",
    )
    library.require(
        tuple(mask_token_E.shape) == (width,),
        f"mask_token must be ({width},), got {tuple(mask_token_E.shape)}",
    )
    library.require(
        not pos_NE.requires_grad, "pos is fixed here, but requires a gradient; detach it"
    )
    if resolve(backend, tokens_BKE.device) == "reference":
        return reference.unshuffle(tokens_BKE, ids_restore_BN, mask_token_E, pos_NE)
    output_BNE: Tensor = _Unshuffle.apply(tokens_BKE, ids_restore_BN, mask_token_E, pos_NE)  # type: ignore[no-untyped-call]  # no types in PyTorch
    return output_BNE


class _Unshuffle(torch.autograd.Function):
    """Autograd around the two operators."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        tokens_BKE, ids_restore_BN, mask_token_E, pos_NE = tensors
        ctx.save_for_backward(ids_restore_BN)
        ctx.num_keep = tokens_BKE.shape[1] - 1
        output_BNE: Tensor = torch.ops.ecgfast.unshuffle(
            tokens_BKE.contiguous(),
            ids_restore_BN.contiguous(),
            mask_token_E.to(tokens_BKE.dtype).contiguous(),
            pos_NE.contiguous(),
        )
        return output_BNE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (ids_restore_BN,) = ctx.saved_tensors
        tokens_BKE, mask_token_E = torch.ops.ecgfast.unshuffle_backward(
            grads[0].contiguous(), ids_restore_BN.contiguous(), ctx.num_keep
        )
        return tokens_BKE, None, mask_token_E, None


def _mask_fake(
    record_index: Tensor, seed: int, epoch: int, num_patches: int, num_keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch = record_index.shape[0]
    return (
        record_index.new_empty(batch, num_keep),
        record_index.new_empty(batch, num_patches),
        record_index.new_empty(batch, num_patches, dtype=torch.bool),
    )


def _embed_fake(patches: Tensor, ids_keep: Tensor, weight: Tensor, *_: object) -> Tensor:
    batch, num_keep = ids_keep.shape
    return weight.new_empty(batch, 1 + num_keep, weight.shape[0])


def _embed_backward_fake(
    grad: Tensor, patches: Tensor, ids_keep: Tensor, patch_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    width = grad.shape[2]
    return (
        grad.new_empty(width, patch_length),
        grad.new_empty(width),
        grad.new_empty(width),
    )


def _unshuffle_fake(tokens: Tensor, ids_restore: Tensor, *_: object) -> Tensor:
    batch, num_patches = ids_restore.shape
    return tokens.new_empty(batch, 1 + num_patches, tokens.shape[2])


def _unshuffle_backward_fake(
    grad: Tensor, ids_restore: Tensor, num_keep: int
) -> tuple[Tensor, Tensor]:
    batch, _, width = grad.shape
    return grad.new_empty(batch, 1 + num_keep, width), grad.new_empty(width)


library.register("random_mask", _mask_fake, triton="masking_triton.random_mask")
library.register("patch_embed_masked", _embed_fake, triton="patch_embed_triton.forward")
library.register(
    "patch_embed_masked_backward", _embed_backward_fake, triton="patch_embed_triton.backward"
)
library.register("unshuffle", _unshuffle_fake, triton="masking_triton.unshuffle")
library.register(
    "unshuffle_backward", _unshuffle_backward_fake, triton="masking_triton.unshuffle_backward"
)
