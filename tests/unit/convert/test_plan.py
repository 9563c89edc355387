"""The plan of an interrupted convert: what damage to it does."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from recordings import convert_quietly, ecg_like, write_wfdb

from ecgfast.convert import run
from ecgfast.errors import ConfigError, ResumeError


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The work folder of a convert that stopped before its first record."""
    for number, signal in enumerate(ecg_like(3, seed=0)):
        write_wfdb(tmp_path / f"in/r{number}", signal)

    def stop(*_: object, **__: object) -> None:
        raise ConfigError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(run, "run_units", stop)
        with pytest.raises(ConfigError, match="stopped here"):
            convert_quietly([tmp_path / "in"], tmp_path / "store")
    return tmp_path / "store.convert"


def test_an_undamaged_plan_is_resumed(begun: Path) -> None:
    summary = convert_quietly([begun.with_name("in")], begun.with_name("store"))
    assert summary.num_converted == 3


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def changed(old: bytes, new: bytes) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        assert path.read_bytes().count(old) == 1
        path.write_bytes(path.read_bytes().replace(old, new))

    return change


def made(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        written(b""),
        written(b"\xff"),
        written(b"[5]"),
        written(b"[" * 100_000),
        written(b'{"layout": 8}'),
        changed(b'"num_inputs": 3', b'"num_inputs": "3"'),
        changed(b'"num_inputs": 3', b'"num_inputs": 4'),
        changed(b'"num_inputs": 3', b'"num_inputs": true'),
        changed(b'"num_files": 6', b'"num_files": null'),
        changed(b'"passed_over": {}', b'"passed_over": []'),
        changed(b'"spec": {', b'"spec": 7, "x": {'),
        made(os.mkfifo),
        made(os.mkdir),
    ],
)
def test_a_damaged_plan_is_one_error(begun: Path, damage: Callable[[Path], object]) -> None:
    damage(begun / "plan.json")
    cure = f"remove {begun.with_name('store')} and {begun} to begin again"
    with pytest.raises(ResumeError, match="is damaged: ") as error:
        convert_quietly([begun.with_name("in")], begun.with_name("store"))
    assert str(error.value).endswith(cure)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:2])),
        lambda path: path.write_bytes(b"x" + path.read_bytes()),
        lambda path: path.write_bytes(b"7\n" + path.read_bytes().split(b"\n", 1)[1]),
    ],
)
def test_a_damaged_list_of_inputs_is_one_error(
    begun: Path, damage: Callable[[Path], object]
) -> None:
    damage(begun / "inputs.jsonl")
    with pytest.raises(ResumeError, match=r"inputs\.jsonl .*is damaged: .*; remove "):
        convert_quietly([begun.with_name("in")], begun.with_name("store"))
