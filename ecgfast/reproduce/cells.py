"""The cells of a plan: each pretraining, fine-tuning and evaluation, and what became of it.

A cell is a command of ecgfast and the folder that it fills. What became of it stands beside that
folder, in a file that is written last.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from ecgfast import log
from ecgfast.config import Config
from ecgfast.data.loader import selected_rows
from ecgfast.errors import ConfigError, ResumeError
from ecgfast.evaluate.cohort import text_column
from ecgfast.labels.selection import Labelled, digest_of, labelled, target_labels
from ecgfast.labels.subset import label_subset
from ecgfast.reproduce.plan import Chosen, Finetuning, Model, Plan, Pretraining
from ecgfast.runs.digests import read_small
from ecgfast.runs.initial import initial_name
from ecgfast.runs.loading import RESULT
from ecgfast.runs.meta import contradictions, flat
from ecgfast.store.reader import StoreReader
from ecgfast.train.dataset import pretraining_rows, split_heldout

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
        column: of the table: model, set, fraction and seed; empty for a pretraining.
        line: of the label efficiency: model and set.
        fraction: of the patients with labels that a fine-tuning learns from.
        imagenet: the settings, where it starts from ImageNet weights.
    """

    kind: Kind
    folder: Path
    words: tuple[str, ...]
    identity: Mapping[str, Any] = field(default_factory=dict)
    needs: "tuple[Cell, ...]" = ()
    column: str = ""
    line: str = ""
    fraction: float = 1.0
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
        subsets = _Subsets(store, found, f"finetuning {training.name!r}")
        for name, fraction, repeat in product(training.models, plan.fractions, range(plan.seeds)):
            model = plan.model_named(name)
            chosen = plan.of_finetuning(model, repeat, fraction)
            settings = chosen.config()
            few = settings.finetune
            if few.label_fraction == 1 and few.labels_per_class is None:
                what = f"model {name!r} on finetuning {training.name!r}"
                batch_size = settings.finetune.batch_size
                _fill_a_batch(what, len(found.train), batch_size, "finetune.batch_size")
            labels = subsets.digest(settings)
            if labels is None:
                continue
            part = _Part(training=training, model=model, fraction=fraction, repeat=repeat)
            taught = {
                "target": plan.target,
                "select": training.select,
                "store": store.identity,
                "labels": labels,
            }
            finetune = _finetuning(part, chosen, taught, pretrained.get(model.init), out)
            cells += [finetune, _evaluation(finetune, tested, out)]
    return cells


class _Subsets:
    """The subsets of one set that fine-tunings learn from; each is drawn once."""

    def __init__(self, store: StoreReader, found: Labelled, what: str) -> None:
        self._store, self._found, self._what = store, found, what
        self._digests: dict[tuple[float, int | None, int], str | None] = {}
        self._refused: set[tuple[float, int | None]] = set()

    def digest(self, config: Config) -> str | None:
        """Digest of what a fine-tuning learns from; None, with a warning, where it cannot."""
        settings, seed = config.finetune, config.train.seed
        part = (settings.label_fraction, settings.labels_per_class, seed)
        if part not in self._digests:
            self._digests[part] = self._draw(*part)
        return self._digests[part]

    def _draw(self, fraction: float, per_class: int | None, seed: int) -> str | None:
        try:
            return label_subset(
                self._store.records, self._found, fraction=fraction, per_class=per_class, seed=seed
            ).digest
        except ConfigError as error:
            part = fraction, per_class
            if part not in self._refused:  # of every seed: it is a matter of numbers
                log.warning(f"plan: {self._what}: left out: {error}")
            self._refused.add(part)
            return None


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What tells a fine-tuning from the others of a plan."""

    training: Finetuning
    model: Model
    fraction: float
    repeat: int

    @property
    def line(self) -> str:
        return f"{self.model.name}, {self.training.name}"

    @property
    def column(self) -> str:
        fraction = "" if self.fraction == 1 else f", fraction {self.fraction!r}"
        return f"{self.line}{fraction}{f', seed {self.repeat}' if self.repeat else ''}"

    @property
    def folder(self) -> str:
        fraction = "" if self.fraction == 1 else f".fraction{self.fraction!r}"
        seed = f".seed{self.repeat}" if self.repeat else ""
        return f"{self.model.name}.{self.training.name}{fraction}{seed}"


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
    part: _Part,
    chosen: Chosen,
    taught: Mapping[str, str | None],
    pretrained: Cell | None,
    out: Path,
) -> Cell:
    config, model = chosen.config(), part.model
    init = model.init if pretrained is None else str(pretrained.folder)
    folder = out / "finetune" / part.folder
    return Cell(
        kind="finetune",
        folder=folder,
        words=(
            *("finetune", "--out", str(folder), "--resume"),
            *("--init", init, "--target", str(taught["target"])),
            *chosen.options(),
            *_selecting(part.training.select),
        ),
        identity={**flat(config), **taught, "init": initial_name(init)},
        needs=() if pretrained is None else (pretrained,),
        column=part.column,
        line=part.line,
        fraction=config.finetune.label_fraction,
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
        line=finetune.line,
        fraction=finetune.fraction,
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
        found = Outcome(**json.loads(read_small(path)))
        if not all(isinstance(part, dict) for part in (found.files, found.inputs, found.identity)):
            raise TypeError("files, inputs and identity must be objects")
        return found
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
