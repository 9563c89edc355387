"""What the files of a run say of its initial weights."""

from pathlib import Path

import pytest

from ecgfast.train.initial import initial_name


@pytest.mark.parametrize(
    ("init", "name"),
    [
        ("random", "random"),
        ("imagenet-mae", "imagenet-mae"),
        ("/home/jane.doe/runs/pre", "pre"),
        ("runs/pre/", "pre"),
        ("weights.safetensors", "weights.safetensors"),
        ("runs/random", "./random"),
    ],
)
def test_of_a_path_the_last_name_alone(init: str, name: str) -> None:
    assert initial_name(init) == name


def test_a_folder_that_is_named_by_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pre").mkdir()
    monkeypatch.chdir(tmp_path / "pre")
    assert initial_name(".") == "pre"
