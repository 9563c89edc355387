"""A candidate for the trainer's optimizer: AdamW in one pass over gradients, weights and copies."""

import torch
from ecgfast_kernels.adamw import adamw_, factors
from torch import Tensor

from ecgfast.train.optim import MasterAdamW, StepReport


class OnePassAdamW(MasterAdamW):
    """The trainer's AdamW, its update one kernel that reads gradients as the backward left them.

    For steps of one microbatch: nothing is added up, so nothing is widened or copied first. The
    state is the same, tensor for tensor.
    """

    def collect(self) -> None:
        """Leave the gradients where they are."""
        assert not self._collected, "one microbatch a step; several need the trainer's own"
        self._collected = True

    @torch.no_grad()
    def step(self, loss: Tensor, *, learning_rate: float) -> StepReport:
        """Update weights, moments and copies; see `MasterAdamW.step`."""
        gradients = [self._gradient(name).contiguous() for name in self._sources]
        report = self._inspect(loss, gradients)
        scale = torch.ones_like(report.grad_norm)
        if self._clip_norm is not None:
            scale = (self._clip_norm / report.grad_norm).clamp(max=1.0)
        decays = {
            weights: group["weight_decay"]
            for group in self._adamw.param_groups
            for weights in group["params"]
        }
        masters = list(self._masters.values())
        states = [self._adamw.state[weights] for weights in masters]
        group = self._adamw.param_groups[0]
        adamw_(
            [weights.detach() for weights in masters],
            [source.detach() for source in self._sources.values()],
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            decays=[decays[weights] for weights in masters],
            betas=group["betas"],
            eps=group["eps"],
            factors_4=factors(
                self.num_updates + 1, scale, betas=group["betas"], learning_rate=learning_rate
            ),
            skipped=report.skipped,
        )
        torch._foreach_add_([state["step"] for state in states], 1 - report.skipped)
        self.zero_grad()
        return report
