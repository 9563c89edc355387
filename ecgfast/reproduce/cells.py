"""The cells of a plan: each pretraining, fine-tuning and evaluation, and what became of it.

A cell is a command of ecgfast and the folder that it fills. What became of it stands beside that
folder, in a file that is written last.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ecgfast.config import Config
from ecgfast.data.loader import selected_rows
from ecgfast.errors import ConfigError, ResumeError
from ecgfast.evaluate.cohort import text_column
from ecgfast.labels.selection import digest_of, labelled, target_labels
from ecgfast.reproduce.plan import Finetuning, Model, Plan, Pretraining
from ecgfast.runs.digests import read_small
from ecgfast.runs.loading import RESULT
from ecgfast.runs.meta import contradictions, flat
from ecgfast.store.reader import StoreReader
from ecgfast.train.dataset import pretraining_rows, split_heldout
from ecgfast.train.initial import initial_name

Kind = Literal["pretrain", "finetune", "evaluate"]
State = Literal["finished", "failed", "no weights", "busy"]

PRODUCT: dict[Kind, str] = {
    "pretrain": "model.safetensors",
    "finetune": RESULT,
    "evaluate": "scores.parquet",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A unit of work.

    Attributes:
        kind: command of ecgfast that does it.
        folder: that it fills: OUT/KIND/NAME.
        words: of the command, without the store, which comes last.
        identity: what a finished cell must share with this one.
        needs: cells whose results it reads.
        column: of the table: model and set; empty for a pretraining.
        imagenet: the settings, where it starts from ImageNet weights.
    """

    kind: Kind
    folder: Path
    words: tuple[str, ...]
    identity: Mapping[str, Any] = field(default_factory=dict)
    needs: "tuple[Cell, ...]" = ()
    column: str = ""
    imagenet: Config | None = None

    @property
    def name(self) -> str:
        """Such as finetune/CNN.Train1."""
        return f"{self.kind}/{self.folder.name}"

    @property
    def log(self) -> Path:
        """What its command wrote to the console."""
        return beside_cell(self.folder, "log")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a cell.

    Attributes:
        state: "busy" while another process has it.
        reason: of what is not finished.
        seconds: of all attempts that ended.
        files: size and digest of what it made, as `digests.entries` gives them.
        inputs: the same of the cells that it read, by their names.
        identity: of the cell.
    """

    state: State
    reason: str = ""
    seconds: float = 0.0
    files: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)


def cells_of(plan: Plan, store: StoreReader, out: Path) -> list[Cell]:
    """Every cell of a plan, each behind those that it needs.

    Args:
        plan: checked.
        store: that it is for.
        out: folder of the experiment.
    Raises:
        ConfigError: a set is smaller than a batch, which its training would refuse hours later.
    """
    pretrained = {entry.name: _pretraining(plan, entry, store, out) for entry in plan.pretraining}
    cells = list(pretrained.values())
    is_case, is_known = target_labels(store.records, plan.target)
    in_test = text_column(store.records, "split") == "test"
    tested = {"store": store.identity, "labels": digest_of(is_case, is_known, in_test)}
    for training in plan.finetuning:
        found = labelled(store.records, selected_rows(store, training.select), plan.target)
        taught = {
            "target": plan.target,
            "select": training.select,
            "store": store.identity,
            "labels": found.digest,
        }
        for name in training.models:
            model = plan.model_named(name)
            batch_size = plan.of_finetuning(model).config().finetune.batch_size
            what = f"model {name!r} on finetuning {training.name!r}"
            _fill_a_batch(what, len(found.train), batch_size, "finetune.batch_size")
            for repeat in range(plan.seeds):
                first = pretrained.get(model.init)
                finetune = _finetuning(plan, training, model, repeat, taught, first, out)
                cells += [finetune, _evaluation(finetune, tested, out)]
    return cells


def _pretraining(plan: Plan, entry: Pretraining, store: StoreReader, out: Path) -> Cell:
    folder, chosen = out / "pretrain" / entry.name, plan.of_pretraining(entry)
    rows = pretraining_rows(store, entry.select, include_test=entry.include_test)
    train = chosen.config().train
    read, _ = split_heldout(store, rows, fraction=train.val_fraction, seed=train.seed)
    _fill_a_batch(f"pretraining {entry.name!r}", len(read), train.batch_size, "train.batch_size")
    return Cell(
        kind="pretrain",
        folder=folder,
        words=(
            *("pretrain", "--out", str(folder), "--resume"),
            *chosen.options(),
            *_selecting(entry.select),
            *(("--include-test",) if entry.include_test else ()),
        ),
        identity={
            **flat(chosen.config()),
            "select": entry.select,
            "store": store.identity,
            "records": digest_of(rows),
        },
    )


def _fill_a_batch(what: str, num_records: int, batch_size: int, setting: str) -> None:
    if num_records < batch_size:
        raise ConfigError(
            f"plan: {what}: {num_records} records to learn from, but one global batch has "
            f"{batch_size}; widen select, or lower {setting} in settings"
        )


def _finetuning(
    plan: Plan,
    training: Finetuning,
    model: Model,
    repeat: int,
    taught: Mapping[str, str | None],
    pretrained: Cell | None,
    out: Path,
) -> Cell:
    chosen = plan.of_finetuning(model, repeat)
    config = chosen.config()
    init = model.init if pretrained is None else str(pretrained.folder)
    folder = out / "finetune" / f"{model.name}.{training.name}{f'.seed{repeat}' if repeat else ''}"
    return Cell(
        kind="finetune",
        folder=folder,
        words=(
            *("finetune", "--out", str(folder), "--resume"),
            *("--init", init, "--target", plan.target),
            *chosen.options(),
            *_selecting(training.select),
        ),
        identity={**flat(config), **taught, "init": initial_name(init)},
        needs=() if pretrained is None else (pretrained,),
        column=f"{model.name}, {training.name}{f', seed {repeat}' if repeat else ''}",
        imagenet=config if model.init == "imagenet-mae" else None,
    )


def _evaluation(finetune: Cell, tested: Mapping[str, str], out: Path) -> Cell:
    folder = out / "evaluate" / finetune.folder.name
    return Cell(
        kind="evaluate",
        folder=folder,
        words=("evaluate", "--out", str(folder), str(finetune.folder)),
        identity=tested,
        needs=(finetune,),
        column=finetune.column,
    )


def _selecting(select: str | None) -> tuple[str, ...]:
    return () if select is None else ("--select", select)


def beside_cell(folder: Path, suffix: str) -> Path:
    """Path of what is kept on a cell: its "log", and the "json" of its outcome."""
    return folder.with_name(f"{folder.name}.{suffix}")


def outcome_of(folder: Path) -> Outcome | None:
    """What became of a cell; None while it has not ended.

    Args:
        folder: of the cell.
    Raises:
        ResumeError: its file is damaged.
    """
    path = beside_cell(folder, "json")
    if not path.exists():
        return None
    try:
        return Outcome(**json.loads(read_small(path)))
    except (ValueError, TypeError, RecursionError) as error:
        raise ResumeError(
            f"{path} is damaged: {error}; delete it, its cell is done again"
        ) from error


def is_finished(cell: Cell) -> bool:
    """Whether a cell is done, and with what the cells that it needs hold now.

    An evaluation of other labels or weights is not: it is done again.

    Raises:
        ResumeError: a training of another plan, or one that began with other weights.
    """
    found = outcome_of(cell.folder)
    if found is None or found.state != "finished":
        return False
    if not (cell.folder / PRODUCT[cell.kind]).exists():  # moved away, to be done again
        return False
    if cell.kind == "evaluate":
        return found.identity == cell.identity and found.inputs == inputs_of(cell)
    where = f"cell {cell.name}"
    differing = contradictions(cell.identity, found.identity, kind=cell.kind, where=where)
    if found.inputs != inputs_of(cell):
        differing.append(f"it began with weights that {cell.needs[0].folder} does not hold now")
    if differing:
        raise ResumeError(
            f"{cell.folder} was made by another plan: {'; '.join(differing)}; use that plan, move "
            f"{cell.folder} away, or take another --out"
        )
    return True


def inputs_of(cell: Cell) -> dict[str, Any]:
    """Size and digest of what the finished cells made that a cell needs, by their names."""
    found = {need.name: outcome_of(need.folder) for need in cell.needs if is_finished(need)}
    return {name: dict(outcome.files) for name, outcome in found.items() if outcome}
