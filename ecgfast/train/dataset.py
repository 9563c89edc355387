"""Which records a run learns from and is watched with, and how they reach the model."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.config import Config
from ecgfast.data.host_copy import Neighbours
from ecgfast.data.loader import Loader, build_loader, selected_rows
from ecgfast.data.normalise import Normalisation
from ecgfast.errors import ConfigError, EcgfastError
from ecgfast.labels.assign import ONE_ECG_OPTION, one_ecg_each, warn_of_unnamed
from ecgfast.labels.selection import Labelled, labelled_by
from ecgfast.labels.splits import warn_where_few
from ecgfast.labels.subset import FRACTION, label_subset
from ecgfast.records import NUM_LEADS
from ecgfast.runs.column_task import Number
from ecgfast.runs.task import Task
from ecgfast.settings import FinetuneConfig
from ecgfast.store.fetch import cached_store
from ecgfast.store.format import address_of
from ecgfast.store.patients import patient_groups, patient_names
from ecgfast.store.reader import StoreReader
from ecgfast.store.several import open_stores
from ecgfast.train.distributed import USER_ERROR, Ranks


def open_matching_store(
    path: str | Path | Sequence[str | Path],
    config: Config,
    ranks: Ranks,
    *,
    distinct_patients: bool = False,
) -> StoreReader:
    """Open a store, or several as one, whose records have the model's shape; collective.

    With `data.cache_dir`, one rank of each machine copies those that are given by address.

    Raises:
        ConfigError: they have another one, or the stores do not fit each other.
    """
    paths = [path] if isinstance(path, str | Path) else path
    if config.data.cache_dir is not None and any(map(address_of, paths)):
        paths = _cached(paths, Path(config.data.cache_dir), _neighbours(ranks))
    store = open_stores(paths, distinct_patients=distinct_patients)
    num_leads = config.model.num_leads if config.data.leads is None else NUM_LEADS
    shape = (store.num_leads, store.num_timesteps)
    expected = (num_leads, config.model.num_timesteps)
    if shape != expected:
        raise ConfigError(
            f"records of {path} have leads x timesteps {shape}, the model takes {expected}; set "
            "model.num_leads and model.num_timesteps, or data.leads for fewer leads of a record"
        )
    return store


def _cached(paths: Sequence[str | Path], cache: Path, neighbours: Neighbours | None) -> list[Path]:
    """Copies of stores, which the first rank of a machine makes while the others wait."""
    if neighbours is None or neighbours.is_first:
        said: list[Path] | EcgfastError
        try:
            said = [cached_store(Path(path), cache) for path in paths]
        except EcgfastError as error:
            said = error
    if neighbours is not None:
        said = neighbours.hear(said if neighbours.is_first else None)
        if isinstance(said, EcgfastError) and not neighbours.is_first:
            raise SystemExit(USER_ERROR)  # the first one says why
    if isinstance(said, EcgfastError):
        raise said
    return said


def pretraining_rows(
    store: StoreReader, select: str | None, *, include_test: bool
) -> NDArray[np.int64]:
    """Return the rows that pretraining may read: without test patients, unless asked for.

    Args:
        store: an open store.
        select: an expression, None for all records.
        include_test: as in `pretrain`.
    """
    rows = selected_rows(store, select)
    if include_test:
        return rows
    kept = without_splits(store, rows, "test")
    if len(kept) < len(rows):
        log.info(f"{len(rows) - len(kept)} records of test patients left out")
    return kept


def without_splits(store: StoreReader, rows: NDArray[np.int64], *splits: str) -> NDArray[np.int64]:
    """Return the rows of patients of whom no record is in some splits.

    Given splits can name some ECGs of a patient alone, or tear copies of one ECG.
    """
    names = np.array([name or "" for name in store.records["split"].to_pylist()], dtype=np.str_)
    groups = patient_groups(store.records)
    return rows[~np.isin(groups[rows], groups[np.isin(names, splits)])]


def split_heldout(
    store: StoreReader, rows: NDArray[np.int64], *, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows into training and held-out ones by a keyed hash of the patient.

    The hash knows nothing but seed and patient, so that records added later move nobody.

    Args:
        store: the rows' store.
        rows: (R,) rows to split.
        fraction: expected share of held-out patients.
        seed: of the run.
    Returns:
        training rows, held-out rows; both in the order of `rows`.
    """
    if fraction == 0:
        return rows, rows[:0]
    groups = patient_groups(store.records)[rows]
    names = patient_names(store.records, rows, groups)
    held = np.array([_uniform(seed, names[group]) < fraction for group in groups], dtype=bool)
    return rows[~held], rows[held]


