"""Finished runs, read back: everything is checked against what the run says, nothing is run."""

import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ecgfast import log
from ecgfast.config import Config, config_from_dict
from ecgfast.errors import ConfigError, EcgfastError, ResumeError
from ecgfast.runs.checkpoint_reader import newest, weights_of_checkpoint, weights_of_file
from ecgfast.runs.digests import (
    METRICS,
    RUN_FILES,
    Facts,
    LaterFormatError,
    is_sealed,
    problem,
    read_facts,
    read_small,
)
from ecgfast.runs.inference import check_weights, score_rows
from ecgfast.runs.leads import leads_of, model_on_leads, on_leads
from ecgfast.runs.meta import RunMeta, contradictions, flat
from ecgfast.runs.register import FILE as REGISTER
from ecgfast.runs.register import Register, read_register
from ecgfast.store.reader import StoreReader

Curve = tuple[list[float], list[float]]  # steps and values
WEIGHTS = "best.safetensors"
RESULT = "result.json"
EXPORTED, EXPORTED_WEIGHTS, LIBRARY = "config.json", "model.safetensors", "library_name"
_LOSS_NAMES = {"loss": "training", "val_loss": "held out"}


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A finished run.

    Attributes:
        name: unique in a report, such as "ViT, pretrained".
        path: its folder.
        model: loads its weights, on the CPU and in evaluation mode; a report has many runs, whose
            weights are in memory one after the other.
        config: resolved settings.
        meta: what it says about its data and origin.
        register: whom it learned from and read; None for a pretraining run of an earlier version.
        scores: (N,) float64 that it gave the records of a store before; None: it is asked.
        device: that scores records; None takes a GPU where there is one.
        leads: names of those that it is asked about; none: all that it learned from.
    """

    name: str
    path: Path
    model: Callable[[], nn.Module]
    config: Config
    meta: RunMeta
    register: Register | None
    scores: NDArray[np.float64] | None = None
    device: torch.device | None = None
    leads: tuple[str, ...] = ()

    def on_leads(self, names: Iterable[str]) -> Self:
        """The run as if records had some of its leads alone; see `runs.leads`."""
        meta = on_leads(self.meta, names, option="--leads")
        leads, load = leads_of(meta), self.model
        return replace(
            self,
            name=f"{self.name}, leads {' '.join(leads)}",
            model=load if meta is self.meta else lambda: model_on_leads(load(), meta),
            meta=meta,
            leads=leads,
        )

    def probabilities(self, store: StoreReader, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Predict what a classifier's task has of records of a store.

        Args:
            store: an open store, preprocessed as the run's.
            rows: (n,) int64 rows.
        Returns:
            (n,) float64, or (n, K) of several outputs: probabilities, or numbers in the unit of
            the target.
        """
        if self.scores is not None:
            return self.scores[rows]
        normalisation = self.meta.preprocessing.normalisation
        return score_rows(
            self.model(),
            store,
            rows,
            normalisation,
            meaning=self.meta.task.predictions,
            name=self.name,
            device=self.device,
        )

    def loss_curves(self) -> dict[str, Curve]:
        """Loss over steps, as ``metrics.jsonl`` has it.

        Raises:
            ResumeError: the file is not what the run wrote.
        """
        written = self.meta.run_files.get(METRICS)
        if written is not None:
            grows = self.meta.kind == "pretrain"  # lines may follow the last checkpoint
            if why := problem(self.path, METRICS, written, grows=grows):
                raise ResumeError(f"run {self.path} is damaged: {why}; restore it from a copy")
        rows = log.read_metrics(self.path)
        curves: dict[str, Curve] = {}
        for key, name in _LOSS_NAMES.items():
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                curves[name] = ([p[0] for p in points], [p[1] for p in points])
        return curves


def load_run(
    path: Path,
    store: StoreReader,
    device: torch.device | None = None,
    *,
    for_tests: bool = True,
) -> LoadedRun:
    """Load a finished run for use on a store: all but its weights, whose digest is compared.

    Args:
        path: its folder, or that of an exported model where nothing is tested.
        store: that it will be used on.
        device: that scores records; None takes a GPU where there is one.
        for_tests: whether its answers are tested, so that it must say whom it learned from.
    Raises:
        ConfigError: the store's signals were preprocessed in another way than the run's, or a
            classifier that is tested does not say whom it learned from.
        ResumeError: no finished run, or a damaged one.
    """
    load, config, meta = _described(path)
    register = read_register(path)
    if for_tests and is_exported(path):
        raise ConfigError(
            f"{path} is an exported model, which does not say whom it learned from, so that "
            "nothing can be tested; name the folder of the run"
        )
    if for_tests and meta.kind == "finetune" and register is None:
        raise ConfigError(
            f"run {path} has no {REGISTER}: an earlier version trained it and did not record which "
            "patients it learned from, so that these could be tested; fine-tune again"
        )
    theirs, ours = meta.preprocessing.store, store.manifest["preprocessing"]
    if theirs != ours:
        differing = sorted(k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k))
        words = ", ".join(
            f"{name} {theirs.get(name)!r} in training, {ours.get(name)!r} in {store.path.name}"
            for name in differing
        )
        raise ConfigError(
            f"run {path} does not fit store {store.path}: {words}; convert the store with the "
            "run's options"
        )
    return LoadedRun(
        name=meta.name, path=path, model=load, config=config, meta=meta, register=register,
        device=device,
    )  # fmt: skip


