"""Damaged run folders: the tool's short run, and disks and memories that fail in the middle."""

import builtins
import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ecgfast.config import load_config
from ecgfast.errors import EcgfastError
from ecgfast.runs.loading import load_model
from ecgfast.runs.register import read_register
from ecgfast.train.finetune import finetune
from ecgfast.train.pretrain import pretrain

TOOL = Path(__file__).resolve().parents[2] / "tests" / "fuzz" / "runs.py"


@pytest.fixture(scope="module")
def runs(store: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A pretraining run with two checkpoints, and a classifier."""
    folder, target = tmp_path_factory.mktemp("runs"), "ejection_fraction<40"
    first = load_config(str(tiny), ["train.max_steps=14"])
    second = load_config(str(tiny), ["finetune.epochs=1"])
    return [
        pretrain(store, folder / "pre", preset=first, device="cpu"),
        finetune(store, folder / "fine", preset=second, init="random", target=target, device="cpu"),
    ]


def test_damaged_runs_give_an_error_or_the_same_values(runs: list[Path]) -> None:
    command = [sys.executable, str(TOOL), *map(str, runs), "--mutants", "150", "--flips", "30"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {line.split(maxsplit=1)[1]: int(line.split()[0]) for line in done.stdout.splitlines()}
    assert counts["flips: an error of ours"] == 15
    assert counts["flips: the checkpoint before"] == 15
    assert counts["mutants: an error of ours"] > 40


class _Failing(io.FileIO):
    """A file whose n-th read of all fails."""

    left: int = 0
    error: BaseException = MemoryError()

    def readinto(self, buffer: Any, /) -> int | None:
        _countdown()
        return super().readinto(buffer)

    def readall(self) -> bytes:
        _countdown()
        return super().readall()


def _countdown() -> None:
    _Failing.left -= 1
    if _Failing.left == 0:
        raise type(_Failing.error)(*_Failing.error.args)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("which", [0, 1])
def test_an_open_or_read_that_fails_is_one_line(
    which: int, error: BaseException, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call in turn fails, until none is left; calls that libraries make in C do not."""
    real_open, real_os_open = builtins.open, os.open

    def failing_open(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode != "rb":
            return real_open(file, mode, *rest, **more)
        _countdown()
        return io.BufferedReader(_Failing(file, "rb"))

    def failing_os_open(*arguments: Any, **more: Any) -> int:
        _countdown()
        return real_os_open(*arguments, **more)

    read_register(runs[which])  # what is imported late is imported now
    model, config, _ = load_model(runs[which])
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setattr(builtins, "open", failing_open)
    monkeypatch.setattr(io, "open", failing_open)
    monkeypatch.setattr(os, "open", failing_os_open)
    _Failing.error = error
    texts: list[str] = []
    for number in range(1, 500):
        _Failing.left = number
        try:
            model, found, _ = load_model(runs[which])
            read_register(runs[which])
        except EcgfastError as error:
            texts.append(str(error))
        else:
            assert found == config
            if _Failing.left > 0:  # no call was left to fail
                break
    else:
        pytest.fail("the calls do not end")
    assert len(texts) > 5
    assert not [text for text in texts if "\n" in text]
    assert all((tensor == expected[name]).all() for name, tensor in model.state_dict().items())
