"""A data set, from the folder that was downloaded to a table of AUROCs beside published ones."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgfast import log
from ecgfast.config import Config, load_config
from ecgfast.convert import convert
from ecgfast.errors import ConfigError
from ecgfast.estimate import estimate_convert, estimate_pretrain
from ecgfast.evaluate.discrimination import Auroc, delong
from ecgfast.ingest.sidecar import SHARED_SIDECAR
from ecgfast.labels.commands import label_store
from ecgfast.labels.matching import Identities
from ecgfast.labels.selection import target_labels
from ecgfast.recipes.catalogue import Recipe
from ecgfast.recipes.tables import TABLES, Table, echoes, of_codes
from ecgfast.runs.inference import choose_device
from ecgfast.runs.loading import load_run
from ecgfast.store.csv_files import csv_lines
from ecgfast.store.durable import write_durably
from ecgfast.store.patients import patient_groups
from ecgfast.store.reader import available_cores, open_store
from ecgfast.train.finetune import finetune

_ECHO_WINDOW = 14  # days between ECG and echo
_OWN = ("record_id", "patient_id", "site", "age", "sex", "split", "fold", "label_date")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A store with labels.

    Attributes:
        out: folder that holds it as ``store``, and the model that learns all targets as ``run``.
        targets: what is to be learned.
    """

    out: Path
    targets: tuple[str, ...]

    @property
    def store(self) -> Path:
        """The store."""
        return self.out / "store"

    @property
    def run(self) -> Path:
        """The folder of the fine-tuning."""
        return self.out / "run"


def describe(recipe: Recipe) -> str:
    """Where a data set is, what it costs, and what to do with it."""
    cost = estimate_convert(num_records=recipe.records, num_cores=available_cores())
    run = estimate_pretrain(load_config("vit_base"), num_gpus=1, num_records=recipe.records)
    lines = [
        recipe.title,
        f"page     {recipe.url}",
        f"licence  {recipe.licence}",
        f"size     {recipe.records:,} ECGs, {recipe.source_gb:,g} GB unpacked, "
        f"{cost.stored_bytes / 1e9:,.1f} GB as a store",
        f"convert  {cost.core_hours:,.2g} core-hours, {cost.hours:,.2g} h here ({cost.basis})",
        f"pretrain {run.hours:,.0f} h ({run.setting}; {run.basis})",
        f"splits   {recipe.splits}",
        f"targets  {', '.join(recipe.targets)}",
        *(f"note     {note}" for note in recipe.notes),
        "",
        *recipe.downloads(),
        f"ecgfast recipe {recipe.name} {recipe.name} --out {recipe.name}-ecgfast",
    ]
    return "\n".join(lines)


def prepare(recipe: Recipe, folder: Path, out: Path, *, workers: int | None = None) -> Prepared:
    """Convert a data set and join its labels and published splits; run again, it resumes.

    Args:
        recipe: of the data set.
        folder: as published.
        out: to write ``store``, ``labels.csv`` and, of arrays without a sidecar, ``source`` to.
        workers: processes of the conversion; None takes the cores.
    Raises:
        ConfigError: `folder` lacks a part, or a table is not as published.
    """
    recipe.check(folder)
    reader_of = TABLES.get(recipe.table)
    table = reader_of(recipe, folder) if reader_of else None  # before hours of converting
    echo = echoes(folder) if recipe.echo_target else None
    out.mkdir(parents=True, exist_ok=True)
    prepared = Prepared(
        out=out, targets=(str(recipe.echo_target),) if echo else _equal_1(recipe.targets)
    )
    source = _linked(recipe, folder, out / "source") if recipe.sidecar else folder / recipe.signals
    log.info(str(convert([source], prepared.store, workers=workers, **recipe.convert)))
    if table is None:
        reader = open_store(prepared.store)
        names = [name or "" for name in Identities.of(reader).record]
        table = of_codes(recipe, names, reader.records["diagnosis"].to_pylist())
    _join(prepared, _without_ids(table), out / "labels.csv", target=prepared.targets[0])
    if echo:
        _join(prepared, echo, out / "echo.csv", window=_ECHO_WINDOW, target=prepared.targets[0])
    return prepared


def _equal_1(targets: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}=1" for name in targets)


def _without_ids(table: Table) -> Table:
    """The lines that name a record."""
    kept = [row for row, name in enumerate(table["record_id"]) if name]
    return {name: [cells[row] for row in kept] for name, cells in table.items()}


