"""unshuffle: the decoder's input, kept tokens back in place and mask tokens elsewhere, in one pass.

Shapes: B records, N patches, K kept patches, E decoder width.
"""

# ruff: noqa: ANN401 (PyTorch hands an autograd.Function its ctx untyped)

from typing import Any

import torch
from torch import Tensor

from ecgfast_kernels.ops import library, reference
from ecgfast_kernels.ops.backend import resolve


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


def _triton(*tensors: Tensor) -> Tensor:
    from ecgfast_kernels.ops import unshuffle_triton

    return unshuffle_triton.forward(*tensors)


def _triton_backward(
    grad_BNE: Tensor, ids_restore_BN: Tensor, num_keep: int
) -> tuple[Tensor, Tensor]:
    from ecgfast_kernels.ops import unshuffle_triton

    return unshuffle_triton.backward(grad_BNE, ids_restore_BN, num_keep)


def _fake(
    tokens_BKE: Tensor, ids_restore_BN: Tensor, mask_token_E: Tensor, pos_NE: Tensor
) -> Tensor:
    batch, num_patches = ids_restore_BN.shape
    return tokens_BKE.new_empty(batch, 1 + num_patches, tokens_BKE.shape[2])


def _fake_backward(
    grad_BNE: Tensor, ids_restore_BN: Tensor, num_keep: int
) -> tuple[Tensor, Tensor]:
    batch, _, width = grad_BNE.shape
    return grad_BNE.new_empty(batch, 1 + num_keep, width), grad_BNE.new_empty(width)


library.register(
    "unshuffle(Tensor tokens, Tensor ids_restore, Tensor mask_token, Tensor pos) -> Tensor",
    triton=_triton,
    reference=reference.unshuffle,
    fake=_fake,
)
library.register(
    "unshuffle_backward(Tensor grad, Tensor ids_restore, int num_keep) -> (Tensor, Tensor)",
    triton=_triton_backward,
    reference=reference.unshuffle_backward,
    fake=_fake_backward,
)
