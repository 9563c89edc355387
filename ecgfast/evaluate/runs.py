"""Finished runs as a report needs them: model, settings, and what they were trained on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ecgfast import log
from ecgfast.config import Config
from ecgfast.data.normalise import CohortStatistics
from ecgfast.errors import ConfigError, ResumeError
from ecgfast.evaluate.charts import Curve
from ecgfast.runs.register import FILE, Register, read_register
from ecgfast.runs.sealed import METRICS, RUN_FILES, problem
from ecgfast.store.reader import StoreReader
from ecgfast.train.loading import load_model

_LOSS_NAMES = {"loss": "training", "val_loss": "held out"}


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A finished run.

    Attributes:
        name: unique in a report, such as "ViT, pretrained".
        path: its folder.
        model: on the CPU, in evaluation mode.
        config: resolved settings.
        meta: what its checkpoint says about data and origin.
        register: whom it learned from and read; None for a pretraining run of an earlier version.
    """

    name: str
    path: Path
    model: nn.Module
    config: Config
    meta: dict[str, Any]
    register: Register | None

    @property
    def target(self) -> str:
        """What a case is; empty for pretraining runs."""
        return str(self.meta["identity"].get("target") or "")

    @property
    def init(self) -> str:
        """Name of a classifier's initial weights, without their folder; empty for pretraining."""
        return Path(self.meta["identity"].get("init") or "").name

    @property
    def select(self) -> str | None:
        """Expression that chose the run's records; None: all."""
        expression: str | None = self.meta["identity"].get("select")
        return expression

    @property
    def fold(self) -> int | None:
        """The fold that it held out, None where it took the splits."""
        fold: int | None = self.meta["identity"].get("fold")
        return fold

    @property
    def threshold(self) -> float | None:
        """With the highest Youden index on its own validation records; None without one."""
        threshold: float | None = self.meta.get("thresholds", {}).get("youden")
        return threshold

    @property
    def cohort(self) -> CohortStatistics | None:
        """Statistics that it was normalised with, where the mode needs any."""
        values = self.meta["preprocessing"]["cohort"]
        if values is None:
            return None
        mean_uv, std_uv = tuple(values["mean_uv"]), tuple(values["std_uv"])
        return CohortStatistics(mean_uv=mean_uv, std_uv=std_uv)

    def loss_curves(self) -> dict[str, Curve]:
        """Loss over steps, as ``metrics.jsonl`` has it.

        Raises:
            ResumeError: the file is not what the run wrote.
        """
        written = self.meta.get(RUN_FILES, {}).get(METRICS)
        if written is not None:
            grows = self.meta["kind"] == "pretrain"  # a checkpoint has seen the lines up to it
            if why := problem(self.path, METRICS, written, grows=grows):
                raise ResumeError(f"run {self.path} is damaged: {why}; restore it from a copy")
        rows = log.read_metrics(self.path)
        curves: dict[str, Curve] = {}
        for key, name in _LOSS_NAMES.items():
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                curves[name] = ([p[0] for p in points], [p[1] for p in points])
        return curves


def load_run(path: Path, store: StoreReader) -> LoadedRun:
    """Load a finished run for use on a store.

    Raises:
        ConfigError: the store's signals were preprocessed in another way than the run's, or a
            classifier does not say whom it learned from.
        ResumeError: no finished run, or a damaged one.
    """
    model, config, meta = load_model(path)
    register = read_register(path)
    if meta["kind"] == "finetune" and register is None:
        raise ConfigError(
            f"run {path} has no {FILE}: an earlier version trained it and did not record which "
            "patients it learned from, so that these could be tested; fine-tune again"
        )
    theirs, ours = meta["preprocessing"]["store"], store.manifest["preprocessing"]
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
        name=_name(meta["identity"]),
        path=path,
        model=model.eval(),
        config=config,
        meta=meta,
        register=register,
    )


def name_runs(runs: Sequence[LoadedRun]) -> list[LoadedRun]:
    """Make names unique: runs of one kind get their folder's name behind."""
    count = Counter(run.name for run in runs)
    return [
        run if count[run.name] == 1 else replace(run, name=f"{run.name} ({run.path.name})")
        for run in runs
    ]


def _name(identity: dict[str, Any]) -> str:
    if not identity.get("init"):
        return "Pretraining"
    if identity["model"] == "cnn":
        return "CNN"
    words = {"random": "random init", "imagenet-mae": "ImageNet"}
    return f"ViT, {words.get(identity['init'], 'pretrained')}"
