"""What the writer of checkpoints saves, and what it does at its end."""

import errno
import hashlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from disk_calls import recorded_calls
from torch.distributed.checkpoint.api import CheckpointException

from ecgfast.errors import ResumeError
from ecgfast.runs.checkpoint_reader import checkpoint_steps, newest
from ecgfast.train import checkpoint as checkpoints
from ecgfast.train.checkpoint import CheckpointWriter, Slot, load
from ecgfast.train.distributed import Ranks


def save_and_stop(run: Path) -> None:
    big = torch.zeros(1 << 24)  # 64 MB: the save is still under way when the error comes
    with CheckpointWriter(run, Ranks(), keep=1) as writer:
        writer.save({"model.weight": Slot(live=big, source=big)}, step=7, facts={})
        raise KeyboardInterrupt


def test_an_error_elsewhere_waits_for_the_save_under_way(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        save_and_stop(tmp_path)
    assert checkpoint_steps(tmp_path) == [7]
    assert not list((tmp_path / "checkpoints").glob("writing-*"))


def test_a_checkpoint_holds_the_weights_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is slow, and training continues meanwhile."""
    moved, save = threading.Event(), checkpoints.dcp_save

    def save_late(*args: Any, **kwargs: Any) -> object:
        assert moved.wait(60)
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "dcp_save", save_late)
    weight = torch.arange(6.0)
    facts = {"kind": "pretrain", "identity": {}}
    with CheckpointWriter(tmp_path, Ranks(), keep=1) as writer:
        writer.save({"model.weight": Slot(live=weight, source=weight)}, step=3, facts=facts)
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
    facts = {"kind": "pretrain", "identity": {}}
    with CheckpointWriter(tmp_path, Ranks(), keep=1) as writer:
        writer.save({"model.weight": Slot(live=weight, source=weight)}, step=3, facts=facts)
    assert newest(tmp_path) is not None
    (data,) = (tmp_path / "checkpoints" / "step-00000003").glob("*.distcp")
    with data.open("ab") as file:
        file.write(b"!")
    with pytest.raises(ResumeError, match="cannot be read"):
        newest(tmp_path)


def saved(run: Path, *steps: int, keep: int = 9) -> Path:
    """A run with checkpoints of these steps."""
    weight = torch.arange(6.0)
    facts = {"kind": "pretrain", "identity": {}}
    with CheckpointWriter(run, Ranks(), keep=keep) as writer:
        for step in steps:
            writer.save({"model.weight": Slot(live=weight, source=weight)}, step=step, facts=facts)
    return run / "checkpoints"


@pytest.mark.parametrize(
    "name", ["step-000000099", "step-99", "step-00000007 copy", "step-\u0661" + "0" * 7, "step-"]
)
def test_another_name_is_said_and_never_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder = saved(tmp_path, 3)
    shutil.copytree(folder / "step-00000003", folder / name)
    found = newest(tmp_path)
    assert found is not None
    assert found.path == folder / "step-00000003"
    message = f"{folder / name} is not called as a checkpoint is (step- and 8 digits)"
    assert f"{message}; {found.path} is taken instead" in caplog.text
    assert checkpoint_steps(tmp_path) == [3]
    shutil.rmtree(found.path)
    with pytest.raises(ResumeError, match="no other one is left") as error:
        newest(tmp_path)
    assert str(error.value).startswith(message)


def test_a_step_of_more_digits_is_found(tmp_path: Path) -> None:
    saved(tmp_path, 99_999_999, 100_000_000)
    found = newest(tmp_path)
    assert found is not None
    assert (found.step, found.path.name) == (100_000_000, "step-100000000")


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(tmp_path, 3, 7)
    (folder / "step-00000007").rename(folder / "step-99999999")
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 3
    assert "step-99999999 cannot be read: meta.json is of step 7; " in caplog.text


def test_an_empty_newest_folder_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (saved(tmp_path, 3) / "step-99999999").mkdir()
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 3
    assert "step-99999999 cannot be read: " in caplog.text


def _earlier(folder: Path, **changes: Any) -> Path:
    """Give a checkpoint the facts of format 2: sizes, and the digest of the index alone."""
    path = folder / "step-00000003" / "meta.json"
    sizes = {n: e["bytes"] for n, e in json.loads(path.read_text())["files"].items()}
    digest = hashlib.sha256((path.parent / ".metadata").read_bytes()).hexdigest()
    facts = {"kind": "pretrain", "identity": {}, "format": 2, "files": sizes}
    path.write_text(json.dumps({**facts, "index_sha256": digest, **changes}))
    return path.parent


def test_a_checkpoint_of_format_2_is_read_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _earlier(saved(tmp_path, 3))
    found = newest(tmp_path)
    assert found is not None
    assert "was written by an earlier version and has no digests" in caplog.text
    read = torch.full((6,), torch.nan)
    load(found, {"model.weight": Slot(live=read, source=read)}, Ranks(), None)
    assert torch.equal(read, torch.arange(6.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index_sha256": "0" * 64}, r"\.metadata is not what was written"),
        ({"index_sha256": "f" * 64}, r"\.metadata is not what was written"),
        ({"files": {".metadata": 1}}, "a file has another size"),
        ({"files": []}, r"does not name \.metadata"),
        ({"files": {}}, r"does not name \.metadata"),
        ({"step": 2}, "is of step 2"),
        ({"step": 4}, "is of step 4"),
    ],
)
def test_a_damaged_checkpoint_of_format_2_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    _earlier(saved(tmp_path, 3), **changes)
    with pytest.raises(ResumeError, match=message):
        newest(tmp_path)


def test_a_checkpoint_of_now_is_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 3)
    assert newest(tmp_path) is not None
    assert "earlier version" not in caplog.text


def test_what_a_crash_left_is_removed_and_no_more(tmp_path: Path) -> None:
    folder = saved(tmp_path, 3)
    (tmp_path / "kept").mkdir()
    (folder / "writing-link").symlink_to(tmp_path / "kept")
    (folder / "writing-step-00000007").mkdir()
    saved(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["step-00000003"]
    assert (tmp_path / "kept").is_dir()
    checkpoints.remove(folder / "absent")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (OSError(errno.ENOSPC, "x"), "disk full"),
        (RuntimeError("unexpected pos 64 vs 0"), "disk full"),
        (RuntimeError("of another kind"), "could not be written: of another kind; look at"),
        (OSError(errno.EIO, "of the disk"), "of the disk"),
    ],
)
def test_a_save_that_failed_is_one_line(failure: Exception, message: str, tmp_path: Path) -> None:
    failures: Any = {0: (failure, None)}
    error = checkpoints._not_written(tmp_path, CheckpointException("x", failures))
    assert message in str(error)


def test_a_file_with_the_name_of_a_checkpoint_goes_with_the_old_ones(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000001").touch()
    saved(tmp_path, 3, 7, keep=1)
    assert checkpoint_steps(tmp_path) == [7]


def test_every_file_is_on_the_disk_before_the_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded_calls(tmp_path, monkeypatch)
    weight = torch.arange(12.0)
    with CheckpointWriter(tmp_path, Ranks(), keep=1) as writer:
        writer.save({"model.weight": Slot(live=weight, source=weight)}, step=7, facts={})
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
