"""AdamW on the fp32 weights that this rank keeps, and the learning rate of a step."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ecgfast.config import OptimConfig
from ecgfast.train.distributed import Ranks, local, master

UNDECAYED = ("cls_token", "mask_token", "pos_embed", "decoder_pos_embed")


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What an optimizer step saw, still on the device: reading it waits for the GPU.

    Attributes:
        loss: fp32 scalar, mean over the ranks.
        grad_norm: fp32 scalar, L2 norm of the whole gradient before clipping.
        skipped: fp32 scalar, 1 when loss or gradient was not finite and nothing was updated.
    """

    loss: Tensor
    grad_norm: Tensor
    skipped: Tensor


class MasterAdamW:
    """AdamW on the fp32 weights that this rank keeps: its shards, or masters of bf16 copies.

    Plain tensors that share memory with the model's: the DTensor path of the fused AdamW leaks an
    object per parameter and step (torch 2.11) and costs several times the host time. A step that
    sees a non-finite loss or gradient leaves weights and moments as they were, decided on the
    device.

    Args:
        model: spread over the ranks already.
        ranks: who shares it.
        betas: decay rates of the two moments.
        weight_decay: decoupled; not for biases, norms and tokens.
        clip_norm: scale the gradient down to this L2 norm, None leaves it.
    """

    def __init__(
        self,
        model: nn.Module,
        ranks: Ranks,
        *,
        betas: tuple[float, float],
        weight_decay: float,
        clip_norm: float | None = None,
    ) -> None:
        self._ranks = ranks
        self._clip_norm = clip_norm
        self._sources = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._masters = {
            name: nn.Parameter(local(master(parameter).detach()))
            for name, parameter in self._sources.items()
        }
        # bf16 copies, their masters, and the sums of their gradients, in the same order
        names = [n for n, p in self._sources.items() if master(p) is not p]
        self._copies = [self._sources[n].detach() for n in names]
        self._copied: list[Tensor] = [self._masters[n] for n in names]
        self._sums = {n: torch.zeros_like(self._masters[n]) for n in names}
        self._widened: list[Tensor] = []  # gradients in fp32, made at the first second microbatch
        self._collected = False
        self._adamw = self._build(betas, weight_decay)

    def _build(self, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
        decays = {n: is_decayed(n, source) for n, source in self._sources.items()}
        groups = [
            {
                "params": [m for n, m in self._masters.items() if decays[n] is decayed],
                "weight_decay": weight_decay if decayed else 0.0,
            }
            for decayed in (True, False)
        ]
        adamw = torch.optim.AdamW([g for g in groups if g["params"]], betas=betas, fused=True)
        for weights in self._masters.values():
            adamw.state[weights] = {
                "step": torch.zeros((), device=weights.device),
                "exp_avg": torch.zeros_like(weights),
                "exp_avg_sq": torch.zeros_like(weights),
            }
        return adamw

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of one backward pass in fp32; call it after each of a step.

        Gradients of bf16 copies are moved out of the model. Elsewhere autograd or FSDP2 adds them
        up, in fp32 already.
        """
        if not self._sums:
            return
        arrived = [self._gradient(name) for name in self._sums]
        sums = list(self._sums.values())
        if not self._collected:
            torch._foreach_copy_(sums, arrived)
        else:
            # foreach adds bf16 to fp32 with one kernel per tensor, 396 of ViT-Large's; it copies
            # from one type to the other, and adds within one, in a few kernels for all of them
            self._widened = self._widened or [torch.empty_like(total) for total in sums]
            torch._foreach_copy_(self._widened, arrived)
            torch._foreach_add_(sums, self._widened)
        self._collected = True
        for source in self._sources.values():
            source.grad = None

    @torch.no_grad()
    def step(self, loss: Tensor, *, learning_rate: float) -> StepReport:
        """Update the weights from the gradients of this step, and drop these.

        Args:
            loss: fp32 scalar on the device, this rank's mean.
            learning_rate: of this step.
        """
        assert self._collected or not self._sums, "collect() the gradients first"
        for name, weights in self._masters.items():
            weights.grad = self._sums.get(name)
            if weights.grad is None:
                weights.grad = local(self._gradient(name))
        report = self._inspect(loss, [m.grad for m in self._masters.values() if m.grad is not None])
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        # AdamW's own hooks for mixed precision: divide by grad_scale, do nothing on found_inf.
        self._adamw.found_inf = report.skipped  # type: ignore[attr-defined]  # PyTorch reads it
        if self._clip_norm is not None:
            scale = (report.grad_norm / self._clip_norm).clamp(min=1.0)
            self._adamw.grad_scale = scale  # type: ignore[attr-defined]  # PyTorch reads it
        self._adamw.step()
        self.refresh_copies()
        self.zero_grad()
        return report

    @torch.no_grad()
    def refresh_copies(self) -> None:
        """Round the fp32 weights to the model's bf16 copies, where it has some."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._copied)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self._collected = False
        for name, source in self._sources.items():
            source.grad = self._masters[name].grad = None

    def tensors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield (name, the fp32 weights, local tensor) of each moment, updated in place."""
        for name, parameter in self._sources.items():
            source, state = master(parameter), self._adamw.state[self._masters[name]]
            yield f"exp_avg.{name}", source, state["exp_avg"]
            yield f"exp_avg_sq.{name}", source, state["exp_avg_sq"]

    @property
    def num_updates(self) -> Tensor:
        """Scalar fp32 on the device: updates so far, skipped ones not counted."""
        count: Tensor = self._adamw.state[next(iter(self._masters.values()))]["step"]
        return count

    def set_num_updates(self, count: float) -> None:
        """Set what `num_updates` returns, which Adam's bias correction depends on."""
        for state in self._adamw.state.values():
            state["step"].fill_(count)

    def _gradient(self, name: str) -> Tensor:
        gradient = self._sources[name].grad
        assert gradient is not None, f"{name} got no gradient"
        return gradient

    def _inspect(self, loss: Tensor, gradients: list[Tensor]) -> StepReport:
        gradients = [gradient for gradient in gradients if gradient.numel()]
        if gradients:
            squares = torch.stack(torch._foreach_norm(gradients, 2, torch.float32)).square()
        else:  # other ranks may hold all of a small model
            squares = torch.zeros(1, device=loss.device)
        mean_loss = loss.detach().float() / self._ranks.world_size
        # one small collective for both; sums of squares add up over shards
        summed = self._ranks.sum_(torch.stack([mean_loss, squares.sum()]))
        skipped = (~torch.isfinite(summed).all()).float()
        return StepReport(loss=summed[0], grad_norm=summed[1].sqrt(), skipped=skipped)


def build_optimizer(
    model: nn.Module,
    config: OptimConfig,
    ranks: Ranks,
    *,
    clip_norm: float | None = None,
    kind: type[MasterAdamW] = MasterAdamW,
) -> MasterAdamW:
    """AdamW with the settings of a pretraining run; the bench tries another `kind`."""
    return kind(
        model,
        ranks,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        clip_norm=clip_norm,
    )


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices and kernels, not to biases, norms and tokens."""
    return parameter.ndim > 1 and name.rpartition(".")[2] not in UNDECAYED


def learning_rate(
    step: int, config: OptimConfig, *, steps_per_epoch: int, epochs: int, batch_size: int
) -> float:
    """Linear warm-up, then half a cosine, both in fractions of epochs.

    Args:
        step: updates done before this one.
        config: base rate (per 256 records), warm-up epochs, final rate.
        steps_per_epoch: updates of one epoch.
        epochs: length of the schedule.
        batch_size: global.
    Source: He et al. 2022, appendix A.1; Goyal et al. 2017 for the scaling by batch size.
    """
    peak = config.base_lr * batch_size / 256
    epoch = step / steps_per_epoch
    if epoch < config.warmup_epochs:
        return peak * epoch / config.warmup_epochs
    share = (epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-9)
    return config.min_lr + (peak - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
