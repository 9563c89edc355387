"""What the writer of checkpoints saves, and what it does at its end."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from disk_calls import recorded_calls

from ecgfast.errors import ResumeError
from ecgfast.train import checkpoint_writer
from ecgfast.train.checkpoint import Slot, checkpoint_steps, load, newest
from ecgfast.train.checkpoint_writer import CheckpointWriter
from ecgfast.train.distributed import Ranks


def save_and_stop(run: Path) -> None:
    big = torch.zeros(1 << 24)  # 64 MB: the save is still under way when the error comes
    with CheckpointWriter(run, Ranks(), keep=1) as writer:
        writer.save({"model.weight": Slot(live=big, source=big)}, step=7, meta={})
        raise KeyboardInterrupt


def test_an_error_elsewhere_waits_for_the_save_under_way(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        save_and_stop(tmp_path)
    assert checkpoint_steps(tmp_path) == [7]
    assert not list((tmp_path / "checkpoints").glob("writing-*"))


def test_a_checkpoint_holds_the_weights_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is slow, and training goes on meanwhile."""
    moved, save = threading.Event(), checkpoint_writer.dcp_save

    def save_late(*args: Any, **kwargs: Any) -> object:
        assert moved.wait(60)
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoint_writer, "dcp_save", save_late)
    weight = torch.arange(6.0)
    meta = {"kind": "pretrain", "identity": {}}
    with CheckpointWriter(tmp_path, Ranks(), keep=1) as writer:
        writer.save({"model.weight": Slot(live=weight, source=weight)}, step=3, meta=meta)
        weight.zero_()
        moved.set()
    saved = newest(tmp_path)
    assert saved is not None
    assert saved.step == 3
    read = torch.full((6,), torch.nan)
    load(saved, {"model.weight": Slot(live=read, source=read)}, Ranks(), None)
    assert torch.equal(read, torch.arange(6.0))


def test_a_file_that_grew_is_damage(tmp_path: Path) -> None:
    """PyTorch itself would read it without a word."""
    weight = torch.arange(6.0)
    meta = {"kind": "pretrain", "identity": {}}
    with CheckpointWriter(tmp_path, Ranks(), keep=1) as writer:
        writer.save({"model.weight": Slot(live=weight, source=weight)}, step=3, meta=meta)
    assert newest(tmp_path) is not None
    (data,) = (tmp_path / "checkpoints" / "step-00000003").glob("*.distcp")
    with data.open("ab") as file:
        file.write(b"!")
    with pytest.raises(ResumeError, match="cannot be read"):
        newest(tmp_path)


def test_every_file_is_on_the_disk_before_the_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded_calls(tmp_path, monkeypatch)
    weight = torch.arange(12.0)
    with CheckpointWriter(tmp_path, Ranks(), keep=1) as writer:
        writer.save({"model.weight": Slot(live=weight, source=weight)}, step=7, meta={})
    made, final = "checkpoints/writing-step-00000007", "checkpoints/step-00000007"
    named = calls.index(f"rename {made} to {final}")
    files = list((tmp_path / final).iterdir())
    assert {".metadata", "meta.json"} < {path.name for path in files}
    renamed = {call.split()[3]: call.split()[1] for call in calls if call.startswith("rename")}
    for path in files:
        name = f"{made}/{path.name}"
        synced = f"fsync {renamed.get(name, name)} of {path.stat().st_size} bytes"
        assert synced in calls[:named]
    assert calls[named + 1 :] == ["fsync checkpoints/"]
