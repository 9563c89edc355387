"""The calls that the kernels bench times, with the bytes and operations that they cannot avoid."""

# B records, N patches, K kept, L patch length, P padded length, D and E encoder, decoder width

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from ecgfast_kernels.ops.mask import random_mask
from ecgfast_kernels.ops.masked_loss import masked_mse
from ecgfast_kernels.ops.patch_embed import patch_embed_masked
from ecgfast_kernels.ops.unshuffle import unshuffle
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class OpCase:
    """One op at one shape.

    Attributes:
        name: of the case in the rows.
        function: takes `arguments`, `options` and `backend`; returns a tensor or several.
        leaves: positions of the arguments that get a gradient; none: no backward.
        forward_bytes: least traffic of the forward pass: each input and output once.
        backward_bytes: the same of the backward pass.
        forward_flops: of the forward pass; the backward of a product here costs as much again.
        others: by name, calls of the same arguments that take turns with the rest on a GPU.
    """

    name: str
    shape: str
    function: Callable[..., Any]
    arguments: tuple[Tensor, ...]
    options: dict[str, Any] = field(default_factory=dict)
    leaves: tuple[int, ...] = ()
    forward_bytes: int
    backward_bytes: int = 0
    forward_flops: int = 0
    others: dict[str, Callable[..., Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """ViT-Large at 256 records on a GPU, the demo's size on a CPU."""

    B: int
    D: int
    E: int
    N: int = 240
    K: int = 60
    L: int = 250
    P: int = 256
    dtype: torch.dtype

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"B{self.B} N{self.N} K{self.K} D{self.D} E{self.E} {dtype}"


def op_cases(device: str) -> list[OpCase]:
    """Every op with random inputs on `device` ("cpu" or "cuda"); never zeros."""
    if device == "cuda":
        sizes = _Sizes(B=256, D=1024, E=512, dtype=torch.bfloat16)
    else:
        sizes = _Sizes(B=8, D=128, E=96, dtype=torch.float32)
    records_B = torch.arange(sizes.B, device=device) * 7919
    settings = {"seed": 1, "epoch": 2, "num_patches": sizes.N, "num_keep": sizes.K}
    mask_bytes = sizes.B * (8 + 8 * sizes.K + 8 * sizes.N + sizes.N)
    mask = OpCase(
        name="random_mask",
        shape=str(sizes),
        function=random_mask,
        arguments=(records_B,),
        options=settings,
        forward_bytes=mask_bytes,
    )
    masks = random_mask(records_B, **settings, backend="reference")
    embed = _embed_case(sizes, masks[0], device)
    fused = OpCase(
        name="mask_and_patch_embed",
        shape=str(sizes),
        function=_mask_and_embed,
        arguments=(records_B, embed.arguments[0], *embed.arguments[2:]),
        options=settings,
        leaves=(2, 3, 5),
        forward_bytes=embed.forward_bytes + mask_bytes,
        backward_bytes=embed.backward_bytes,
        forward_flops=embed.forward_flops,
    )
    # first what is held against torch.compile, should time run out
    return [fused, embed, mask, _unshuffle_case(sizes, masks[1], device), _loss_case(sizes, masks)]


def _mask_and_embed(
    records_B: Tensor, patches_BNP: Tensor, *parameters: Tensor, backend: str, **settings: int
) -> Tensor:
    ids_keep_BK = random_mask(records_B, **settings, backend=backend)[0]
    return patch_embed_masked(patches_BNP, ids_keep_BK, *parameters, backend=backend)


def _embed_case(sizes: _Sizes, ids_keep_BK: Tensor, device: str) -> OpCase:
    size = sizes.dtype.itemsize
    tokens_bytes = sizes.B * (1 + sizes.K) * sizes.D * size
    gathered_bytes = sizes.B * sizes.K * (2 * sizes.P + 8)
    weight_bytes = sizes.D * sizes.L * size
    return OpCase(
        name="patch_embed_masked",
        shape=str(sizes),
        function=patch_embed_masked,
        arguments=(
            _patches(sizes, device),
            ids_keep_BK,
            _leaf(sizes.D, sizes.L, like=sizes, device=device, scale=sizes.L**-0.5),
            _leaf(sizes.D, like=sizes, device=device),
            torch.randn(1 + sizes.N, sizes.D, device=device),  # fp32, as the model keeps them
            _leaf(sizes.D, like=sizes, device=device),
        ),
        leaves=(2, 3, 5),
        forward_bytes=tokens_bytes + gathered_bytes + weight_bytes + 4 * sizes.N * sizes.D,
        backward_bytes=tokens_bytes + gathered_bytes + weight_bytes,
        forward_flops=2 * sizes.B * sizes.K * sizes.L * sizes.D,
    )


def _unshuffle_case(sizes: _Sizes, ids_restore_BN: Tensor, device: str) -> OpCase:
    row_bytes = sizes.E * sizes.dtype.itemsize
    moved_bytes = sizes.B * ((1 + sizes.K) * row_bytes + (1 + sizes.N) * row_bytes + 8 * sizes.N)
    return OpCase(
        name="unshuffle",
        shape=str(sizes),
        function=unshuffle,
        arguments=(
            _leaf(sizes.B, 1 + sizes.K, sizes.E, like=sizes, device=device),
            ids_restore_BN,
            _leaf(sizes.E, like=sizes, device=device),
            torch.randn(1 + sizes.N, sizes.E, device=device, dtype=sizes.dtype),
        ),
        leaves=(0, 2),
        forward_bytes=moved_bytes + (1 + sizes.N) * row_bytes,
        backward_bytes=moved_bytes,
    )


def _loss_case(sizes: _Sizes, masks: tuple[Tensor, Tensor, Tensor]) -> OpCase:
    mask_BN = masks[2]
    device = mask_BN.device.type
    # As the decoder leaves it: a class token's row first, rows padded to P.
    rows = torch.randn(sizes.B, 1 + sizes.N, sizes.P, device=device, dtype=sizes.dtype)
    pred_BNP = rows[:, 1:, : sizes.L].detach().requires_grad_()
    read_bytes = sizes.B * (sizes.N - sizes.K) * (sizes.L * sizes.dtype.itemsize + 2 * sizes.P)
    return OpCase(
        name="masked_mse",
        shape=str(sizes),
        function=masked_mse,
        arguments=(pred_BNP, _patches(sizes, device), mask_BN),
        options={"norm_patch": True},
        leaves=(0,),
        forward_bytes=read_bytes,
        backward_bytes=read_bytes + sizes.B * sizes.N * sizes.L * sizes.dtype.itemsize,
    )


def _patches(sizes: _Sizes, device: str) -> Tensor:
    patches_BNP = torch.randn(sizes.B, sizes.N, sizes.P, device=device)
    patches_BNP[..., sizes.L :] = 0
    return patches_BNP.half()


def _leaf(*shape: int, like: _Sizes, device: str, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, device=device)).to(like.dtype).requires_grad_()
