"""How the runs of a report are called."""

from pathlib import Path

import pytest
from torch import nn
from toy import toy_meta

from ecgfast.config import load_config
from ecgfast.errors import ConfigError
from ecgfast.runs.loading import LoadedRun, name_runs


def run(name: str, folder: str, **identity: object) -> LoadedRun:
    return LoadedRun(
        name=name,
        path=Path("runs") / folder,
        model=nn.Identity,
        config=load_config("demo"),
        meta=toy_meta(**identity),
        register=None,
    )


def test_runs_of_one_kind_get_their_folders_name() -> None:
    runs = [run("CNN", "a"), run("ViT, pretrained", "b"), run("CNN", "c"), run("CNN", "d")]
    names = [named.name for named in name_runs(runs)]
    assert names == ["CNN (a)", "ViT, pretrained", "CNN (c)", "CNN (d)"]


def test_runs_whose_folders_have_one_name_get_their_paths() -> None:
    runs = [run("CNN", "x/best"), run("CNN", "y/best"), run("ViT, pretrained", "z/best")]
    names = [named.name for named in name_runs(runs)]
    assert names == ["CNN (runs/x/best)", "CNN (runs/y/best)", "ViT, pretrained"]


def test_a_run_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"runs must differ, got runs/.*a twice; give it once"):
        name_runs([run("CNN", "a"), run("CNN", "b/../a")])


def test_what_a_run_says_of_itself() -> None:
    tuned = run("CNN", "a", target="ejection_fraction<40", init="/x/y/model.safetensors")
    assert (tuned.meta.target, tuned.meta.init) == ("ejection_fraction<40", "model.safetensors")
    pretrained = run("Pretraining", "b")
    assert (pretrained.meta.target, pretrained.meta.init, pretrained.meta.select) == ("", "", None)
