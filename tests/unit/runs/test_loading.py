"""Finished runs, read back: the same weights, or what of their facts is wrong."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from toy import classifier_run, facts_of, pretraining_run, toy_config, write_result

from ecgfast.errors import ResumeError
from ecgfast.model.build import build_classifier, build_model
from ecgfast.runs.digests import entries
from ecgfast.runs.loading import load_model
from ecgfast.train.run_folder import write_settings

LEADS = [0.5] * 12
DEEP = ("model.encoder_depth=2",)
EARLIER = "written by an earlier version"


@pytest.fixture(autouse=True)
def _said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)


def test_weights_come_back_ready_to_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = toy_config()
    runs = {
        classifier_run(tmp_path / "fine", config): build_classifier(config),
        pretraining_run(tmp_path / "pre", config): build_model(config),
    }
    for run, expected in runs.items():
        model, found, facts = load_model(run)
        assert found == config
        assert facts.identity["store"] == "0123"
        assert not model.training
        state = expected.state_dict()
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert EARLIER not in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"thresholds": {"youden": 0.5, "sensitivity_90": None, "whole": 1}},
        {"preprocessing.cohort": {"mean_uv": LEADS, "std_uv": [1] * 12}},
        {"preprocessing.store": {"window": "all", "short": "pad", "more": 1}},
        {"identity.fold": 3},
        {"identity.select": "site=1"},
    ],
)
def test_facts_of_every_kind_of_run_are_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert load_model(classifier_run(tmp_path, toy_config(), changed(changes)))


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    facts = deepcopy(facts_of(toy_config()))
    for path, value in changes.items():
        *parents, name = path.split(".", 1) if path != "identity" else [path]
        part = facts
        for parent in parents:
            part = part[parent]
        part[name] = value
    return facts


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("identity", None, "it has no identity or no preprocessing"),
        ("preprocessing", [], "it has no identity or no preprocessing"),
        ("kind", "evaluate", "its kind is 'evaluate'"),
        ("identity.store", None, "its identity has no right store;"),
        ("identity.select", 1, "its identity has no right select;"),
        ("identity.target", 3, "its identity has no right target;"),
        ("identity.fold", "2", "its identity has no right fold;"),
        ("identity.model", "rnn", "its model is 'rnn'"),
        ("identity.optim.base_lr", "x", "result.json is damaged: "),
        ("preprocessing.store", None, "does not say how the store was made"),
        ("preprocessing.store", {"window": "all"}, "does not say how the store was made"),
        ("preprocessing.normalise", "a", "disagree about normalise"),
        ("preprocessing.normalise", "z", "disagree about normalise"),
        ("preprocessing.leads", ["I"], "disagree about leads"),
        ("preprocessing.cohort", 5, "no right cohort statistics"),
        ("preprocessing.cohort", {"mean_uv": LEADS}, "no right cohort statistics"),
        (
            "preprocessing.cohort",
            {"mean_uv": LEADS, "std_uv": LEADS, "more": LEADS},
            "no right cohort statistics",
        ),
        *(
            ("preprocessing.cohort", {"mean_uv": LEADS, "std_uv": wrong}, "no right cohort")
            for wrong in (LEADS[1:], [*LEADS, 0.5], ["1"] * 12, [*LEADS[1:], True], "x" * 12)
        ),
        ("thresholds", [], "its thresholds are no numbers"),
        ("thresholds", {"youden": "0.5"}, "its thresholds are no numbers"),
        ("thresholds", {"youden": True}, "its thresholds are no numbers"),
        ("run_files", None, "it has no run_files"),
        ("run_files", {}, "the size and digest of best.safetensors are missing"),
    ],
)
def test_facts_that_are_wrong_are_named(
    tmp_path: Path, path: str, value: object, message: str
) -> None:
    with pytest.raises(ResumeError, match=message):
        load_model(classifier_run(tmp_path, toy_config(), changed({path: value})))


@pytest.mark.parametrize("leads", [5, "I", [], ["II", "I"], ["I", "V7"], [["I"]], {"I": 1}])
def test_leads_that_are_none_are_named(tmp_path: Path, leads: object) -> None:
    facts = changed({"preprocessing.leads": leads, "identity.data.leads": leads})
    with pytest.raises(ResumeError, match="its preprocessing has no right leads"):
        load_model(classifier_run(tmp_path, toy_config(), facts))


def test_preprocessing_must_say_whether_there_is_a_cohort(tmp_path: Path) -> None:
    facts = changed({})
    del facts["preprocessing"]["cohort"]
    with pytest.raises(ResumeError, match="no right cohort statistics"):
        load_model(classifier_run(tmp_path, toy_config(), facts))


def test_weights_that_are_not_the_runs_are_refused(tmp_path: Path) -> None:
    config = toy_config()
    run = classifier_run(tmp_path, config)
    weights = run / "best.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data + b"x")
    with pytest.raises(ResumeError, match=r"holds a file of another run: best\.safetensors has"):
        load_model(run)
    save_file({"other": torch.zeros(10_000)}, weights)
    write_result(run, facts_of(config))
    with pytest.raises(ResumeError, match="do not fit the model"):
        load_model(run)


def test_a_register_that_the_run_wrote_must_be_as_it_was(tmp_path: Path) -> None:
    run = classifier_run(tmp_path, toy_config())
    (run / "register.parquet").write_bytes(b"of nobody")  # the run says nothing of it
    assert load_model(run)
    files = entries(run, ("best.safetensors", "register.parquet"))
    write_result(run, changed({"run_files": files}))
    assert load_model(run)
    (run / "register.parquet").write_bytes(b"of others")
    with pytest.raises(ResumeError, match=r"register\.parquet is not what was written"):
        load_model(run)


def test_a_run_of_an_earlier_version_is_read_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = classifier_run(tmp_path, toy_config())
    (run / "result.json").write_text(json.dumps(changed({"format": 2})))
    assert load_model(run)
    assert caplog.text.count(EARLIER) == 1


def test_a_run_of_before_a_setting_is_read_with_its_default(tmp_path: Path) -> None:
    facts = changed({})
    del facts["identity"]["train.deterministic"]
    _, config, _ = load_model(classifier_run(tmp_path, toy_config(), facts))
    assert config == toy_config()


def test_a_run_of_a_later_version_is_not_called_damaged(tmp_path: Path) -> None:
    run = classifier_run(tmp_path, toy_config(), changed({"identity.train.later": 1}))
    with pytest.raises(ResumeError, match=r"this version of ecgfast lacks, got train\.later; use"):
        load_model(run)


def test_a_classifier_of_a_preset_of_another_kind_is_what_it_says(tmp_path: Path) -> None:
    """Earlier versions took the architecture from --model, and left model.kind as it was."""
    run = classifier_run(tmp_path, toy_config(), changed({"identity.model.kind": "cnn"}))
    model, config, _ = load_model(run)
    assert config.model.kind == "vit"
    assert "encoder.blocks.0.attn.qkv.weight" in model.state_dict()


def test_config_toml_shows_what_the_run_was_trained_with(tmp_path: Path) -> None:
    run = classifier_run(tmp_path, toy_config())
    path = run / "config.toml"
    text = path.read_text().replace("base_lr = 0.03", "base_lr = 0.04")  # of pretraining alone
    path.write_text(text)
    assert load_model(run)
    path.write_text(text.replace("patience = 5", "patience = 6"))
    with pytest.raises(ResumeError, match=r"finetune\.patience \(now 6, in the result\.json 5\)"):
        load_model(run)
    path.write_text("no [toml")
    with pytest.raises(ResumeError, match=r"config\.toml is damaged"):
        load_model(run)
    path.unlink()
    with pytest.raises(ResumeError, match="is not the folder of a run"):
        load_model(run)


@pytest.mark.parametrize("kind", [None, "finetune", "zero-shot"])
def test_a_run_that_did_not_finish_has_nothing_to_load(tmp_path: Path, kind: str | None) -> None:
    config = toy_config()
    if kind is None:
        classifier_run(tmp_path, config)
        (tmp_path / "result.json").unlink()
    else:
        pretraining_run(tmp_path, config, {**facts_of(config), "kind": kind})
    with pytest.raises(ResumeError, match="has nothing to load"):
        load_model(tmp_path)


# An encoder of depth 2, width 16 and 12 patches has at least (12 x 2 x 16 + 12) x 16 weights, the
# CNN 128 x (128 x 32000 / 256 + 12).
@pytest.mark.parametrize(
    ("model", "settings", "least"),
    [("vit", DEEP, "25,344"), ("cnn", ("model.num_timesteps=32000",), "8,198,144")],
)
def test_a_model_that_the_weights_cannot_hold_is_never_built(
    tmp_path: Path, model: str, settings: tuple[str, ...], least: str
) -> None:
    config = toy_config(*settings)
    run = classifier_run(tmp_path, toy_config())
    write_settings(run, config, {})
    facts = facts_of(config)
    facts["identity"]["model"] = model
    num_bytes = int(least.replace(",", ""))
    for size, message in (
        (num_bytes - 1, f"at least {least} bytes, its weights have {num_bytes - 1:,};"),
        (num_bytes, r"best\.safetensors cannot be read"),
    ):
        (run / "best.safetensors").write_bytes(bytes(size))
        write_result(run, facts)
        with pytest.raises(ResumeError, match=message):
            load_model(run)


def test_a_checkpoint_that_cannot_hold_its_model_is_refused(tmp_path: Path) -> None:
    """Of depth 1, in the name of depths 6 and 7: (12 x 13 x 16 + 2 x 12) x 16 weights at least."""
    config = toy_config("model.encoder_depth=6", "model.decoder_depth=7")
    run = pretraining_run(tmp_path, toy_config(), facts_of(config, "pretrain"))
    write_settings(run, config, {})
    with pytest.raises(ResumeError, match="describes a model of at least 161,280 bytes"):
        load_model(run)