def _join(
    prepared: Prepared, table: Table, path: Path, *, target: str, window: int | None = None
) -> None:
    """Write a table and join it; readable ids, so only its owner reads it."""
    rows = [
        ["" if cell is None else cell for cell in row] for row in zip(*table.values(), strict=True)
    ]
    write_durably(path, [csv_lines([[*table], *rows]).encode()], mode=0o600)
    label_store(
        prepared.store,
        path,
        columns=[name for name in table if name not in _OWN],
        split="column" if "split" in table else "patient",
        target=target,
        label_window_days=window,
    )


def _linked(recipe: Recipe, folder: Path, source: Path) -> Path:
    """A folder of links to published arrays, with the sidecar that they need."""
    source.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob(recipe.signals)):
        link = source / path.name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(path.resolve(), source.resolve()))
    write_durably(source / SHARED_SIDECAR, [json.dumps(recipe.sidecar).encode()])
    return source


def commands(prepared: Prepared, *, preset: str | None, init: str) -> str:
    """The commands that train one model on all targets, and evaluate it."""
    learn = ["finetune", prepared.store, "--out", prepared.run, "--init", init]
    learn += [word for target in prepared.targets for word in ("--target", target)]
    learn += ["--preset", preset] if preset else []
    test = ["evaluate", prepared.run, prepared.store, "--out", prepared.out / "report"]
    return "\n".join(shlex.join(["ecgfast", *map(str, words)]) for words in (learn, test))


def config_for(
    init: str, preset: str | None, settings: Sequence[str], device: str | None
) -> Config:
    """The settings of the runs; without a preset those of the initial weights, or a network's.

    Raises:
        ConfigError: an unknown preset or setting.
    """
    own = Path(init, "config.toml")
    if preset is None:
        on_gpu = choose_device(device).type == "cuda"
        network = "resnet1d_wang" if on_gpu else "resnet1d_small"
        preset = str(own) if own.is_file() else network
    return load_config(preset, settings)


def train(
    prepared: Prepared, config: Config, *, init: str, device: str | None = None
) -> dict[str, Auroc]:
    """Fine-tune one model on all targets, and score it on the test split.

    Args:
        prepared: from `prepare`.
        config: of the run.
        init: its initial weights: a run, a file, "imagenet-mae" or "random".
        device: "cpu", "cuda" or "cuda:N"; by default a GPU where there is one.
    Returns:
        the AUROC of each target, on the records whose label is known.
    """
    targets = prepared.targets
    finetune(
        prepared.store, prepared.run, preset=config, init=init, target=targets, resume=True,
        device=device,
    )  # fmt: skip
    reader = open_store(prepared.store)
    test = np.flatnonzero([split == "test" for split in reader.records["split"].to_pylist()])
    scores = load_run(prepared.run, reader).probabilities(reader, test).reshape(len(test), -1)
    patients = patient_groups(reader.records)[test]
    found = {}
    for target, score in zip(targets, scores.T, strict=True):
        is_case, is_known = (flags[test] for flags in target_labels(reader.records, target))
        found[target] = delong(is_case[is_known], score[is_known], patients[is_known])
    return found


def macro(found: dict[str, Auroc]) -> float:
    """The mean AUROC of targets.

    Raises:
        ConfigError: one has no cases or no controls among the test records.
    """
    values = [each.value for each in found.values()]
    if None in values:
        target = next(name for name, each in found.items() if each.value is None)
        raise ConfigError(
            f"{target}: {found[target].reason} in the test split, so there is no macro AUROC; "
            "take more records"
        )
    return float(np.mean([value for value in values if value is not None]))


def table_of(recipe: Recipe, found: dict[str, Auroc]) -> str:
    """What publications print: AUROC of each target on the test split, their mean, and theirs."""
    mean = macro(found)
    lines = ["| target | cases | controls | AUROC (95 %) |", "|---|---|---|---|"]
    for name, each in found.items():
        lines.append(f"| {name} | {each.num_cases} | {each.num_controls} | {_shown(each)} |")
    lines.append(f"| macro | | | {mean:.3f} |")
    if recipe.published:
        lines += ["", "| published, of | model | AUROC | source |", "|---|---|---|---|"]
    lines += [f"| {p.of} | {p.model} | {p.auroc} | {p.source} |" for p in recipe.published]
    return "\n".join(lines)


def _shown(found: Auroc) -> str:
    between = "" if found.low is None else f" ({found.low:.3f}-{found.high:.3f})"
    return f"{found.value:.3f}{between}"
