"""What may happen to a run's folder: a second process, a full disk."""

from pathlib import Path

import pytest
from training_runs import (
    finish,
    kill,
    loss_trace,
    start,
    wait_for_step,
    weights,
)

from ecgfast.config import load_config
from ecgfast.runs.checkpoint_reader import newest
from ecgfast.train.pretrain import pretrain

pytestmark = pytest.mark.slow
BUSY = "is being written by another process; wait until it ends, then run again"
TARGET = ("--init", "random", "--target", "ejection_fraction<40")
CHECKPOINT_BYTES = 393_216  # of this preset; no other file has a tenth of it


def _command(name: str, store: Path, run: Path, tiny: Path, *more: str) -> list[str]:
    return [
        *(name, str(store), "--out", str(run), "--preset", str(tiny)),
        *("--device", "cpu", *more),
    ]


def _errors(output: str) -> list[str]:
    assert "Traceback" not in output, output
    return [line for line in output.splitlines() if line.startswith("error:")]


def test_a_second_process_is_refused_until_the_first_is_gone(
    store: Path, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    endless = _command("pretrain", store, run, tiny, "--resume", "--set", "train.epochs=100000")
    first = start(endless)
    wait_for_step(run, 8, first)
    for second in (endless, _command("finetune", store, run, tiny, *TARGET)):
        process = start(second)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert _errors(output) == [f"error: {run} {BUSY}"]
    assert first.poll() is None
    kill(first)  # its lock ends with it, although nobody could put it away
    steps = sorted(loss_trace(run))
    assert steps == list(range(1, len(steps) + 1))
    stopped_at = steps[-1] // 7 * 7
    config = load_config(str(tiny), ["train.epochs=100000", f"train.max_steps={stopped_at + 1}"])
    pretrain(store, run, preset=config, device="cpu", resume=True)
    assert max(loss_trace(run)) == stopped_at + 1


def test_ranks_are_refused_with_one_word(store: Path, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    endless = _command("pretrain", store, run, tiny, "--resume", "--set", "train.epochs=100000")
    first = start(endless)
    wait_for_step(run, 8, first)
    second = start(endless, ranks=2)
    output, _ = second.communicate(timeout=120)
    assert second.returncode != 0
    assert [x for x in output.splitlines() if x.startswith("error:")] == [f"error: {run} {BUSY}"]
    assert "exitcode: 2" in output
    assert first.poll() is None
    kill(first)


def test_a_disk_that_fills_up_costs_one_checkpoint(store: Path, tiny: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    pretrain(store, run, preset=load_config(str(tiny), ["train.max_steps=7"]), device="cpu")
    command = _command("pretrain", store, run, tiny, "--resume", "--set", "train.max_steps=20")
    process = start(command, largest_file=CHECKPOINT_BYTES // 2)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    path = run / "checkpoints" / "step-00000014"
    assert _errors(output) == [
        f"error: disk full while writing {path}: free some space and run the same command with "
        "--resume, it resumes where it stopped"
    ]
    assert not list((run / "checkpoints").glob("writing-*"))
    assert (found := newest(run)) is not None
    assert found.step == 7

    config = load_config(str(tiny), ["train.max_steps=20"])
    pretrain(store, run, preset=config, device="cpu", resume=True)
    pretrain(store, whole, preset=config, device="cpu")
    assert loss_trace(run) == loss_trace(whole)
    assert weights(run) == weights(whole)


def test_a_full_disk_is_told_where_the_last_checkpoint_goes(
    store: Path, tiny: Path, tmp_path: Path
) -> None:
    command = _command("finetune", store, tmp_path / "run", tiny, *TARGET)
    process = start(command, largest_file=20_000)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    (error,) = _errors(output)
    assert error.startswith("error: disk full while writing")
    finish(start([*command, "--resume"]))