def name_runs(runs: Sequence[LoadedRun]) -> list[LoadedRun]:
    """Make names unique: runs of one kind get their folder's name behind, or else its path.

    Raises:
        ConfigError: a run is given twice.
    """
    paths = Counter(run.path.resolve() for run in runs)
    if twice := [run.path for run in runs if paths[run.path.resolve()] > 1]:
        raise ConfigError(f"runs must differ, got {twice[0]} twice; give it once")
    names, folders = Counter(run.name for run in runs), Counter(run.path.name for run in runs)

    def called(run: LoadedRun) -> str:
        folder = run.path.name if folders[run.path.name] == 1 else run.path
        return run.name if names[run.name] == 1 else f"{run.name} ({folder})"

    return [replace(run, name=called(run)) for run in runs]


def is_exported(folder: Path) -> bool:
    """Whether a folder is that of an exported model, and not of a run."""
    return (folder / EXPORTED).is_file()


def load_model(run: Path) -> tuple[nn.Module, Config, RunMeta]:
    """Load what a run has learned, on the CPU in fp32.

    Args:
        run: of `pretrain`, finished or not, of a finished `finetune`, or an exported model.
    Returns:
        the model (`MaskedAutoencoder` or `Classifier`) in evaluation mode; the run's settings;
        what the run says about itself.
    Raises:
        ConfigError: a weight is NaN or infinite.
        ResumeError: no run, one without a checkpoint, or a damaged one.
        EcgfastError: memory ran out.
    """
    load, config, meta = _described(run)
    return load(), config, meta


def _described(run: Path) -> tuple[Callable[[], nn.Module], Config, RunMeta]:
    """What loads the weights of a run, whose digests are compared here; settings and facts."""
    if is_exported(run):
        weights, config, meta = _exported(run)
    elif not (run / "config.toml").is_file():
        raise ResumeError(
            f"{run} is not the folder of a run: it has no config.toml; check the path"
        )
    else:
        weights, config, meta = _classifier(run) if (run / RESULT).exists() else _autoencoder(run)

    def load() -> nn.Module:
        try:
            model = weights().eval()
        except MemoryError as error:
            raise EcgfastError(
                f"memory ran out while loading {run}; close other programs, or take a larger "
                "machine"
            ) from error
        check_weights(model, run)
        return model

    return load, config, meta


def _exported(folder: Path) -> tuple[Callable[[], nn.Module], Config, RunMeta]:
    where = folder / EXPORTED
    facts = _facts(where, again="export it again")
    if facts.get(LIBRARY) != "ecgfast" or not is_sealed(facts):
        raise ResumeError(
            f"{where} describes no model that ecgfast exported, got {LIBRARY} "
            f"{facts.get(LIBRARY)!r:.40}; take a folder of ecgfast export"
        )
    meta = RunMeta.from_facts(facts, where)
    config = _settings(folder, meta, where)
    _require_written(folder, facts, where, EXPORTED_WEIGHTS)
    load = partial(weights_of_file, folder / EXPORTED_WEIGHTS, meta, config, where)
    return load, config, meta


def _facts(where: Path, *, again: str) -> Facts:
    try:
        return read_facts(where)
    except LaterFormatError:
        raise
    except ResumeError as error:
        raise ResumeError(f"{error}; restore it from a copy, or {again}") from error


def _classifier(run: Path) -> tuple[Callable[[], nn.Module], Config, RunMeta]:
    where = run / RESULT
    facts = _facts(where, again="fine-tune again")
    meta = RunMeta.from_facts(facts, where)
    if not is_sealed(facts):
        log.warning(
            f"{where} was written by an earlier version and has no digests: damage to the run's "
            "weights would not be noticed"
        )
    config = _settings(run, meta, where)
    _require_written(run, facts, where, WEIGHTS)
    return partial(weights_of_file, run / WEIGHTS, meta, config, where), config, meta


def _autoencoder(run: Path) -> tuple[Callable[[], nn.Module], Config, RunMeta]:
    checkpoint = newest(run)
    if checkpoint is None or checkpoint.facts["kind"] != "pretrain":
        raise ResumeError(
            f"{run} has nothing to load: no finished fine-tuning and no pretraining checkpoint; "
            "run its command again with --resume"
        )
    where = checkpoint.path / "meta.json"
    config = _settings(run, checkpoint.meta, where)
    _require_written(run, checkpoint.facts, where)
    return partial(weights_of_checkpoint, checkpoint, config, where), config, checkpoint.meta


def _require_written(run: Path, facts: Facts, where: Path, *needed: str) -> None:
    """Refuse files of a run that are not those that it wrote.

    Args:
        run: its folder.
        facts: of the run; those of format 2 have no digests to compare.
        where: their file.
        needed: files that it must have digests of.
    """
    if not is_sealed(facts):
        return
    written = facts.get(RUN_FILES)
    if not isinstance(written, dict):
        raise ResumeError(f"{where} is damaged: it has no {RUN_FILES}; restore it from a copy")
    for name in {*needed, *({REGISTER} & written.keys())}:
        why = problem(run, name, written.get(name))
        if why is not None:
            raise ResumeError(
                f"run {run} is damaged, or holds a file of another run: {why}; restore it from a "
                "copy, or train again"
            )


def _settings(run: Path, meta: RunMeta, where: Path) -> Config:
    """The settings that the run was trained with; config.toml shows them and must not differ."""
    path, config = run / "config.toml", meta.config(where)
    try:
        shown = config_from_dict(tomllib.loads(read_small(path).decode()))
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or no settings of ours
        raise ResumeError(f"{path} is damaged: {error}; restore it from a copy") from error
    differing = contradictions(flat(shown), flat(config), kind=meta.kind, where=where.name)
    if differing:
        raise ResumeError(
            f"{path} is not what the run was trained with: {'; '.join(differing)}; restore it "
            "from a copy"
        )
    return config
