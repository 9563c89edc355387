"""AdamW over all tensors of a model in one pass, which rounds the bf16 copies on its way.

Beside fp32 weights and moments a step of the usual kernels widens the gradients to fp32, scales
them, reads the new weights again and rounds them: 48 bytes a weight. Here it is 28: bf16 gradient,
weight and two moments in; weight, moments and bf16 copy out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ecgfast_kernels.ops import library
from ecgfast_kernels.ops.reference import passes_of


def adamw_(
    weights: Sequence[Tensor],
    copies: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    *,
    decays: Sequence[float],
    betas: tuple[float, float],
    eps: float,
    factors_4: Tensor,
    skipped: Tensor,
) -> None:
    """Update weights, moments and copies in place. Nothing is read back to the host.

    Args:
        weights: fp32, contiguous.
        copies: bf16 or fp16 (or fp32), of the weights' shapes: the weights, rounded.
        gradients: of one dtype, of the weights' shapes; of several backward passes, which are
            added up in fp32, one pass after the other.
        exp_avg: fp32, first moments.
        exp_avg_sq: fp32, second moments.
        decays: decoupled weight decay of each tensor.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        factors_4: what `factors` returns.
        skipped: scalar on the device; unless 0, everything stays as it is.
    Raises:
        ValueError: the lists disagree.
    Source: Loshchilov and Hutter 2019, algorithm 2.
    """
    passes = passes_of(gradients, len(weights))
    groups = (copies, *passes, exp_avg, exp_avg_sq)
    for group in groups:
        library.require(
            [t.shape for t in group] == [w.shape for w in weights] and len(decays) == len(weights),
            f"every list must hold {len(weights)} tensors of the weights' shapes, got "
            f"{len(group)} tensors and {len(decays)} decays",
        )
    together = (*weights, *(tensor for group in groups for tensor in group))
    library.require(
        all(tensor.is_contiguous() for tensor in together),
        "tensors must be contiguous, got one that is not; call contiguous()",
    )
    if weights:
        lists = map(list, (weights, copies, gradients, exp_avg, exp_avg_sq))
        torch.ops.ecgfast.adamw_(*lists, list(decays), *betas, eps, factors_4, skipped)


def squares_of_sums(gradients: Sequence[Tensor], *, num_tensors: int) -> Tensor:
    """Square of the L2 norm of gradients that are added up over several backward passes.

    Args:
        gradients: as for `adamw_`, `num_tensors` of each pass; read once, and nothing is written.
        num_tensors: number of weights, at least 1.
    Returns:
        fp32 scalar on their device.
    Raises:
        ValueError: the passes disagree.
    """
    shapes = [[tensor.shape for tensor in group] for group in passes_of(gradients, num_tensors)]
    library.require(
        all(group == shapes[0] for group in shapes)
        and all(tensor.is_contiguous() for tensor in gradients),
        f"every pass must hold {num_tensors} contiguous tensors of the same shapes, got "
        f"{len(gradients)} tensors",
    )
    squares: Tensor = torch.ops.ecgfast.squares_of_sums(list(gradients), num_tensors)
    return squares


def factors(
    count: Tensor,
    gradient_scale: Tensor,
    *,
    betas: tuple[float, float],
    learning_rate: float | Tensor,
) -> Tensor:
    """Return what all weights of a step share: fp32 (4,), on the device of `count`.

    Args:
        count: scalar, updates with this one.
        gradient_scale: scalar; gradients are multiplied by it.
        betas: as for `adamw_`.
        learning_rate: of this step; a scalar on the device where a CUDA graph is replayed.
    Returns:
        gradient scale, learning rate / (1 - beta1^t), 1 / sqrt(1 - beta2^t), learning rate.
    """
    steps = count.double()  # in fp32, 1 - 0.999^t would lose four digits
    first, second = (1 - torch.pow(beta, steps) for beta in betas)
    rate = torch.zeros_like(steps) + learning_rate
    return torch.stack([gradient_scale.double(), rate / first, second.rsqrt(), rate]).float()


def _fake(*_: object) -> None:
    """Everything is written in place."""


def _squares_fake(gradients: list[Tensor], *_: object) -> Tensor:
    return gradients[0].new_empty((), dtype=torch.float32)


library.register(
    "adamw_",
    _fake,
    triton="adamw_triton.step",
    mutates=("weights", "copies", "exp_avg", "exp_avg_sq"),
)
library.register("squares_of_sums", _squares_fake, triton="adamw_triton.squares_of_sums")
