"""Pretraining on several stores: as on one that has all their records."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from recordings import convert_quietly, ecg_like, write_wfdb
from training_runs import loss_trace, weights

from ecgfast.cli import main
from ecgfast.config import load_config
from ecgfast.data.loader import build_loader
from ecgfast.errors import ConfigError
from ecgfast.store.reader import open_store
from ecgfast.store.several import open_stores
from ecgfast.train.pretrain import pretrain

SIGNALS = ecg_like(24, seed=9)


def write(folder: Path, numbers: range) -> Path:
    for number in numbers:
        comments = [f"patient: p{number}", f"site: {number % 2}"]
        write_wfdb(folder / f"r{number:02d}", SIGNALS[number], comments=comments)
    return folder


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A and B with half of the records each, and `whole` with all of them, under one key."""
    root = tmp_path_factory.mktemp("several")
    parts = {"A": range(13), "B": range(13, 24), "whole": range(24)}
    for name, numbers in parts.items():
        convert_quietly([write(root / f"in{name}", numbers)], root / name)
    return [root / name for name in parts]


@pytest.mark.parametrize("engine", ["cpu", "resident"])
def test_batches_are_those_of_one_store(stores: list[Path], engine: str) -> None:
    both, whole = open_stores(stores[:2]), open_store(stores[2])
    options = {"batch_size": 5, "engine": engine, "seed": 3, "drop_last": False}
    pairs = zip(build_loader(both, **options), build_loader(whole, **options), strict=True)
    for ours, theirs in pairs:
        assert ours.patches.equal(theirs.patches)
        assert ours.record_index.equal(theirs.record_index)


def test_it_reads_as_one_store(stores: list[Path]) -> None:
    both = pickle.loads(pickle.dumps(open_stores(stores[:2])))
    order = np.array([23, 0, 12, 13, 0])
    np.testing.assert_array_equal(both.read(order), SIGNALS[order])
    assert both.records["store"].to_pylist() == ["A"] * 13 + ["B"] * 11
    np.testing.assert_array_equal(both.lead_std, open_store(stores[2]).lead_std)
    both.check_digests()


def test_training_is_that_on_one_store(stores: list[Path], tiny: Path, tmp_path: Path) -> None:
    config = load_config(str(tiny), ["train.max_steps=3"])
    runs = [tmp_path / name for name in ("both", "whole")]
    pretrain(stores[:2], runs[0], preset=config, include_test=True, device="cpu")
    pretrain(stores[2], runs[1], preset=config, include_test=True, device="cpu")
    assert loss_trace(runs[0]) == loss_trace(runs[1])
    assert weights(runs[0]) == weights(runs[1])


def test_it_is_resumed_after_one_of_them_has_grown(
    stores: list[Path], tiny: Path, tmp_path: Path
) -> None:
    for name in ("A", "A.key", "A.sources.csv", "B", "B.key"):
        source = stores[0].with_name(name)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    both, run = [tmp_path / "A", tmp_path / "B"], tmp_path / "run"
    config = load_config(str(tiny), ["train.max_steps=4"])
    whole = pretrain(both, tmp_path / "unbroken", preset=config, device="cpu")
    pretrain(both, run, preset=load_config(str(tiny), ["train.max_steps=2"]), device="cpu")
    write_wfdb(tmp_path / "new/n", SIGNALS[0][:, ::-1])
    convert_quietly([tmp_path / "new"], tmp_path / "A", append=True)
    pretrain(both, run, preset=config, resume=True, device="cpu")
    assert weights(run) == weights(whole)


def test_what_does_not_fit_is_named(stores: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="13 records are in two of the stores"):
        open_stores([stores[0], stores[2]])
    convert_quietly([write(tmp_path / "in", range(13, 16))], tmp_path / "C", codec="zstd")
    with pytest.raises(ConfigError, match="differ in codec, got ecgpack and zstd"):
        open_stores([stores[0], tmp_path / "C"])
    (tmp_path / "D.key").write_text("12" * 32)
    (tmp_path / "D.key").chmod(0o600)
    convert_quietly([tmp_path / "in"], tmp_path / "D")
    with pytest.raises(ConfigError, match="say --assume-distinct-patients"):
        open_stores([stores[0], tmp_path / "D"])
    assert len(open_stores([stores[0], tmp_path / "D"], distinct_patients=True)) == 16


def test_a_copy_in_another_store_is_one_patient(stores: list[Path], tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/copy", SIGNALS[4], comments=["patient: another"])
    convert_quietly([tmp_path / "in"], tmp_path / "E")
    records = open_stores([stores[0], tmp_path / "E"]).records
    assert records["duplicate_of"].to_pylist()[13] == records["record_id"][4].as_py()


def test_the_command_takes_several(stores: list[Path], tiny: Path, tmp_path: Path) -> None:
    words = ["pretrain", *map(str, stores[:2]), "--out", str(tmp_path / "run"), "--preset"]
    words += [str(tiny), "--set", "train.max_steps=1", "--device", "cpu", "--select", "store=A"]
    assert main(words) == 0
