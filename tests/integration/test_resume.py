"""A run that is killed and resumed ends in the same bits as one that was left alone."""

import logging
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from training_runs import (
    finish,
    kill,
    loss_trace,
    start,
    wait_for_step,
    weights,
)

from ecgfast.config import load_config
from ecgfast.errors import ResumeError
from ecgfast.log import read_metrics
from ecgfast.runs.loading import load_model
from ecgfast.train.pretrain import pretrain

STEPS = 40


@pytest.fixture(scope="module")
def unbroken(store: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    return pretrain(store, run, preset=_config(tiny), device="cpu")


def _config(tiny: Path, *settings: str):  # noqa: ANN202 (a Config)
    return load_config(str(tiny), [f"train.max_steps={STEPS}", *settings])


def _command(store: Path, run: Path, tiny: Path) -> list[str]:
    return [
        *("pretrain", str(store), "--out", str(run), "--preset", str(tiny)),
        *("--set", f"train.max_steps={STEPS}", "--device", "cpu", "--resume"),
    ]


@pytest.mark.parametrize("broken_at", [4, 21])
def test_a_bf16_run_resumes_in_the_same_bits(
    broken_at: int, store: Path, tiny: Path, tmp_path: Path
) -> None:
    """The checkpoint holds fp32 weights only: the bf16 copies are made from them again."""
    bf16 = ("train.precision=bf16", "train.val_fraction=0.1", "train.max_steps=30")
    whole = pretrain(store, tmp_path / "whole", preset=_config(tiny, *bf16), device="cpu")
    run = tmp_path / "run"
    pretrain(store, run, preset=_config(tiny, *bf16, f"train.max_steps={broken_at}"), device="cpu")
    pretrain(store, run, preset=_config(tiny, *bf16), device="cpu", resume=True)
    assert loss_trace(run) == loss_trace(whole)
    assert weights(run) == weights(whole)


def test_bf16_training_gives_fp32_weights(store: Path, tiny: Path, tmp_path: Path) -> None:
    config = _config(tiny, "train.precision=bf16", "train.max_steps=3")
    run = pretrain(store, tmp_path / "run", preset=config, device="cpu")
    state = load_model(run)[0].state_dict()
    assert {t.dtype for t in state.values()} == {torch.float32}
    assert weights(run) == {name: t.numpy().tobytes() for name, t in state.items()}
    assert any(not torch.equal(t, t.bfloat16().float()) for t in state.values())
    with pytest.raises(ResumeError, match=r"precision \(now 'fp32', in the checkpoint 'bf16'\)"):
        pretrain(store, run, preset=_config(tiny), device="cpu", resume=True)


def test_killed_once(store: Path, tiny: Path, unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(_command(store, run, tiny))
    wait_for_step(run, 16, process)
    kill(process)
    pretrain(store, run, preset=_config(tiny), device="cpu", resume=True)
    assert loss_trace(run) == loss_trace(unbroken)
    assert weights(run) == weights(unbroken)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(store: Path, tiny: Path, tmp_path: Path) -> None:
    """Ten steps a life, a checkpoint every seven; some lives end before their first step."""
    config = _config(tiny, "train.max_steps=200", "train.epochs=34")
    run, whole = tmp_path / "run", pretrain(store, tmp_path / "whole", preset=config, device="cpu")
    more = ("--set", "train.max_steps=200", "--set", "train.epochs=34")
    moments = random.Random(0)
    for life in range(20):
        process = start([*_command(store, run, tiny), *more])
        if life % 5 == 4:
            time.sleep(moments.uniform(0, 6))  # importing, reading the checkpoint, or training
        else:
            wait_for_step(run, 9 * life + moments.randint(1, 9), process)
            time.sleep(moments.uniform(0, 0.1))
        assert kill(process) == -signal.SIGKILL
    pretrain(store, run, preset=config, device="cpu", resume=True)
    assert loss_trace(run) == loss_trace(whole)
    assert weights(run) == weights(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_preempted_runs_save_and_end_by_the_signal(
    number: signal.Signals, store: Path, tiny: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(_command(store, run, tiny))
    wait_for_step(run, 8, process)
    assert kill(process, number) == -number
    last_logged = max(loss_trace(run))
    assert last_logged < STEPS
    assert (run / "checkpoints" / f"step-{int(last_logged):08d}" / "meta.json").is_file()
    finish(start(_command(store, run, tiny)))
    assert loss_trace(run) == loss_trace(unbroken)
    assert weights(run) == weights(unbroken)


def test_a_half_written_checkpoint_is_ignored_and_removed(
    store: Path, tiny: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pretrain(store, run, preset=_config(tiny, "train.max_steps=21"), device="cpu")
    half = run / "checkpoints" / "writing-step-00000099"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    pretrain(store, run, preset=_config(tiny), device="cpu", resume=True)
    assert not half.exists()
    assert loss_trace(run) == loss_trace(unbroken)
    assert weights(run) == weights(unbroken)


def test_another_experiment_is_refused(store: Path, tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(store, run, preset=_config(tiny, "train.max_steps=2"), device="cpu")
    with pytest.raises(ResumeError, match=r"train.seed \(now 1, in the checkpoint 0\)"):
        pretrain(store, run, preset=_config(tiny, "train.seed=1"), device="cpu", resume=True)
    with pytest.raises(ResumeError, match=r"select \(now 'site=1', in the checkpoint None\)"):
        pretrain(store, run, preset=_config(tiny), select="site=1", device="cpu", resume=True)
    with pytest.raises(ResumeError, match="not empty; add --resume"):
        pretrain(store, run, preset=_config(tiny), device="cpu")


def test_resume_in_an_empty_folder_starts_afresh(store: Path, tiny: Path, tmp_path: Path) -> None:
    config = _config(tiny, "train.max_steps=1")
    run = pretrain(store, tmp_path / "new", preset=config, device="cpu", resume=True)
    assert list(loss_trace(run)) == [1]


def test_a_folder_that_is_no_run_is_refused(store: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ResumeError, match=r"no config\.toml"):
        pretrain(store, tmp_path, preset=_config(tiny), device="cpu", resume=True)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("__0_0.distcp", "cut"),
        ("__0_0.distcp", "garbled"),
        (".metadata", "garbled"),
        (".metadata", "removed"),
    ],
)
def test_a_damaged_checkpoint_is_named(
    name: str,
    damage: str,
    store: Path,
    tiny: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = tmp_path / "run"
    pretrain(store, run, preset=_config(tiny, "train.max_steps=2"), device="cpu")
    file = run / "checkpoints" / "step-00000002" / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "garbled":
        file.write_bytes(b"\0" * file.stat().st_size)
    else:
        file.unlink()
    with pytest.raises(ResumeError, match=r"step-00000002 cannot be read"):
        pretrain(store, run, preset=_config(tiny), device="cpu", resume=True)
    said = [r for r in caplog.records if r.name == "root" and r.levelno >= logging.WARNING]
    assert not said, "PyTorch shows a traceback beside our line"


@pytest.mark.parametrize(("fraction", "scored"), [(0.0, False), (0.1, True), (0.3, True)])
def test_held_out_records_are_scored_however_few(
    fraction: float, scored: bool, store: Path, tiny: Path, tmp_path: Path
) -> None:
    config = _config(tiny, "train.max_steps=2", f"train.val_fraction={fraction}")
    run = pretrain(store, tmp_path / "run", preset=config, device="cpu")
    assert ("val_loss" in read_metrics(run)[-1]) is scored
