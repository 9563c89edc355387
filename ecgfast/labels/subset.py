"""Fewer labels: a part of the patients who teach, the smaller part within the larger one.

Each patient draws a number from a hash of seed and id. Of each class, those with the lowest numbers
are the subset, so that it depends on no order and grows with what is asked.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.labels.selection import Labelled
from ecgfast.store.patients import patient_groups, patient_names

Strata = tuple[Sequence[str], NDArray[np.int64]]
FRACTION, PER_CLASS = "finetune.label_fraction", "finetune.labels_per_class"


def label_subset(
    records: pa.Table,
    found: Labelled,
    *,
    seed: int,
    fraction: float = 1.0,
    per_class: int | None = None,
    strata: Strata | None = None,
) -> Labelled:
    """Keep a part of the patients of each class of both splits.

    Args:
        records: `StoreReader.records`.
        found: what all labels teach, with cases and controls in both splits.
        seed: of the run; another one draws another subset.
        fraction: of each class, above 0; 1 keeps everybody. Of validation at least one patient of
            each class stays.
        per_class: patients of each class of training instead; of validation the share of the class
            that these are.
        strata: names of the classes, and (N,) the number of each record's: a patient is of his
            highest. None: controls and cases.
    Returns:
        whole patients of `found`, rows in its order.
    Raises:
        ConfigError: of training no patient of a class would stay, or fewer than `per_class`.
    """
    if fraction == 1 and per_class is None:
        return found
    strata = strata or (("control", "case"), found.is_case.astype(np.int64))
    train = _patients(records, found.train, strata, seed)
    valid = _patients(records, found.valid, strata, seed)
    shares = dict.fromkeys(train, fraction)
    if per_class is not None:
        _require_enough(train, per_class)
        shares = {kind: per_class / len(patients) for kind, patients in train.items()}
    for kind, patients in train.items():
        if patients and _number(shares[kind], patients) == 0:
            raise ConfigError(
                f"{FRACTION}={fraction:g} leaves no {kind} patient to learn from, of "
                f"{_counted(train)} with labels in training; take at least "
                f"{0.5 / len(patients):.2g}"
            )
    return replace(
        found, train=_first(train, shares, least=0), valid=_first(valid, shares, least=1)
    )


Patients = list[tuple[float, str, list[int]]]  # each with his number, name and rows, in order


def _patients(
    records: pa.Table, rows: NDArray[np.int64], strata: Strata, seed: int
) -> dict[str, Patients]:
    """Patients of some rows by class, the highest first: a case when one of his records is one."""
    groups = patient_groups(records)[rows]
    names = patient_names(records, rows, groups)
    of_group: dict[int, list[int]] = defaultdict(list)
    for row, group in zip(rows.tolist(), groups.tolist(), strict=True):
        of_group[group].append(row)
    kinds, number = strata
    found: dict[str, Patients] = {kind: [] for kind in reversed(kinds)}
    for group, own in of_group.items():
        found[kinds[number[own].max()]].append((_draw(seed, names[group]), names[group], own))
    return {kind: sorted(patients) for kind, patients in found.items()}


def _draw(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"ecgfast labels {seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _require_enough(train: Mapping[str, Patients], per_class: int) -> None:
    fewest = min(map(len, train.values()))
    if fewest < per_class:
        raise ConfigError(
            f"{PER_CLASS}={per_class} needs so many patients of each class, got {_counted(train)} "
            f"with labels in training; take at most {fewest}"
        )


def _counted(train: Mapping[str, Patients]) -> str:
    return f"{' and '.join(f'{len(each)} {kind}' for kind, each in train.items())} patients"


def _number(share: float, patients: Patients) -> int:
    return int(share * len(patients) + 0.5)


def _first(
    patients: Mapping[str, Patients], shares: Mapping[str, float], *, least: int
) -> NDArray[np.int64]:
    """Rows, ascending, of the first patients of each class."""
    rows = [
        row
        for kind, members in patients.items()
        for _, _, own in members[: max(least, _number(shares[kind], members))]
        for row in own
    ]
    return np.array(sorted(rows), dtype=np.int64)
