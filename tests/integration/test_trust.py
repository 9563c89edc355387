"""A run's folder is data: nothing in it is run, and what is not as it was written is noticed."""

import hashlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import loss_trace, weights

from ecgfast.config import load_config
from ecgfast.errors import EcgfastError, ResumeError
from ecgfast.runs.checkpoint_reader import newest
from ecgfast.runs.loading import load_model, load_run
from ecgfast.store.reader import open_store
from ecgfast.train.finetune import finetune
from ecgfast.train.pretrain import pretrain

NEWEST, BEFORE = "checkpoints/step-00000014", "checkpoints/step-00000007"
TENSORS, INDEX = "__0_0.distcp", ".metadata"


@pytest.fixture(scope="module")
def pretrained(store: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config(str(tiny), ["train.max_steps=14"])
    return pretrain(
        store, tmp_path_factory.mktemp("pretrained") / "run", preset=config, device="cpu"
    )


@pytest.fixture(scope="module")
def tuned(store: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tuned(store, tiny, tmp_path_factory.mktemp("tuned") / "run")


def _tuned(store: Path, tiny: Path, run: Path, *settings: str) -> Path:
    config = load_config(str(tiny), ["finetune.epochs=1", *settings])
    target = "ejection_fraction<40"
    return finetune(store, run, preset=config, init="random", target=target, device="cpu")


def _copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def _flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 64
    path.write_bytes(data)


def _reseal(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change facts and make their digest fit again, as an attacker would; by hand, not by us."""
    facts = json.loads(path.read_bytes())
    change(facts)
    facts.pop("digest", None)
    facts["digest"] = hashlib.sha256(json.dumps(facts, indent=1).encode()).hexdigest()
    path.write_bytes(json.dumps(facts, indent=1).encode())


class _Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self._mark}",)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_planted_pickle_is_not_run(sealed: bool, pretrained: Path, tmp_path: Path) -> None:
    run, mark = _copy(pretrained, tmp_path), tmp_path / "mark"
    shutil.rmtree(run / BEFORE)
    index = run / NEWEST / INDEX
    harm = pickle.dumps(_Planted(mark), protocol=4)
    assert harm[-1:] == b"."
    evil = harm[:-1] + b"0" + index.read_bytes()[2:]  # runs the code, forgets it, and continues
    index.write_bytes(evil)

    def forge(meta: dict[str, Any]) -> None:
        digest = hashlib.sha256(evil).hexdigest()
        meta["files"][INDEX] = {"bytes": len(evil), "sha256": digest}
        if not sealed:
            _as_format_2(meta)

    _reseal(run / NEWEST / "meta.json", forge)
    if not sealed:
        _without_digest(run / NEWEST / "meta.json")
    with pytest.raises(ResumeError, match=r"its index is none of ours \(it has the opcode POP\)"):
        load_model(run)
    assert not mark.exists()
    with pytest.raises(AttributeError):  # the test's own pickle would have run
        pickle.loads(evil)
    assert mark.exists()


def _as_format_2(meta: dict[str, Any]) -> None:
    """What the version before wrote: sizes, and a digest of the index alone."""
    meta["index_sha256"] = meta["files"][INDEX]["sha256"]
    meta["files"] = {name: entry["bytes"] for name, entry in meta["files"].items()}
    meta["format"] = 2
    del meta["run_files"]


def _without_digest(path: Path) -> None:
    facts = json.loads(path.read_bytes())
    del facts["digest"]
    path.write_bytes(json.dumps(facts, indent=1).encode())


@pytest.mark.parametrize("name", [TENSORS, INDEX, "meta.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_with_a_warning(
    name: str, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = _copy(pretrained, tmp_path)
    size = (run / NEWEST / name).stat().st_size
    _flip(run / NEWEST / name, size - 200)
    found = newest(run)
    assert found is not None
    assert found.step == 7
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said.startswith(f"checkpoint {run / NEWEST} cannot be read: ")
    assert said.endswith(f"; {run / BEFORE} is taken instead")
    _flip(run / BEFORE / name, (run / BEFORE / name).stat().st_size - 200)
    with pytest.raises(ResumeError, match="no other one is left"):
        newest(run)


def test_a_run_goes_on_from_the_checkpoint_before_in_the_same_bits(
    store: Path, tiny: Path, pretrained: Path, tmp_path: Path
) -> None:
    run, config = _copy(pretrained, tmp_path), load_config(str(tiny), ["train.max_steps=20"])
    _flip(run / NEWEST / TENSORS, -300)
    (run / "checkpoints" / "step-99999999").mkdir()
    (run / "checkpoints" / "writing-step-00000030").symlink_to(store)
    pretrain(store, run, preset=config, device="cpu", resume=True)
    whole = pretrain(store, tmp_path / "whole", preset=config, device="cpu")
    assert loss_trace(run) == loss_trace(whole)
    assert weights(run) == weights(whole)
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {
        *("step-00000014", "step-00000020"),
        *("damaged-step-00000014", "damaged-step-99999999"),
    }
    assert (store / "manifest.json").exists()


def test_a_checkpoint_of_the_version_before_is_resumed_with_a_warning(
    store: Path, tiny: Path, pretrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, config = _copy(pretrained, tmp_path), load_config(str(tiny), ["train.max_steps=20"])
    for name in (NEWEST, BEFORE):
        _reseal(run / name / "meta.json", _as_format_2)
        _without_digest(run / name / "meta.json")
    pretrain(store, run, preset=config, device="cpu", resume=True)
    said = [r.getMessage() for r in caplog.records if "earlier version" in r.getMessage()]
    assert len(said) == 1
    assert said[0].startswith(f"{run / NEWEST} was written by an earlier version and has no digest")
    whole = pretrain(store, tmp_path / "whole", preset=config, device="cpu")
    assert weights(run) == weights(whole)
    caplog.clear()
    load_model(run)  # its newest checkpoint has digests
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def test_a_later_format_is_an_error_and_no_damage(pretrained: Path, tmp_path: Path) -> None:
    run = _copy(pretrained, tmp_path)
    _reseal(run / NEWEST / "meta.json", lambda meta: meta.update(format=4))
    with pytest.raises(ResumeError, match=r"step-00000014 has format 4, this ecgfast reads 3"):
        newest(run)


@pytest.mark.parametrize("name", ["best.safetensors", "register.parquet"])
def test_a_flipped_bit_of_a_finished_run_is_noticed(name: str, tuned: Path, tmp_path: Path) -> None:
    run = _copy(tuned, tmp_path)
    _flip(run / name, -1200)
    with pytest.raises(ResumeError, match=f"{name} is not what was written: its digest is wrong"):
        load_model(run)
    (run / name).unlink()
    with pytest.raises(ResumeError, match=f"{name} cannot be read: No such file"):
        load_model(run)


def test_weights_of_another_run_of_the_same_shape_are_refused(
    store: Path, tiny: Path, tuned: Path, tmp_path: Path
) -> None:
    other = _tuned(store, tiny, tmp_path / "other", "train.seed=1")
    run = _copy(tuned, tmp_path)
    shutil.copy(other / "best.safetensors", run)
    assert load_model(other)[0].state_dict().keys() == load_model(tuned)[0].state_dict().keys()
    with pytest.raises(ResumeError, match=r"file of another run: best\.safetensors"):
        load_model(run)


@pytest.mark.parametrize("kind", ["pretrained", "tuned"])
def test_an_edited_config_is_refused_with_both_values(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run = _copy(request.getfixturevalue(kind), tmp_path)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(
        text.replace('normalise = "record_lead"', 'normalise = "none"')
    )
    with pytest.raises(ResumeError, match=r"data.normalise \(now 'none', in the .*'record_lead'\)"):
        load_model(run)
    (run / "config.toml").write_text(text.replace("log_every = 1", "log_every = 3"))
    assert load_model(run)[1].train.log_every == 1  # of no consequence: the run's own holds


@pytest.mark.parametrize("kind", ["pretrained", "tuned"])
def test_losses_are_those_that_the_run_logged(
    kind: str, store: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run = _copy(request.getfixturevalue(kind), tmp_path)
    assert load_run(run, open_store(store)).loss_curves()["training"]
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace('"step"', '"Step"', 1))
    with pytest.raises(ResumeError, match=r"metrics\.jsonl is not what was written"):
        load_run(run, open_store(store)).loss_curves()


def _without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda facts: facts.pop(key)


def _identity(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda facts: facts["identity"].update(
        {k.replace("__", "."): v for k, v in changes.items()}
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("identity"), "it has no identity"),
        (_without("run_files"), "it has no run_files"),
        (_identity(target=None), "its identity has no right target"),
        (_identity(model="rnn"), "its model is 'rnn'"),
        (_identity(model__encoder_width="wide"), "encoder_width must be an integer, got 'wide'"),
        (_identity(model__encoder_width=10**9), r"config\.toml is not what the run was trained"),
        (lambda facts: facts.update(thresholds=[1]), "its thresholds are no numbers"),
        (lambda facts: facts.update(kind="cluster"), "its kind is 'cluster'"),
        (lambda facts: facts["preprocessing"].update(cohort={}), "no right cohort statistics"),
        (lambda facts: facts["preprocessing"].update(normalise="none"), "disagree about normalise"),
    ],
)
def test_facts_with_a_right_digest_and_wrong_content_are_one_line(
    change: Callable[[dict[str, Any]], object], said: str, tuned: Path, tmp_path: Path
) -> None:
    run = _copy(tuned, tmp_path)
    _reseal(run / "result.json", change)
    with pytest.raises(ResumeError, match=said) as caught:
        load_model(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"", b"[1]", b"\xff", b"{}", b"null"])
@pytest.mark.parametrize("name", ["result.json", "meta.json", "config.toml"])
def test_damaged_facts_are_one_line(
    name: str, content: bytes, pretrained: Path, tuned: Path, tmp_path: Path
) -> None:
    run = _copy(pretrained if name == "meta.json" else tuned, tmp_path)
    shutil.rmtree(run / BEFORE, ignore_errors=True)
    path = run / NEWEST / name if name == "meta.json" else run / name
    path.write_bytes(content)
    with pytest.raises(ResumeError, match=name) as caught:
        load_model(run)
    assert "\n" not in str(caught.value)


def test_a_model_of_a_billion_is_never_built(tuned: Path, tmp_path: Path) -> None:
    run, wide = _copy(tuned, tmp_path), _identity(model__encoder_width=10**9)
    _reseal(run / "result.json", wide)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(
        text.replace("encoder_width = 16", "encoder_width = 1000000000")
    )
    with pytest.raises(
        ResumeError, match=r"describes a model of at least 96,000,000,960,000,000,000 bytes"
    ):
        load_model(run)


@pytest.mark.parametrize("name", ["result.json", "best.safetensors", "config.toml"])
def test_a_pipe_in_a_run_is_not_waited_for(name: str, tuned: Path, tmp_path: Path) -> None:
    run = _copy(tuned, tmp_path)
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(ResumeError, match=name):
        load_model(run)


def test_a_run_of_the_version_before_loads_with_a_warning(
    tuned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = _copy(tuned, tmp_path)
    facts = json.loads((run / "result.json").read_bytes())
    for key in ("format", "run_files", "digest"):
        del facts[key]
    (run / "result.json").write_text(json.dumps(facts, indent=1))
    old, new = load_model(run)[0].state_dict(), load_model(tuned)[0].state_dict()
    assert all(torch.equal(old[name], value) for name, value in new.items())
    assert [r.getMessage().split(" was written")[0] for r in caplog.records] == [
        f"{run}/result.json"
    ]


def test_lost_memory_is_one_line(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*args: object, **kwargs: object) -> int:
        raise MemoryError

    monkeypatch.setattr(os, "open", lost)
    with pytest.raises(EcgfastError, match="memory ran out while reading"):
        load_model(tuned)
