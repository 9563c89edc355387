"""AdamW on the fp32 weights that this rank keeps, and the learning rate of each of its steps."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from ecgfast_kernels.ops.adamw import adamw_, factors, squares_of_sums
from torch import Tensor, nn

from ecgfast.settings import OptimConfig
from ecgfast.train.distributed import Ranks, local, master, num_holders
from ecgfast.train.microbatch import Recorded
from ecgfast.vocabulary import Schedule

# Microbatches of a step whose gradients our kernel adds up by itself. Copies of all but the last
# take 6 bytes a weight; a sum in fp32, and a gradient widened to be added to it, take 8.
READ_TOGETHER = 4
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
        config: decay rates of the moments; decoupled weight decay, not of biases, norms and
            tokens; and `one_pass`: update with our own kernel, which reads weights, moments and
            gradients once and rounds the copies on its way: the same formula, other roundings.
        clip_norm: scale the gradient down to this L2 norm, None leaves it.
        scale_of: factor of the learning rate of a parameter, by its name; not with `one_pass`.
        recorded: replay the kernel's update as a CUDA graph, gradients being always in the same
            memory.
    """

    def __init__(
        self,
        model: nn.Module,
        ranks: Ranks,
        config: OptimConfig,
        *,
        clip_norm: float | None = None,
        scale_of: Callable[[str], float] = lambda name: 1.0,
        recorded: bool = False,
    ) -> None:
        self._ranks = ranks
        self._clip_norm = clip_norm
        self._with_kernel = config.one_pass
        # of each element of the gradient
        self._num_holders = num_holders(next(model.parameters()), ranks)
        self._sources = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._masters = {
            name: nn.Parameter(local(master(parameter).detach()))
            for name, parameter in self._sources.items()
        }
        # bf16 copies, their masters, and the sums of their gradients, in the same order
        names = [n for n, p in self._sources.items() if master(p) is not p]
        self._copies = [self._sources[n].detach() for n in names]
        self._copied: list[Tensor] = [self._masters[n] for n in names]
        self._summed = names
        # our kernel rarely gets more microbatches than it adds up: sums are made when it does
        self._sums = {} if self._with_kernel else self._zeros()
        self._widened: list[Tensor] = []  # gradients in fp32, made at the first second microbatch
        self._kept: list[list[Tensor]] = []  # gradients of the microbatches before the last
        self._num_collected = 0  # microbatches of the step under way
        self._together = False  # this step's microbatches are added up by our kernel
        self._adamw = self._build(config, scale_of)
        # of the step under way, in the order of the masters; by microbatch where read together
        self._gradients: list[Tensor] = []
        self._recorded = Recorded(self._run_kernel) if self._with_kernel and recorded else None

    def _build(self, config: OptimConfig, scale_of: Callable[[str], float]) -> torch.optim.AdamW:
        kinds = {n: (is_decayed(n, s), scale_of(n)) for n, s in self._sources.items()}
        assert not config.one_pass or {scale for _, scale in kinds.values()} == {1.0}
        groups = [
            {
                "params": [m for n, m in self._masters.items() if kinds[n] == (decayed, scale)],
                "weight_decay": config.weight_decay if decayed else 0.0,
                "scale": scale,
            }
            for decayed, scale in sorted(set(kinds.values()), reverse=True)
        ]
        betas = (config.beta1, config.beta2)
        adamw = torch.optim.AdamW(groups, betas=betas, fused=True)
        for weights in self._masters.values():
            adamw.state[weights] = {
                "step": torch.zeros((), device=weights.device),
                "exp_avg": torch.zeros_like(weights),
                "exp_avg_sq": torch.zeros_like(weights),
            }
        return adamw

    def _zeros(self) -> dict[str, Tensor]:
        return {n: torch.zeros_like(self._masters[n]) for n in self._summed}

    @torch.no_grad()
    def collect(self, *, num_microbatches: int) -> None:
        """Add the gradients of a microbatch in fp32; call it after each backward pass of a step.

        Gradients of bf16 copies are moved out of the model. Elsewhere autograd or FSDP2 adds them
        up, in fp32 already. Our kernel adds those of a few microbatches while it reads them: it
        wants copies of all but the last, which the next backward pass may overwrite.

        Args:
            num_microbatches: of this step.
        """
        self._num_collected += 1
        self._together = self._with_kernel and num_microbatches <= READ_TOGETHER
        if not self._summed or (self._together and self._num_collected == num_microbatches):
            return
        arrived = [self._gradient(name) for name in self._summed]
        if self._together:
            if len(self._kept) < self._num_collected:
                self._kept.append([torch.empty_like(gradient) for gradient in arrived])
            torch._foreach_copy_(self._kept[self._num_collected - 1], arrived)
        else:
            self._add(arrived)
        for source in self._sources.values():
            source.grad = None

    def _add(self, arrived: list[Tensor]) -> None:
        self._sums = self._sums or self._zeros()
        sums = list(self._sums.values())
        if self._num_collected == 1:
            torch._foreach_copy_(sums, arrived)
        else:
            # foreach adds bf16 to fp32 with one kernel per tensor, 396 of ViT-Large's; it copies
            # from one type to the other, and adds within one, in a few kernels for all of them
            self._widened = self._widened or [torch.empty_like(total) for total in sums]
            torch._foreach_copy_(self._widened, arrived)
            torch._foreach_add_(sums, self._widened)

    @torch.no_grad()
    def step(self, loss: Tensor, *, learning_rate: float) -> StepReport:
        """Update the weights from the gradients of this step, and drop these.

        Args:
            loss: fp32 scalar on the device, this rank's mean.
            learning_rate: of this step.
        """
        assert self._num_collected or not self._summed, "collect() the gradients first"
        sums = {} if self._together else self._sums
        last = [sums[n] if n in sums else local(self._gradient(n)) for n in self._masters]
        kept = self._kept[: self._num_collected - 1] if self._together else []
        self._gradients = [gradient for group in (*kept, last) for gradient in group]
        update = self._update_with_kernel if self._with_kernel else self._update
        report = update(loss, learning_rate)
        self.zero_grad()
        return report

    def _update(self, loss: Tensor, learning_rate: float) -> StepReport:
        for weights, gradient in zip(self._masters.values(), self._gradients, strict=True):
            weights.grad = gradient
        report = self._inspect(loss, self._gradients)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate * group["scale"]
        # AdamW's own hooks for mixed precision: divide by grad_scale, do nothing on found_inf.
        self._adamw.found_inf = report.skipped  # type: ignore[attr-defined]  # PyTorch reads it
        if self._clip_norm is not None:
            scale = (report.grad_norm / self._clip_norm).clamp(min=1.0)
            self._adamw.grad_scale = scale  # type: ignore[attr-defined]  # PyTorch reads it
        self._adamw.step()
        self.refresh_copies()
        return report

    def _update_with_kernel(self, loss: Tensor, learning_rate: float) -> StepReport:
        """Update with our kernel, replayed where that was asked for."""
        rate = torch.full((), learning_rate, dtype=torch.float64, device=loss.device)
        if self._recorded is None:
            return self._run_kernel(loss, rate)
        if not self._recorded.exists:  # compiles the kernel; a step that is not finite does nothing
            self._run_kernel(torch.full_like(loss, math.nan), rate)
        report = self._recorded(loss, rate)
        # the next replay writes to the same memory
        loss, grad_norm, skipped = torch.stack([report.loss, report.grad_norm, report.skipped])
        return StepReport(loss=loss, grad_norm=grad_norm, skipped=skipped)

    def _run_kernel(self, loss: Tensor, rate: Tensor) -> StepReport:
        report = self._inspect(loss, self._gradients)
        scale = torch.ones_like(report.grad_norm)
        if self._clip_norm is not None:
            scale = (self._clip_norm / report.grad_norm).clamp(max=1.0)
        groups = self._adamw.param_groups
        decays = {w: group["weight_decay"] for group in groups for w in group["params"]}
        masters = list(self._masters.values())
        states = [self._adamw.state[weights] for weights in masters]
        betas, eps = self._adamw.defaults["betas"], self._adamw.defaults["eps"]
        adamw_(
            [weights.detach() for weights in masters],
            [local(source.detach()) for source in self._sources.values()],
            self._gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            decays=[decays[weights] for weights in masters],
            betas=betas,
            eps=eps,
            factors_4=factors(self.num_updates + 1, scale, betas=betas, learning_rate=rate),
            skipped=report.skipped,
        )
        self.num_updates.add_(1 - report.skipped)
        return report

    @torch.no_grad()
    def refresh_copies(self) -> None:
        """Round the fp32 weights to the model's bf16 copies, where it has some."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._copied)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self._num_collected = 0
        self._gradients = []
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
        if len(gradients) > len(self._masters):  # of several microbatches
            squares = squares_of_sums(gradients, num_tensors=len(self._masters))
        elif gradients := [gradient for gradient in gradients if gradient.numel()]:
            squares = torch.stack(torch._foreach_norm(gradients, 2, torch.float32)).square()
        else:  # other ranks may hold all of a small model
            squares = torch.zeros((), device=loss.device)
        mean_loss = loss.detach().float() / self._ranks.world_size
        # one small collective for both; sums of squares add up over shards
        summed = self._ranks.sum_(torch.stack([mean_loss, squares.sum() / self._num_holders]))
        skipped = (~torch.isfinite(summed).all()).float()
        return StepReport(loss=summed[0], grad_norm=summed[1].sqrt(), skipped=skipped)


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices and kernels, not to biases, norms and tokens."""
    return parameter.ndim > 1 and name.rpartition(".")[2] not in UNDECAYED


def learning_rate(
    step: float,
    *,
    peak: float,
    warmup_epochs: float,
    epochs: float,
    steps_per_epoch: int,
    schedule: Schedule = "cosine",
    min_lr: float = 0.0,
) -> float:
    """Linear warm-up, then half a cosine or a constant, in fractions of epochs.

    Args:
        step: updates done before this one.
        peak: the highest rate.
        warmup_epochs: of the rise from 0.
        epochs: length of the schedule.
        steps_per_epoch: updates of one epoch.
        schedule: what follows the rise.
        min_lr: rate at the end of the cosine.
    Source: He et al. 2022, appendix A.1.
    """
    epoch = step / steps_per_epoch
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    if schedule == "constant":
        return peak
    share = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)
    return min_lr + (peak - min_lr) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
