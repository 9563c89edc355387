"""What makes two runs the same experiment, and how a restart is noticed."""

import json
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from torch.distributed.checkpoint.metadata import Metadata
from toy import pretraining_run

from ecgfast.config import load_config
from ecgfast.errors import EcgfastError, ResumeError
from ecgfast.runs.checkpoint_reader import Checkpoint
from ecgfast.runs.meta import contradictions, flat
from ecgfast.settings import OptimConfig, free_on_resume
from ecgfast.train.distributed import Ranks
from ecgfast.train.run_folder import asked_to_resume, enter, require_same, write_settings

TOY = ["model.encoder_depth=1", "model.num_timesteps=250"]


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
    assert flat(load_config("vit_tiny")).keys() >= free_on_resume()


def test_a_setting_that_the_checkpoint_lacks_is_named() -> None:
    assert contradictions({"select": "site=1"}, {}) == [
        "select (now 'site=1', in the checkpoint None)"
    ]


def test_a_run_of_before_a_setting_has_its_default() -> None:
    now = flat(load_config("vit_tiny"))
    then = {name: value for name, value in now.items() if name != "train.deterministic"}
    assert contradictions(now, then) == []
    assert contradictions({**now, "train.deterministic": True}, then) == [
        "train.deterministic (now True, in the checkpoint not set, which is False)"
    ]


def test_a_setting_of_another_version_is_named_as_that() -> None:
    now = flat(load_config("vit_tiny"))
    assert contradictions(now, {**now, "train.later": 3}) == [
        "train.later (now no setting of this version, in the checkpoint 3)"
    ]


def test_what_only_the_other_kind_of_run_uses_may_change() -> None:
    then = flat(load_config("vit_tiny"))
    of_pretraining = flat(load_config("vit_tiny", ["optim.base_lr=1.0", "mask.ratio=0.5"]))
    of_finetuning = flat(load_config("vit_tiny", ["finetune.epochs=3", "model.pool=mean"]))
    assert contradictions(of_pretraining, then, kind="finetune") == []
    assert contradictions(of_finetuning, then, kind="pretrain") == []
    assert len(contradictions(of_pretraining, then, kind="pretrain")) == 2
    assert len(contradictions(of_finetuning, then, kind="finetune")) == 2


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


def test_what_a_folder_holds_is_resumed_only_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    caplog.set_level("INFO", logger="ecgfast")

    def entered(*, resume: bool) -> Checkpoint | None:
        with enter(tmp_path, Ranks(), resume=resume) as checkpoint:
            return checkpoint

    assert entered(resume=True) is None
    assert "starting afresh" not in caplog.text
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    with pytest.raises(ResumeError, match="is not empty; add --resume"):
        entered(resume=False)
    with pytest.raises(ResumeError, match="is not the folder of a run: it has no config"):
        entered(resume=True)
    (tmp_path / "config.toml").write_text('preset = "vit_tiny"\n')
    with pytest.raises(ResumeError, match="is not empty; add --resume"):
        entered(resume=False)
    assert entered(resume=True) is None
    assert "has no checkpoint yet: starting afresh" in caplog.text
    caplog.clear()
    (tmp_path / "metrics.jsonl").unlink()
    pretraining_run(tmp_path, load_config("vit_tiny", TOY))
    with pytest.raises(ResumeError, match="is not empty; add --resume"):
        entered(resume=False)
    for step in (9, 12):  # damaged, as both are empty
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir()
    found = entered(resume=True)
    assert found is not None
    assert found.step == 3
    assert "starting afresh" not in caplog.text
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [
        "damaged-step-00000009",
        "damaged-step-00000012",
        "step-00000003",
    ]


def test_another_experiment_is_refused(tmp_path: Path) -> None:
    identity = {"select": None, "seed": 3}
    facts = {"kind": "pretrain", "identity": identity}
    index = Metadata(state_dict_metadata={})
    checkpoint = Checkpoint(path=tmp_path, step=1, facts=facts, index=index)
    require_same(identity, checkpoint)
    for seed in (2, 4):
        with pytest.raises(ResumeError, match=rf"seed \(now {seed}, in the checkpoint 3\)"):
            require_same({**identity, "seed": seed}, checkpoint)


@pytest.mark.parametrize("name", ["records", "labels"])
def test_splits_that_were_drawn_again_have_a_cure_of_their_own(tmp_path: Path, name: str) -> None:
    identity = {"seed": 3, name: "0123456789abcdef"}
    facts = {"kind": "pretrain", "identity": identity}
    checkpoint = Checkpoint(
        path=tmp_path, step=1, facts=facts, index=Metadata(state_dict_metadata={})
    )
    changed = {**identity, name: "fedcba9876543210"}
    with pytest.raises(ResumeError, match="labels or splits of the store have changed since"):
        require_same(changed, checkpoint)
    with pytest.raises(ResumeError, match=r"use the settings of the run's config\.toml"):
        require_same({**changed, "seed": 4}, checkpoint)


def test_the_versions_of_a_run_are_kept_beside_its_settings(tmp_path: Path) -> None:
    config = load_config("vit_tiny")
    write_settings(tmp_path, config, {"microbatch": 4})
    text = (tmp_path / "versions.json").read_text()
    assert text.startswith('{\n "python": "3.')
    assert text.endswith("}\n")
    versions = json.loads(text)
    assert versions["microbatch"] == 4
    assert versions["packages"]["torch"] == version("torch")
    assert load_config(str(tmp_path / "config.toml")).model == config.model
