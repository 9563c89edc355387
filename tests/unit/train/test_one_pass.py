"""The one-pass AdamW in the trainer: steps and checkpoints of the usual one, exact resume."""

import math
from pathlib import Path

import pytest
import torch
from tolerances import RANKS_LOSS
from torch import Tensor
from toy import toy_batch, toy_config, toy_loop, toy_model

from ecgfast.config import Config
from ecgfast.log import read_metrics
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.runs.checkpoint_reader import newest
from ecgfast.train.distributed import Ranks, full_state, master, spread
from ecgfast.train.guards import StopSignals
from ecgfast.train.loop import train_step
from ecgfast.train.microbatch import split
from ecgfast.train.optim import MasterAdamW, StepReport
from ecgfast.train.pretrain import masked_loss
from ecgfast.vocabulary import Precision

CLIP = 0.05  # bites: the toy's gradients are larger


def _build(
    one_pass: bool, precision: Precision = "bf16"
) -> tuple[MaskedAutoencoder, MasterAdamW, Config]:
    config = toy_config(f"optim.one_pass={one_pass}".lower())
    model = toy_model(config)
    spread(model, Ranks(), precision=precision, compile_blocks=False)
    return model, MasterAdamW(model, Ranks(), config.optim, clip_norm=CLIP), config


def _state(model: MaskedAutoencoder, optimizer: MasterAdamW) -> dict[str, Tensor]:
    weights = {n: master(p).detach() for n, p in model.named_parameters()}
    return weights | {name: moment for name, _, moment in optimizer.tensors()}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
# one pass, several that the update adds up, and more than it reads at once
@pytest.mark.parametrize("microbatch", [8, 4, 1])
def test_it_takes_the_steps_of_the_usual_optimizer(microbatch: int, precision: Precision) -> None:
    """Both read the same gradients in every step, so that only the update can differ."""
    (model, usual, config), (other, one_pass, _) = (
        _build(flag, precision) for flag in (False, True)
    )
    loss_of, batch = masked_loss(model, config), toy_batch()
    for _ in range(4):
        for parameter, kept in zip(other.parameters(), model.parameters(), strict=True):
            parameter.data.copy_(kept)
        reports = [
            train_step(module, optimizer, loss, batch, microbatch=microbatch, learning_rate=1e-3)
            for module, optimizer, loss in (
                (model, usual, loss_of),
                (other, one_pass, masked_loss(other, config)),
            )
        ]
        assert reports[0].grad_norm > CLIP
        for field in ("loss", "grad_norm", "skipped"):
            # the norm is taken of bf16 gradients, or of the same numbers in fp32
            torch.testing.assert_close(
                getattr(reports[1], field), getattr(reports[0], field), rtol=1e-6, atol=0
            )
    want = _state(model, usual)
    for name, tensor in _state(other, one_pass).items():
        # some ten fp32 roundings a step; a gradient summed in bf16 would be off by 1e-3
        torch.testing.assert_close(tensor, want[name], rtol=1e-5, atol=1e-9, msg=name)
    assert one_pass.num_updates.item() == usual.num_updates.item() == 4


def _train(
    model: MaskedAutoencoder, optimizer: MasterAdamW, config: Config, microbatch: int = 8
) -> StepReport:
    return train_step(
        model,
        optimizer,
        masked_loss(model, config),
        toy_batch(),
        microbatch=microbatch,
        learning_rate=1e-3,
    )


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    """Which is also how the update is run before it is recorded."""
    model, optimizer, config = _build(True)
    _train(model, optimizer, config)
    before = {name: t.clone() for name, t in _state(model, optimizer).items()}
    loss = masked_loss(model, config)(toy_batch())
    loss.backward()
    optimizer.collect(num_microbatches=1)
    report = optimizer.step(torch.full_like(loss.detach(), math.nan), learning_rate=1e-3)
    assert report.skipped.item() == 1
    assert optimizer.num_updates.item() == 1
    for name, tensor in _state(model, optimizer).items():
        assert torch.equal(tensor, before[name]), name


def test_gradients_of_the_last_pass_are_read_where_they_are() -> None:
    model, optimizer, config = _build(True)
    for num_microbatches in (1, 3):
        for number in range(1, num_microbatches + 1):
            masked_loss(model, config)(toy_batch()).backward()
            before = {name: p.grad for name, p in model.named_parameters()}
            optimizer.collect(num_microbatches=num_microbatches)
            left = before if number == num_microbatches else dict.fromkeys(before)
            assert all(p.grad is left[name] for name, p in model.named_parameters())
        optimizer.zero_grad()


def test_passes_may_leave_their_gradients_in_the_same_memory() -> None:
    """As a CUDA graph does, and the buckets of replicas."""
    (model, usual, config), (other, one_pass, _) = (_build(flag) for flag in (False, True))
    fixed = {name: torch.empty_like(p) for name, p in other.named_parameters()}
    for piece in split(toy_batch(), 2):
        for module, optimizer in ((model, usual), (other, one_pass)):
            (masked_loss(module, config)(piece) / 4).backward()
            for name, parameter in module.named_parameters():
                if optimizer is one_pass:
                    parameter.grad = fixed[name].copy_(parameter.grad)
            optimizer.collect(num_microbatches=4)
    loss = torch.ones(())
    reports = [o.step(loss, learning_rate=1e-3) for o in (usual, one_pass)]
    assert reports[1].grad_norm.item() == pytest.approx(reports[0].grad_norm.item(), rel=1e-6)
    want = _state(model, usual)
    for name, tensor in _state(other, one_pass).items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-5, atol=1e-9, msg=name)


def test_a_gradient_of_an_early_pass_that_is_not_finite_changes_nothing() -> None:
    model, optimizer, config = _build(True)
    _train(model, optimizer, config, 4)
    before = {name: t.clone() for name, t in _state(model, optimizer).items()}
    values = iter([math.nan, 1.0])
    hook = model.decoder_pred.bias.register_hook(lambda gradient: gradient * next(values))
    assert _train(model, optimizer, config, 4).skipped.item() == 1
    hook.remove()
    for name, tensor in _state(model, optimizer).items():
        assert torch.equal(tensor, before[name]), name
    assert _train(model, optimizer, config, 4).skipped.item() == 0


def _finish(run: Path, num_steps: int, *, one_pass: bool = True) -> dict[str, Tensor]:
    """Train from the run's checkpoint, if it has one.

    In fp32: Triton's interpreter cuts bf16 copies where a GPU rounds them, as loading does.
    """
    config = toy_config("train.precision=fp32", f"optim.one_pass={one_pass}".lower())
    loop = toy_loop(config, run, num_steps=num_steps)
    if (checkpoint := newest(run)) is not None:
        loop.resume(checkpoint)
    assert loop.run_to_end(StopSignals(Ranks()))
    return full_state(loop.model)


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    unbroken = _finish(tmp_path / "unbroken", 12)
    _finish(tmp_path / "broken", 7)
    resumed = _finish(tmp_path / "broken", 12)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in unbroken.items())


def test_checkpoints_change_hands_with_the_usual_optimizer(tmp_path: Path) -> None:
    _finish(tmp_path / "unbroken", 12, one_pass=False)
    for first in (False, True):
        run = tmp_path / str(first)
        _finish(run, 7, one_pass=first)
        _finish(run, 12, one_pass=not first)
        assert _losses(run) == pytest.approx(_losses(tmp_path / "unbroken"), abs=RANKS_LOSS)


def _losses(run: Path) -> list[float]:
    losses = [row["loss"] for row in read_metrics(run)]
    assert len(losses) == 12
    return losses
