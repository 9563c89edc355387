"""The same run on 1, 2 and 4 ranks: equal records, masks and losses; checkpoints change hands."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import RANKS_LOSS, RANKS_LOSS_BF16
from training_runs import finish, loss_trace, start, wait_for_step

from ecgfast.config import load_config
from ecgfast.runs.loading import load_model
from ecgfast.train.pretrain import pretrain

STEPS = 50
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(store: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[float, float]:
    config = load_config(str(tiny), [f"train.max_steps={STEPS}"])
    return loss_trace(
        pretrain(store, tmp_path_factory.mktemp("alone"), preset=config, device="cpu")
    )


def _command(store: Path, run: Path, tiny: Path, steps: int = STEPS) -> list[str]:
    return [
        *("pretrain", str(store), "--out", str(run), "--preset", str(tiny)),
        *("--set", f"train.max_steps={steps}", "--device", "cpu", "--resume"),
    ]


def _close(trace: dict[float, float], expected: dict[float, float]) -> None:
    assert trace.keys() == expected.keys()
    assert max(abs(trace[s] - expected[s]) for s in expected) < RANKS_LOSS


@pytest.fixture(scope="module")
def two(store: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[float, float]:
    run = tmp_path_factory.mktemp("two")
    finish(start(_command(store, run, tiny), ranks=2))
    return loss_trace(run)


def test_two_ranks_change_nothing(two: dict[float, float], alone: dict[float, float]) -> None:
    _close(two, alone)


def test_four_ranks_change_nothing(
    store: Path, tiny: Path, alone: dict[float, float], tmp_path: Path
) -> None:
    finish(start(_command(store, tmp_path / "run", tiny), ranks=4))
    _close(loss_trace(tmp_path / "run"), alone)


def _facts(store: Path, tiny: Path, ranks: int) -> dict[str, Any]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    script = Path(__file__).parents[1] / "helpers" / "rank_facts.py"
    done = subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else ()), script, store, tiny, str(STEPS)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("FACTS"))
    facts: dict[str, Any] = json.loads(line.removeprefix("FACTS"))
    return facts


def test_ranks_start_from_the_same_bits_and_see_the_same_bits(store: Path, tiny: Path) -> None:
    """Initial weights; then number, patches and masks of every record, in the global order."""
    alone, two, four = (_facts(store, tiny, ranks) for ranks in (1, 2, 4))
    assert len(set(alone["seen"])) == len(alone["seen"]) == 8 * STEPS, "a mask came twice"
    assert alone == two == four


def test_saved_on_four_resumed_on_two_and_on_one(
    store: Path, tiny: Path, alone: dict[float, float], tmp_path: Path
) -> None:
    finish(start(_command(store, tmp_path / "four", tiny, steps=23), ranks=4))
    for ranks in (2, 1):
        run = tmp_path / str(ranks)
        shutil.copytree(tmp_path / "four", run)
        output = finish(start(_command(store, run, tiny), ranks=ranks))
        assert "step-00000023" in output
        _close(loss_trace(run), alone)


def test_bf16_runs_change_hands_between_one_rank_and_two(
    store: Path, tiny: Path, tmp_path: Path
) -> None:
    """One rank keeps fp32 weights beside bf16 ones, two shard them: the files are the same."""

    def command(run: Path, steps: int) -> list[str]:
        return [*_command(store, run, tiny, steps), "--set", "train.precision=bf16"]

    finish(start(command(tmp_path / "alone", STEPS)))
    alone = loss_trace(tmp_path / "alone")
    for first, second in ((1, 2), (2, 1)):
        run = tmp_path / f"{first}-{second}"
        finish(start(command(run, 23), ranks=first))
        output = finish(start(command(run, STEPS), ranks=second))
        assert "step-00000023" in output
        trace = loss_trace(run)
        assert trace.keys() == alone.keys()
        assert max(abs(trace[s] - alone[s]) for s in alone) < RANKS_LOSS_BF16
        state = load_model(run)[0].state_dict()
        assert {t.dtype for t in state.values()} == {torch.float32}


def test_torchrun_brings_a_killed_rank_back(
    store: Path, tiny: Path, two: dict[float, float], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # One restart is for the kill; on a busy machine a rank that comes up late costs another.
    process = start(_command(store, run, tiny), ranks=2, restarts=3)
    wait_for_step(run, 16, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    output = finish(process)
    assert re.search(r"resumed from .*step-000000\d\d", output)
    assert loss_trace(run) == two


def test_preempted_ranks_agree_on_a_step(
    store: Path, tiny: Path, alone: dict[float, float], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(_command(store, run, tiny), ranks=2)
    wait_for_step(run, 10, process)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on
    process.communicate(timeout=120)
    assert process.returncode != 0
    last_logged = int(max(loss_trace(run)))
    assert (run / "checkpoints" / f"step-{last_logged:08d}" / "meta.json").is_file()
    finish(start(_command(store, run, tiny), ranks=2))
    _close(loss_trace(run), alone)
