"""Finished runs as a report needs them: model, settings, and what they were trained on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ecgfast import log
from ecgfast.config import Config
from ecgfast.data.loader import selected_rows
from ecgfast.data.normalise import CohortStatistics
from ecgfast.errors import ConfigError
from ecgfast.evaluate.plots import Curve
from ecgfast.store.reader import StoreReader
from ecgfast.train.checkpoint import load_model

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
    """

    name: str
    path: Path
    model: nn.Module
    config: Config
    meta: dict[str, Any]

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
        expression: str | None = self.meta["identity"]["select"]
        return expression

    @property
    def store_identity(self) -> str:
        """Identity of the store that it was trained on."""
        return str(self.meta["identity"]["store"])

    @property
    def labels_digest(self) -> str | None:
        """Which records taught a classifier, and what; None for pretraining."""
        digest: str | None = self.meta["identity"].get("labels")
        return digest

    @property
    def cohort(self) -> CohortStatistics | None:
        """Statistics that it was normalised with, where the mode needs any."""
        values = self.meta["preprocessing"]["cohort"]
        if values is None:
            return None
        mean_uv, std_uv = tuple(values["mean_uv"]), tuple(values["std_uv"])
        return CohortStatistics(mean_uv=mean_uv, std_uv=std_uv)

    def rows(self, store: StoreReader) -> NDArray[np.int64]:
        """Rows of `store` that the run could read while it was trained."""
        if self.store_identity != store.identity:
            return np.zeros(0, dtype=np.int64)
        return selected_rows(store, self.select)

    def loss_curves(self) -> dict[str, Curve]:
        """Loss over steps, as ``metrics.jsonl`` has it."""
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
        ConfigError: the store's signals were preprocessed in another way than the run's.
        ResumeError: no finished run, or a damaged one.
    """
    model, config, meta = load_model(path)
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
        name=_name(meta["identity"]), path=path, model=model.eval(), config=config, meta=meta
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
