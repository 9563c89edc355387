"""AdamW on this rank's shards, and the learning rate of a step."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ecgfast.config import OptimConfig
from ecgfast.train.distributed import Ranks, local

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


class ShardedAdamW:
    """AdamW over plain tensors that share memory with a model's local shards.

    The DTensor path of the fused AdamW leaks an object per parameter and step (torch 2.11) and
    costs several times the host time. A step that sees a non-finite loss or gradient leaves
    weights and moments as they were, decided on the device.

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
        self._shards = {
            name: nn.Parameter(local(parameter.detach()))
            for name, parameter in self._sources.items()
        }
        decayed = [s for n, s in self._shards.items() if is_decayed(n, self._sources[n])]
        others = [s for n, s in self._shards.items() if not is_decayed(n, self._sources[n])]
        groups = [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW([g for g in groups if g["params"]], betas=betas, fused=True)
        for shard in self._shards.values():
            self._adamw.state[shard] = {
                "step": torch.zeros((), device=shard.device),
                "exp_avg": torch.zeros_like(shard),
                "exp_avg_sq": torch.zeros_like(shard),
            }

    @torch.no_grad()
    def step(self, loss: Tensor, *, learning_rate: float) -> StepReport:
        """Update the weights from the gradients that the model holds, and drop these.

        Args:
            loss: fp32 scalar on the device, this rank's mean.
            learning_rate: of this step.
        """
        for name, source in self._sources.items():
            assert source.grad is not None, f"{name} got no gradient"
            self._shards[name].grad = local(source.grad)
        report = self._inspect(loss)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        # AdamW's own hooks for mixed precision: divide by grad_scale, do nothing on found_inf.
        self._adamw.found_inf = report.skipped  # type: ignore[attr-defined]
        if self._clip_norm is not None:
            scale = (report.grad_norm / self._clip_norm).clamp(min=1.0)
            self._adamw.grad_scale = scale  # type: ignore[attr-defined]
        self._adamw.step()
        self.zero_grad()
        return report

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for name, source in self._sources.items():
            source.grad = self._shards[name].grad = None

    def tensors(self) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Yield (name, the model's parameter, local tensor) of each moment, updated in place."""
        for name, source in self._sources.items():
            state = self._adamw.state[self._shards[name]]
            yield f"exp_avg.{name}", source, state["exp_avg"]
            yield f"exp_avg_sq.{name}", source, state["exp_avg_sq"]

    @property
    def num_updates(self) -> Tensor:
        """Scalar fp32 on the device: updates so far, skipped ones not counted."""
        count: Tensor = self._adamw.state[next(iter(self._shards.values()))]["step"]
        return count

    def set_num_updates(self, count: float) -> None:
        """Set what `num_updates` returns, which Adam's bias correction depends on."""
        for state in self._adamw.state.values():
            state["step"].fill_(count)

    def _inspect(self, loss: Tensor) -> StepReport:
        gradients = [s.grad for s in self._shards.values() if s.grad is not None and s.numel()]
        norms = torch.stack(torch._foreach_norm(gradients)) if gradients else loss.new_zeros(1)
        mean_loss = loss.detach().float() / self._ranks.world_size
        # one small collective for both; sums of squares add up over shards
        summed = self._ranks.sum_(torch.stack([mean_loss, norms.float().square().sum()]))
        skipped = (~torch.isfinite(summed).all()).float()
        return StepReport(loss=summed[0], grad_norm=summed[1].sqrt(), skipped=skipped)


def build_optimizer(
    model: nn.Module, config: OptimConfig, ranks: Ranks, *, clip_norm: float | None = None
) -> ShardedAdamW:
    """AdamW with the settings of a pretraining run."""
    return ShardedAdamW(
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
