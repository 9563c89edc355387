"""The step and the loop around it: no waiting in a step, whole checkpoints, rollback."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy import toy_batch, toy_config, toy_loop, toy_model

from ecgfast.errors import EcgfastError
from ecgfast.log import read_metrics
from ecgfast.train.checkpoint import checkpoint_steps
from ecgfast.train.distributed import Ranks
from ecgfast.train.loop import train_step
from ecgfast.train.optim import build_optimizer
from ecgfast.train.pretrain import masked_loss
from ecgfast.train.signals import StopSignals

# What makes the host wait for a GPU: reading a value, or shapes that depend on values.
WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal"}


class _RefuseToWait(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{name} waits for the device"
        if name == "_to_copy" and (kwargs or {}).get("device") is not None:
            raise AssertionError(f"a copy to {kwargs['device']} waits for the device")
        return func(*args, **(kwargs or {}))


def test_the_refusal_refuses() -> None:
    with pytest.raises(AssertionError, match="_local_scalar_dense"), _RefuseToWait():
        torch.ones(1).item()


def test_a_step_does_not_wait_for_the_device() -> None:
    config = toy_config("train.clip_norm=1.0")
    model = toy_model(config)
    optimizer = build_optimizer(model, config.optim, Ranks(), clip_norm=1.0)
    with _RefuseToWait():
        train_step(
            model,
            optimizer,
            masked_loss(model, config),
            toy_batch(),
            microbatch=4,
            learning_rate=1e-3,
        )


def test_microbatches_add_up_to_the_batch() -> None:
    config = toy_config()
    losses, norms = [], []
    for microbatch in (8, 4, 1):
        model = toy_model(config)
        optimizer = build_optimizer(model, config.optim, Ranks())
        report = train_step(
            model,
            optimizer,
            masked_loss(model, config),
            toy_batch(),
            microbatch=microbatch,
            learning_rate=1e-3,
        )
        losses.append(report.loss.item())
        norms.append(report.grad_norm.item())
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)


def test_newest_checkpoints_and_milestones_stay(tmp_path: Path) -> None:
    config = toy_config(
        "train.checkpoint_every=2", "train.checkpoint_keep=2", "train.milestone_every=6"
    )
    loop = toy_loop(config, tmp_path, num_steps=15)
    assert loop.run_to_end(StopSignals(Ranks()))
    assert checkpoint_steps(tmp_path) == [6, 12, 14, 15]
    assert not list((tmp_path / "checkpoints").glob("writing-*"))


def test_every_log_line_has_the_documented_keys(tmp_path: Path) -> None:
    toy_loop(toy_config(), tmp_path, num_steps=3).run_to_end(StopSignals(Ranks()))
    expected = {"step", "epoch", "loss", "lr", "grad_norm", "records_per_s", "mfu_pct"}
    expected |= {"data_wait_pct", "mem_peak_gib"}
    for row in read_metrics(tmp_path):
        assert expected <= row.keys()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_few_broken_batches_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    loop = toy_loop(toy_config(), tmp_path, num_steps=12, broken=range(4, 6))
    loop.run_to_end(StopSignals(Ranks()))
    losses = [row["loss"] for row in read_metrics(tmp_path)]
    assert [i for i, loss in enumerate(losses) if loss is None] == [4, 5]
    assert loop.optimizer.num_updates.item() == 10
    assert "step 5: 1 steps skipped" in caplog.text


def test_ten_broken_batches_in_a_row_roll_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    loop = toy_loop(toy_config(), tmp_path, num_steps=30, broken=range(7, 17))
    loop.run_to_end(StopSignals(Ranks()))
    assert "weights and moments are those of" in caplog.text
    losses = [row["loss"] for row in read_metrics(tmp_path)]
    assert losses[29] < losses[0]
    # back to the checkpoint of step 5, as those of 10 and 15 would hold the lost weights; 13 more
    assert loop.optimizer.num_updates.item() == 5 + 13


def test_a_loss_that_never_comes_back_ends_the_run(tmp_path: Path) -> None:
    loop = toy_loop(toy_config(), tmp_path, num_steps=100, broken=range(7, 100))
    with pytest.raises(EcgfastError, match=r"not finite .* lower optim\.base_lr"):
        loop.run_to_end(StopSignals(Ranks()))