def _uniform(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"held out {seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a fine-tuning learns, and from which records.

    Attributes:
        task: with the classes or the scale of the training records.
        records: labelled ones of training and validation.
        counts: of a single target patients, cases and controls of both splits, of others patients
            and records; how many have no label, and how many of the store name no patient.
        outputs: of other tasks: name of an output -> labels of both splits.
        balanced: whether each class weighs alike in the loss.
    """

    task: Task
    records: Labelled
    counts: dict[str, int]
    outputs: dict[str, dict[str, int]]
    balanced: bool = False

    @property
    def weights(self) -> NDArray[np.float64]:
        """(N, K) weight of each label in the loss, 0 where unknown.

        A label of an output that few training records have weighs more: the mean over records and
        outputs is then the mean over the outputs of the mean over their labels.
        """
        known = ~np.isnan(self.records.truth)
        weights: NDArray[np.float64] = known / known[self.records.train].mean(axis=0)
        weights *= self.class_weights
        return weights

    @property
    def class_weights(self) -> NDArray[np.float64]:
        """(N, K) weight of each label by its class: 1, or that of the classes of training."""
        truth = self.records.truth
        if not self.balanced:
            return np.ones_like(truth)
        of_control, of_case = self.task.class_weights(truth[self.records.train]).T
        weights: NDArray[np.float64] = np.where(truth > 0, of_case, of_control)
        return weights


def labelled_records(
    store: StoreReader,
    task: Task,
    select: str | None,
    fold: int | None = None,
    *,
    settings: FinetuneConfig | None = None,
    seed: int = 0,
) -> Lesson:
    """Find the labelled training and validation records of a selection.

    Args:
        store: with splits.
        task: to be learned; records without a label of any output are dropped and counted.
        select: an expression, None for all records.
        fold: that is held out, None for the store's splits.
        settings: how many of the labels teach, see `label_subset`, and how they weigh; None: all,
            alike.
        seed: that draws them.
    Raises:
        ConfigError: no splits, or a split, or the part of it that is asked for, has no cases or no
            controls.
    """
    settings = settings or FinetuneConfig()
    if why := task.refused(settings):
        raise ConfigError(why)
    rows = selected_rows(store, select)
    found = labelled_by(store.records, rows, task.truth(store.records), fold)
    groups = patient_groups(store.records)
    unnamed = warn_of_unnamed(store.records, one_ecg_per_patient=one_ecg_each(store))
    for split, chosen in found.splits.items():
        if why := task.lacking(found.truth[chosen], split):
            without = int(pc.is_null(store.records["split"]).to_numpy()[rows].sum())
            cure = f", or say {ONE_ECG_OPTION} there" if unnamed else ""
            raise ConfigError(
                f"{why}, {without} of {len(rows)} selected records "
                f"being in no split; label the store with `ecgfast label`{cure}, or widen --select"
            )
    everyone = found
    found = label_subset(
        store.records,
        found,
        seed=seed,
        fraction=settings.label_fraction,
        per_class=settings.labels_per_class,
        strata=task.strata(found.truth, found.train),
    )
    balanced = settings.class_weights == "balanced"
    if balanced and (why := task.lacking(found.truth[found.train], "train")):
        raise ConfigError(f"finetune.class_weights=balanced: {why}; take more labels, or none")
    for split, chosen in found.splits.items():
        if isinstance(task, Number) and (why := task.lacking(found.truth[chosen], split)):
            raise ConfigError(f"{FRACTION}={settings.label_fraction:g}: {why}; take more labels")
    counts = {"unknown": found.num_unknown, "no_patient": unnamed}
    outputs: dict[str, dict[str, int]] = {name: {} for name in task.outputs}
    for split, chosen in found.splits.items():
        of_outputs = task.counts(found.truth[chosen])
        for count, labels in zip(outputs.values(), of_outputs, strict=True):
            count |= {f"{split}_{name}": number for name, number in labels.items()}
        of_split = of_outputs[0] if task.is_single else {"records": len(chosen)}
        counts |= {f"{split}_{name}": number for name, number in of_split.items()}
        counts[f"{split}_patients"] = np.unique(groups[chosen]).size
    if not isinstance(task, Number):
        _warn_where_few(task, found)
    log.info(", ".join(f"{name} {count}" for name, count in counts.items()) + f" for {task.name}")
    if found is not everyone:
        everybody = np.unique(groups[everyone.train]).size
        log.info(
            f"{counts['train_patients']} of {everybody} patients with labels teach, drawn with "
            f"seed {seed}"
        )
    return Lesson(
        task=task.fitted(found.truth[found.train], settings),
        records=found,
        counts=counts,
        outputs={} if task.is_single else outputs,
        balanced=balanced,
    )


def _warn_where_few(task: Task, found: Labelled) -> None:
    names = np.full(len(found.truth), None, dtype=object)
    for split, chosen in found.splits.items():
        names[chosen] = split
    taken = names != None  # noqa: E711 (element by element)
    for name, truth in zip(task.outputs, found.truth.T, strict=True):
        warn_where_few(name, pa.array(names, pa.string()), truth > 0, taken & ~np.isnan(truth))


def open_loader(
    store: StoreReader,
    config: Config,
    ranks: Ranks,
    rows: NDArray[np.int64],
    *,
    batch_size: int,
    seed: int,
    normalisation: Normalisation,
    shuffle: bool = True,
    drop_last: bool = True,
) -> Loader:
    """Build a loader with the settings of `config.data`; `batch_size` is one rank's."""
    data = config.data
    return build_loader(
        store,
        batch_size=batch_size,
        seed=seed,
        engine=data.engine,
        device=ranks.device,
        select=rows,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shuffle=shuffle,
        drop_last=drop_last,
        normalise=normalisation,
        num_threads=None if data.num_threads == "auto" else data.num_threads,
        resident_budget_gib=None
        if data.resident_budget_gib == "auto"
        else data.resident_budget_gib,
        neighbours=_neighbours(ranks),
    )


def _neighbours(ranks: Ranks) -> Neighbours | None:
    """Find the ranks of this machine; collective."""
    if ranks.world_size == 1:
        return None
    machines = [""] * ranks.world_size
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()  # containers may share a host name
    dist.all_gather_object(machines, f"{boot} {os.readlink('/proc/self/ns/pid')}")
    for machine in dict.fromkeys(machines):
        members = [rank for rank, other in enumerate(machines) if other == machine]
        group = dist.new_group(members, backend="gloo")  # every rank makes every group
        if ranks.rank in members:
            first, own = members[0], group

    def hear(said: object) -> object:
        box = [said]
        dist.broadcast_object_list(box, src=first, group=own, device=torch.device("cpu"))
        return box[0]

    return Neighbours(is_first=ranks.rank == first, hear=hear)
