"""Fewer labels: a part of the patients who teach, the smaller part within the larger one.

Each patient draws a number from a hash of seed and id. Of the cases, and of the controls, those
with the lowest numbers are the subset, so that it depends on no order and grows with the fraction.
"""

import hashlib
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.errors import ConfigError
from ecgfast.labels.selection import Labelled
from ecgfast.store.patients import patient_groups, patient_names

SETTING = "finetune.label_fraction"


def label_subset(records: pa.Table, found: Labelled, *, fraction: float, seed: int) -> Labelled:
    """Keep a fraction of the case patients and of the control patients of both splits.

    Args:
        records: `StoreReader.records`.
        found: what all labels teach, with cases and controls in both splits.
        fraction: above 0; 1 keeps everybody. Of validation at least one patient of each class
            stays.
        seed: of the run; another one draws another subset.
    Returns:
        whole patients of `found`, rows in its order.
    Raises:
        ConfigError: of training no case patient or no control patient would stay.
    """
    if fraction == 1:
        return found
    train = _patients(records, found.train, found.is_case, seed)
    for name, patients in train.items():
        if patients and _share(fraction, patients) == 0:
            counts = " and ".join(f"{len(each)} {kind}" for kind, each in train.items())
            raise ConfigError(
                f"{SETTING}={fraction:g} leaves no {name} patient to learn from, of {counts} "
                f"patients with labels in training; take at least {0.5 / len(patients):.2g}"
            )
    valid = _patients(records, found.valid, found.is_case, seed)
    return replace(
        found,
        train=_first(train, fraction, least=0),
        valid=_first(valid, fraction, least=1),
    )


Patients = list[tuple[float, str, list[int]]]  # each with his number, name and rows, in order


def _patients(
    records: pa.Table, rows: NDArray[np.int64], is_case: NDArray[np.bool_], seed: int
) -> dict[str, Patients]:
    """Patients of some rows by class: a case when one of his records is one."""
    groups = patient_groups(records)[rows]
    names = patient_names(records, rows, groups)
    of_group: dict[int, list[int]] = defaultdict(list)
    for row, group in zip(rows.tolist(), groups.tolist(), strict=True):
        of_group[group].append(row)
    found: dict[str, Patients] = {"case": [], "control": []}
    for group, own in of_group.items():
        kind = "case" if is_case[own].any() else "control"
        found[kind].append((_draw(seed, names[group]), names[group], own))
    return {kind: sorted(patients) for kind, patients in found.items()}


def _draw(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"ecgfast labels {seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _share(fraction: float, patients: Patients) -> int:
    return int(fraction * len(patients) + 0.5)


def _first(patients: dict[str, Patients], fraction: float, *, least: int) -> NDArray[np.int64]:
    """Rows, ascending, of the first patients of each class."""
    rows = [
        row
        for members in patients.values()
        for _, _, own in members[: max(least, _share(fraction, members))]
        for row in own
    ]
    return np.array(sorted(rows), dtype=np.int64)
