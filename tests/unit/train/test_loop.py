"""The step and the loop around it: no waiting in a step, whole checkpoints, rollback."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from toy import toy_batch, toy_config, toy_loop, toy_model

from ecgfast.data.batch import Batch
from ecgfast.errors import EcgfastError
from ecgfast.log import read_metrics
from ecgfast.runs.checkpoint_reader import checkpoint_steps, newest
from ecgfast.train.distributed import Ranks
from ecgfast.train.guards import StopSignals
from ecgfast.train.loop import train_step
from ecgfast.train.optim import MasterAdamW
from ecgfast.train.pretrain import masked_loss

# What makes the host wait for a GPU: reading a value, or shapes that depend on values.
WAITING = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal"}
# The same as Python calls: on a CPU they reach no operator.
WAITING_CALLS = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__array__"}


class _RefuseOperators(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{name} waits for the device"
        if name == "_to_copy" and (kwargs or {}).get("device", args[0].device) != args[0].device:
            raise AssertionError(f"a copy to {kwargs['device']} waits for the device")
        if name in ("index", "index_put_"):
            by_mask = any(i is not None and i.dtype == torch.bool for i in args[1])
            assert not by_mask, "choosing by a mask waits for the device"
        return func(*args, **(kwargs or {}))


class _RefuseCalls(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in WAITING_CALLS, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    with _RefuseOperators(), _RefuseCalls():
        yield


@pytest.mark.parametrize(
    "wait",
    [
        lambda one: one.item(),
        lambda one: one.cpu(),
        lambda one: one.tolist(),
        lambda one: one.nonzero(),
        lambda one: bool(one),
        lambda one: float(one),
        lambda one: one[one > 0],
        lambda one: one.to("meta"),
    ],
)
def test_the_refusal_refuses(wait: Callable[[torch.Tensor], object]) -> None:
    one = torch.ones(1)
    with pytest.raises(AssertionError, match="waits for the device"), _refusing_to_wait():
        wait(one)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_between_logs_do_not_wait_for_the_device(precision: str, tmp_path: Path) -> None:
    """Five steps of the loop itself: batches, masks, update, guards, meter and stop signals."""
    settings = ("train.log_every=100", "train.checkpoint_every=100", "train.clip_norm=1.0")
    config = toy_config(*settings, f"train.precision={precision}")
    loop = toy_loop(config, tmp_path, num_steps=100)
    steps, loss_of = [], loop.loss_of

    class EnoughError(Exception):
        pass

    def counted(batch: Batch) -> torch.Tensor:
        steps.append(len(steps) // 2 + 1)  # two microbatches a step
        if steps[-1] == 6:
            raise EnoughError
        return loss_of(batch)

    loop.loss_of = counted
    with pytest.raises(EnoughError), _refusing_to_wait():
        loop.run_to_end(StopSignals(Ranks()))
    assert steps[-1] == 6


def test_a_log_step_waits(tmp_path: Path) -> None:
    """Once, for all values of the line: so that the test above looks where it should."""
    loop = toy_loop(toy_config(), tmp_path, num_steps=3)
    with pytest.raises(AssertionError, match="tolist waits"), _refusing_to_wait():
        loop.run_to_end(StopSignals(Ranks()))


def test_microbatches_add_up_to_the_batch() -> None:
    config = toy_config()
    losses, norms = [], []
    for microbatch in (8, 4, 1):
        model = toy_model(config)
        optimizer = MasterAdamW(model, Ranks(), config.optim)
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


def test_each_step_takes_and_logs_its_own_rate(tmp_path: Path) -> None:
    """Only the third step has one: two steps move nothing, three do."""
    for num_steps, moved in ((2, False), (3, True)):
        loop = toy_loop(toy_config(), tmp_path / str(num_steps), num_steps=num_steps)
        loop.learning_rate_at = lambda step: 1e-3 if step == 2 else 0.0
        before = [p.detach().clone() for p in loop.model.parameters()]
        loop.run_to_end(StopSignals(Ranks()))
        after = list(loop.model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) is not moved
    assert [row["lr"] for row in read_metrics(tmp_path / "3")] == [0.0, 0.0, 1e-3]


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
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [0.25, 0.5, 0.75]
    left = [row["eta_s"] for row in read_metrics(tmp_path)]
    assert left[0] > 0
    assert left[2] == 0


def test_a_run_of_one_step_is_saved(tmp_path: Path) -> None:
    assert toy_loop(toy_config(), tmp_path, num_steps=1).run_to_end(StopSignals(Ranks()))
    assert checkpoint_steps(tmp_path) == [1]


def test_a_run_that_ends_on_a_broken_step_is_saved(tmp_path: Path) -> None:
    loop = toy_loop(toy_config(), tmp_path, num_steps=6, broken=range(4, 6))
    assert loop.run_to_end(StopSignals(Ranks()))
    assert checkpoint_steps(tmp_path) == [6]  # not after the fifth step, which was broken too


def test_a_stopped_run_saves_its_last_step_and_goes_on_to_the_end(tmp_path: Path) -> None:
    loop = toy_loop(toy_config(), tmp_path, num_steps=4)
    loss_of, batches = loop.loss_of, []

    def stopping(batch: Batch) -> torch.Tensor:
        batches.append(batch)
        if len(batches) == 3:  # two microbatches a step
            os.kill(os.getpid(), signal.SIGTERM)
        return loss_of(batch)

    loop.loss_of = stopping
    with StopSignals(Ranks()) as stop:
        assert not loop.run_to_end(stop)
    assert len(read_metrics(tmp_path)) == 2
    assert checkpoint_steps(tmp_path) == [2]
    for _ in range(2):  # the second time nothing is left to do
        again = toy_loop(toy_config(), tmp_path, num_steps=4)
        checkpoint = newest(tmp_path)
        assert checkpoint is not None
        again.resume(checkpoint)
        assert again.run_to_end(StopSignals(Ranks()))
        assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 5))


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


def test_skipped_steps_are_told_once_and_not_again_after_a_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    toy_loop(toy_config(), tmp_path, num_steps=5, broken=range(1, 2)).run_to_end(
        StopSignals(Ranks())
    )
    loop = toy_loop(toy_config(), tmp_path, num_steps=10)
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    loop.resume(checkpoint)
    loop.run_to_end(StopSignals(Ranks()))
    assert caplog.text.count("steps skipped") == 1


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


def test_lost_weights_do_not_end_a_trial_of_fine_tuning(tmp_path: Path) -> None:
    """Four returns to the checkpoint of step 5: patience ends such a trial, not an error."""
    loop = toy_loop(toy_config("train.log_every=12"), tmp_path, num_steps=60, broken=range(7, 60))
    trial = replace(loop, is_trial=True)
    assert trial.run_to_end(StopSignals(Ranks()))
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert not [name for name in checkpoint.index.state_dict_metadata if "guard" in name]
    assert trial.optimizer.num_updates.item() == 5
