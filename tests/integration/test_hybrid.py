"""Four ranks as two machines of two, each with a whole copy: the training of a flat mesh."""

import shutil
import socket
from pathlib import Path

import pytest
from tolerances import RANKS_LOSS
from training_runs import finish, start

from ecgfast.log import read_metrics

STEPS, CUT = 24, 13
pytestmark = pytest.mark.slow


def command(store: Path, tiny: Path, run: Path, steps: int, *settings: str) -> list[str]:
    words = ["pretrain", str(store), "--out", str(run), "--preset", str(tiny), "--resume"]
    for setting in (f"train.max_steps={steps}", *settings):
        words += ["--set", setting]
    return [*words, "--device", "cpu"]


def on_two_machines(words: list[str]) -> str:
    """Run two ranks under each of two torchruns; what the first one printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["--nnodes=2", "--master-addr=127.0.0.1", f"--master-port={port}"]
    first, second = (
        start(words, ranks=2, launch=[*launch, f"--node-rank={number}"]) for number in range(2)
    )
    output = finish(first)
    finish(second)
    return output


def close(run: Path, expected: Path) -> None:
    """Losses, and norms of the gradient, which count what two machines hold once."""
    for row, want in zip(read_metrics(run), read_metrics(expected), strict=True):
        assert row["step"] == want["step"]
        assert row["loss"] == pytest.approx(want["loss"], abs=RANKS_LOSS)
        assert row["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-4)


def test_two_machines_train_as_four_ranks_and_checkpoints_cross(
    store: Path, tiny: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    finish(start(command(store, tiny, flat, STEPS), ranks=4))
    whole = tmp_path / "hybrid"
    on_two_machines(command(store, tiny, whole, STEPS))
    close(whole, flat)

    cut = tmp_path / "cut"
    on_two_machines(command(store, tiny, cut, CUT, "train.mesh=hybrid"))
    shutil.copytree(cut, tmp_path / "alone")
    assert f"step-{CUT:08d}" in finish(start(command(store, tiny, tmp_path / "alone", STEPS)))
    close(tmp_path / "alone", flat)
    shutil.copytree(flat, tmp_path / "longer")
    longer = command(store, tiny, tmp_path / "longer", STEPS + 2)
    assert f"step-{STEPS:08d}" in on_two_machines(longer)


def test_one_machine_cannot_be_hybrid(store: Path, tiny: Path, tmp_path: Path) -> None:
    words = command(store, tiny, tmp_path / "run", 2, "train.mesh=hybrid")
    process = start(words, ranks=2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "train.mesh=hybrid needs several machines with equally many ranks, got 2" in output
