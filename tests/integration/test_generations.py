"""A run on a store that grows: it goes on with the records that it began with, bit for bit."""

import shutil
from pathlib import Path

import pytest
from recordings import ecg_like, snapshot, write_wfdb
from training_runs import loss_trace, weights

from ecgfast.cli import main
from ecgfast.config import Config, load_config
from ecgfast.convert import convert
from ecgfast.errors import ResumeError
from ecgfast.labels.consent import erase
from ecgfast.train.finetune import finetune
from ecgfast.train.pretrain import pretrain

SETTINGS = ("train.val_fraction=0.1", "train.max_steps=12")


@pytest.fixture(scope="module")
def grown(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store with 20 records more, one of a patient whom it knows."""
    folder = tmp_path_factory.mktemp("grown")
    for path in (f"{store}.key", f"{store}.sources.csv"):
        shutil.copy(path, folder)
    shutil.copytree(store, folder / "store")
    for number, signal in enumerate(ecg_like(20, seed=3)):
        patient = "1/P4" if number == 7 else f"N{number}"
        write_wfdb(folder / f"new/n{number}", signal, comments=[f"patient: {patient}"])
    convert([folder / "new"], folder / "store", append=True, workers=1)
    return folder / "store"


def config(tiny: Path, *settings: str) -> Config:
    return load_config(str(tiny), [*SETTINGS, *settings])


def test_a_pretraining_is_resumed_in_the_same_bits(
    store: Path, grown: Path, tiny: Path, tmp_path: Path
) -> None:
    whole = pretrain(store, tmp_path / "whole", preset=config(tiny), device="cpu")
    run = tmp_path / "run"
    pretrain(store, run, preset=config(tiny, "train.max_steps=5"), device="cpu")
    pretrain(grown, run, preset=config(tiny), device="cpu", resume=True)
    assert loss_trace(run) == loss_trace(whole)
    assert weights(run) == weights(whole)
    before = pretrain(Path(f"{grown}@1"), tmp_path / "before", preset=config(tiny), device="cpu")
    assert weights(before) == weights(whole)
    now = pretrain(grown, tmp_path / "now", preset=config(tiny), device="cpu")
    assert weights(now) != weights(whole)


def test_a_fine_tuning_is_resumed_too(store: Path, grown: Path, tiny: Path, tmp_path: Path) -> None:
    few = load_config(str(tiny), ["finetune.epochs=1", "finetune.learning_rates=[1e-3]"])
    run = finetune(
        store,
        tmp_path / "run",
        preset=few,
        init="random",
        target="ejection_fraction<40",
        device="cpu",
    )
    best = (run / "best.safetensors").read_bytes()
    assert (
        finetune(
            grown,
            run,
            preset=few,
            init="random",
            target="ejection_fraction<40",
            device="cpu",
            resume=True,
        )
        == run
    )
    assert (run / "best.safetensors").read_bytes() == best


def test_after_an_erasure_it_cannot_be_resumed(
    store: Path, grown: Path, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pretrain(store, run, preset=config(tiny, "train.max_steps=2"), device="cpu")
    for path in (f"{grown}.key", f"{grown}.sources.csv"):
        shutil.copy(path, tmp_path)
    shutil.copytree(grown, tmp_path / "store")
    (tmp_path / "ids.txt").write_text("N3\n")
    erase(tmp_path / "store", patients=tmp_path / "ids.txt")
    with pytest.raises(ResumeError, match="records that were erased or replaced since"):
        pretrain(tmp_path / "store", run, preset=config(tiny), device="cpu", resume=True)


def test_info_names_the_generation(grown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(grown)]) == 0
    assert ", generation 2 (store@1 is the oldest)" in capsys.readouterr().out
    assert main(["info", f"{grown}@1"]) == 0
    assert "records   64, each" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [["label", "{}@1", "labels.csv"], ["splits", "{}@2", "--draw"], ["verify", "{}@1"]]
)
def test_one_generation_alone_is_neither_changed_nor_checked(
    command: list[str], grown: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(grown.parent)
    assert main([each.format(grown) for each in command]) == 2
    captured = capsys.readouterr()
    assert f"give {grown}\n" in captured.err
    assert captured.out == ""  # no preview of what cannot be done
    assert snapshot(grown.parent) == before
