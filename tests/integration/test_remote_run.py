"""Finished runs behind an address: copied once, then checked as those of a folder."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from recordings import snapshot

import ecgfast
from ecgfast.config import Config
from ecgfast.errors import ConfigError, CorruptStoreError, ResumeError
from ecgfast.evaluate.report import evaluate
from ecgfast.labels.commands import label_store
from ecgfast.runs.located import located
from ecgfast.store.objects import Objects
from ecgfast.train.finetune import finetune
from ecgfast.train.pretrain import pretrain

pytest.importorskip("obstore", reason="obstore is not installed")
TARGET = "ejection_fraction<40"
SHORT = ["finetune.epochs=1", "finetune.learning_rates=[1e-2]"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/ecgfast/runs"


@pytest.fixture
def bucket(pretrained: Path, tmp_path: Path) -> Path:
    """A folder with a pretraining run, behind an address."""
    shutil.copytree(pretrained, tmp_path / "bucket/mae")
    return tmp_path / "bucket"


def test_a_run_is_copied_once_with_its_newest_checkpoint(bucket: Path, cache: Path) -> None:
    run = bucket / "mae"
    (newest,) = (run / "checkpoints").iterdir()
    shutil.copytree(newest, run / "checkpoints/step-00000001")
    copy = located(run.as_uri())
    assert copy.name == "mae"
    assert copy.is_relative_to(cache)
    held = snapshot(run)
    assert snapshot(copy) == {n: held[n] for n in held if "step-00000001" not in n}
    before = {path: path.stat().st_ino for path in copy.rglob("*")}
    assert located(Path(run.as_uri())) == copy
    assert {path: path.stat().st_ino for path in copy.rglob("*")} == before
    (copy / "config.toml").unlink()  # of a copy that was interrupted
    assert snapshot(located(run.as_uri()))["config.toml"] == held["config.toml"]
    os.utime(run / "config.toml", (1, 1))  # the run was written again
    assert located(run.as_uri()) not in (copy, run)


def test_commands_take_runs_behind_an_address(
    bucket: Path, store: Path, config: Config, cache: Path, tmp_path: Path
) -> None:
    url = (bucket / "mae").as_uri()
    settings = {"preset": config, "settings": SHORT, "target": TARGET, "device": "cpu"}
    finetune(store, bucket / "vit", init=url, **settings)
    finetune(store, tmp_path / "local", init=str(bucket / "mae"), **settings)
    weights = [path / "best.safetensors" for path in (bucket / "vit", tmp_path / "local")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    ours, theirs = (
        ecgfast.load_model(each) for each in (bucket / "vit", (bucket / "vit").as_uri())
    )
    signal = np.random.default_rng(0).normal(0, 100, (12, 5000))
    np.testing.assert_array_equal(ours.predict(signal), theirs.predict(signal))
    features = [ecgfast.embed(each, store, device="cpu") for each in (str(bucket / "mae"), url)]
    np.testing.assert_array_equal(features[0].values, features[1].values)
    evaluate([Path((bucket / "vit").as_uri())], store, tmp_path / "report", device="cpu")
    assert (tmp_path / "report/metrics.json").is_file()
    file = located(weights[0].as_uri())  # as --init takes weights of others
    assert (file.name, file.read_bytes()) == (weights[0].name, weights[0].read_bytes())


def test_a_damaged_run_is_refused_by_its_digests(bucket: Path, cache: Path) -> None:
    (data,) = (bucket / "mae/checkpoints").rglob("*.distcp")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(ResumeError, match="digest is wrong"):
        ecgfast.load_model((bucket / "mae").as_uri())


def test_an_object_that_ends_too_early_twice(
    bucket: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, asked = Objects.parts, [0]

    def torn(self: Objects, name: str) -> Iterator[memoryview]:
        whole = b"".join(parts(self, name))
        asked[0] += name == "config.toml"
        yield memoryview(whole[:-1] if name == "config.toml" and asked[0] < 4 else whole)

    monkeypatch.setattr(Objects, "parts", torn)
    with pytest.raises(CorruptStoreError, match=r"config\.toml has other bytes than its listing"):
        located((bucket / "mae").as_uri())
    copy = located((bucket / "mae").as_uri())  # the third is torn, the fourth is whole
    assert snapshot(copy)["config.toml"] == (bucket / "mae/config.toml").read_bytes()


def test_what_is_no_run(bucket: Path, cache: Path) -> None:
    (bucket / "notes").mkdir()
    (bucket / "notes/a.txt").touch()
    for name in ("notes", "nothing"):
        with pytest.raises(ConfigError, match=f"{name} is neither a run nor a file of weights"):
            located((bucket / name).as_uri())
    assert not cache.exists()


def test_what_is_written_on_this_machine_only(store: Path, config: Config) -> None:
    with pytest.raises(ConfigError, match=r"--out must be on this machine, got s3://b/run; name a"):
        pretrain(store, Path("s3://b/run"), preset=config)
    with pytest.raises(ConfigError, match=r"s3://b/store can be changed in a folder only; copy it"):
        label_store("s3://b/store", "echo.csv")
