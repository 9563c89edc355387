"""What a finished cell must share with that of the plan, or else is done again."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from training_runs import make_store

from ecgfast.errors import ResumeError
from ecgfast.labels.commands import label_store
from ecgfast.reproduce.cells import PRODUCT, Cell, Outcome, cells_of, inputs_of, is_finished
from ecgfast.reproduce.plan import Finetuning, Model, Plan
from ecgfast.store.reader import open_store

PLAN = Plan(
    preset="cnn",
    settings=("finetune.batch_size=8",),
    sites=("1", "2"),
    model=(Model(name="CNN", init="random"),),
    finetuning=(Finetuning(name="T", models=("CNN",)),),
)


def end(cell: Cell, digest: str = "0", **others: object) -> None:
    """Leave behind what a cell does that has ended."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / PRODUCT[cell.kind]).write_text(digest)
    files, identity = {PRODUCT[cell.kind]: digest}, dict(cell.identity)
    found = Outcome(state="finished", files=files, inputs=inputs_of(cell), identity=identity)
    path = cell.folder.with_name(f"{cell.folder.name}.json")
    path.write_text(json.dumps(vars(replace(found, **others))))  # type: ignore[arg-type]  # of many types


def cells(tmp_path: Path) -> tuple[Cell, Cell]:
    """The fine-tuning, and its evaluation."""
    tuned, tested = cells_of(PLAN, open_store(tmp_path / "store"), tmp_path / "out")
    return tuned, tested


def relabel(tmp_path: Path, pattern: str, replacement: str) -> None:
    """Change a line of the labels that the store was made with, and join them again."""
    path = tmp_path / "labels.csv"
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
    assert count == 1
    path.write_text(text)
    label_store(tmp_path / "store", path, split="column")


@pytest.fixture
def done(tmp_path: Path) -> Path:
    make_store(tmp_path)
    for cell in cells(tmp_path):
        assert not is_finished(cell)
        end(cell)
        assert is_finished(cell)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"^r009,30,test", "r009,60,test"),
        (r"^r008,60,test", "r008,,test"),
        (r"^r008,60,test\s+r009,30,test", "r008,60,\nr009,30,"),
    ],
    ids=["a control now", "unknown now", "no longer tested"],
)
def test_an_evaluation_of_other_labels_is_done_again_and_its_training_is_not(
    done: Path, pattern: str, replacement: str
) -> None:
    relabel(done, pattern, replacement)
    tuned, tested = cells(done)
    assert is_finished(tuned)
    assert not is_finished(tested)


def test_an_evaluation_of_other_weights_is_done_again(done: Path) -> None:
    tuned, tested = cells(done)
    end(tuned, digest="1")
    assert is_finished(tuned)
    assert not is_finished(tested)


def test_a_training_of_other_labels_is_refused(done: Path) -> None:
    relabel(done, r"^r000,30,train", "r000,60,train")
    tuned, _ = cells(done)
    with pytest.raises(ResumeError, match=r"^.*CNN.T was made by another plan: .*labels"):
        is_finished(tuned)


def test_what_failed_or_was_moved_away_is_not_finished(done: Path) -> None:
    tuned, _ = cells(done)
    end(tuned, state="failed")
    assert not is_finished(tuned)
    end(tuned)
    (tuned.folder / PRODUCT["finetune"]).unlink()
    assert not is_finished(tuned)
