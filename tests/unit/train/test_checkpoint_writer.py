"""What the writer of checkpoints does at its end."""

from pathlib import Path

import pytest
import torch

from ecgfast.train.checkpoint import Slot, checkpoint_steps
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
