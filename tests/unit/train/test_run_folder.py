"""What makes two runs the same experiment, and how a restart is noticed."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ecgfast.config import OptimConfig, load_config
from ecgfast.errors import EcgfastError
from ecgfast.train.distributed import Ranks
from ecgfast.train.run_folder import FREE, asked_to_resume, contradictions, enter, flat


def test_settings_of_no_consequence_may_change() -> None:
    then = flat(load_config("vit_tiny"))
    now = flat(
        load_config("vit_tiny", ["train.max_steps=9", "train.log_every=1", "data.engine=cpu"])
    )
    assert contradictions(now, then) == []


def test_every_other_setting_must_stay() -> None:
    config = load_config("vit_tiny")
    then = json.loads(json.dumps(flat(config)))  # as a checkpoint keeps it
    changed = replace(config, optim=OptimConfig(base_lr=1.0))
    assert contradictions(flat(changed), then) == [
        "optim.base_lr (now 1.0, in the checkpoint 0.00015)"
    ]


def test_free_settings_exist() -> None:
    assert flat(load_config("vit_tiny")).keys() >= FREE


def test_a_setting_that_the_checkpoint_lacks_is_named() -> None:
    assert contradictions({"select": "site=1"}, {}) == [
        "select (now 'site=1', in the checkpoint None)"
    ]


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_restarts_resume(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "0")
    assert not asked_to_resume(False)
    monkeypatch.setenv(variable, "1")
    assert asked_to_resume(False)


def test_a_run_that_failed_before_its_first_step_may_begin_again(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('preset = "vit_tiny"\n')
    (tmp_path / "metrics.jsonl").write_text("")
    with enter(tmp_path, Ranks(), resume=False) as checkpoint:
        assert checkpoint is None


def test_a_run_has_one_writer(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    with enter(run, Ranks(), resume=True):
        with pytest.raises(EcgfastError, match=f"{run} is being written by another process"):
            enter(run, Ranks(), resume=True).__enter__()
        assert os.listdir(run) == [".lock"]
    assert os.listdir(run) == []
    with enter(run, Ranks(), resume=False) as checkpoint:
        assert checkpoint is None


def test_what_a_killed_run_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    with enter(tmp_path, Ranks(), resume=False) as checkpoint:
        assert checkpoint is None
