"""Train, valid, test and folds by patient: the same on every machine, and balanced.

Each patient draws a number from a public hash of his readable id. Within a stratum (a site, and
where labels are known its cases or controls) the patients with the lowest numbers are the test
split, the next ones the validation split. Only the outcome is stored: the readable ids are needed
where splits are drawn, and stay beside the store.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.errors import ConfigError

SPLITS = ("train", "valid", "test")
SHARES = {"test": 0.15, "valid": 0.15}  # of the patients of each stratum; the rest is train
NUM_FOLDS = 5
FEWEST = 20  # cases or controls of a split, below which its results are too uncertain


@dataclass(frozen=True, kw_only=True)
class Strata:
    """What is balanced between splits.

    Attributes:
        site: (N,) site of each record, None where it is not known.
        is_case: (N,) bool.
        is_known: (N,) bool, whether `is_case` means anything; all False without a target.
    """

    site: Sequence[str | None]
    is_case: NDArray[np.bool_]
    is_known: NDArray[np.bool_]

    def of(self, rows: Sequence[int]) -> tuple[str, str]:
        """The stratum of a patient: a case when one of his records is one."""
        site = min(self.site[row] or "" for row in rows)
        if not self.is_known[list(rows)].any():
            return site, "unknown"
        return site, "case" if self.is_case[list(rows)].any() else "control"


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Splits of N records.

    Attributes:
        split: "train", "valid", "test", or None where a record's patient is not known.
        fold: 1 to `NUM_FOLDS`, None likewise.
    """

    split: list[str | None]
    fold: list[int | None]


def draw(seed: int, patient_key: str) -> float:
    """The number in [0, 1) that places a patient: SHA-256 of seed and readable id.

    Args:
        seed: of the split; another one is another split.
        patient_key: `Pseudonyms.patient_key`, or another key that only this patient has.
    """
    digest = hashlib.sha256(f"ecgfast split {seed}\0{patient_key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def draw_splits(
    keys: Sequence[str],
    groups: NDArray[np.intp],
    strata: Strata,
    *,
    seed: int,
    left_out: NDArray[np.bool_],
    kept: Drawn | None = None,
) -> Drawn:
    """Divide patients 70 / 15 / 15, and into five folds, within each stratum.

    Args:
        keys: (N,) readable key of each record's patient.
        groups: (N,) from `patient_groups`.
        strata: what is to be balanced.
        seed: of the split.
        left_out: (N,) records that get neither split nor fold.
        kept: splits and folds that stay; only patients without one draw.
    Raises:
        ConfigError: a patient of `kept` is in two splits or folds.
    """
    patients = _patients(keys, groups, strata, seed, left_out)
    split: dict[int, str] = {}
    fold: dict[int, int] = {}
    if kept is not None:
        check_splits(groups.tolist(), kept.split)
        refuse_torn(groups.tolist(), kept.fold, "fold")
        split = {int(g): s for g, s in zip(groups, kept.split, strict=True) if s is not None}
        fold = {int(g): f for g, f in zip(groups, kept.fold, strict=True) if f is not None}
    owed = dict.fromkeys(SHARES, 0.0)  # patients that rounding in earlier strata left over
    position = 0
    for members in patients.values():
        for group in (group for _, _, group in members if group not in fold):
            fold[group] = position % NUM_FOLDS + 1
            position += 1
        free = [group for _, _, group in members if group not in split]
        begin = 0
        for name, share in SHARES.items():
            owed[name] += share * len(free)
            end = min(begin + int(owed[name] + 0.5), len(free))
            owed[name] -= end - begin
            split |= dict.fromkeys(free[begin:end], name)
            begin = end
        split |= dict.fromkeys(free[begin:], "train")
    drawn = [None if out else int(group) for out, group in zip(left_out, groups, strict=True)]
    return Drawn(
        split=[None if group is None else split[group] for group in drawn],
        fold=[None if group is None else fold[group] for group in drawn],
    )


def _patients(
    keys: Sequence[str],
    groups: NDArray[np.intp],
    strata: Strata,
    seed: int,
    left_out: NDArray[np.bool_],
) -> dict[tuple[str, str], list[tuple[float, str, int]]]:
    """Stratum -> (number, key, group) of its patients, all in order."""
    rows: dict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(~left_out).tolist():
        rows[int(groups[row])].append(row)
    found: dict[tuple[str, str], list[tuple[float, str, int]]] = defaultdict(list)
    for group, own in rows.items():
        key = min(keys[row] for row in own)  # one of them, whatever the order of the records
        found[strata.of(own)].append((draw(seed, key), key, group))
    return {stratum: sorted(found[stratum]) for stratum in sorted(found)}


def check_splits(patients: Sequence[object], splits: Sequence[str | None]) -> None:
    """Refuse given splits that leak.

    Args:
        patients: (N,) a key of each record's patient.
        splits: (N,).
    Raises:
        ConfigError: an unknown name, or a patient in two splits.
    """
    unknown = sorted({split for split in splits if split is not None} - set(SPLITS))
    if unknown:
        raise ConfigError(
            f"split column: got {unknown[0]!r}, allowed {', '.join(SPLITS)} or an empty cell"
        )
    refuse_torn(patients, splits, "split")


def num_torn(patients: Sequence[object], parts: Sequence[object]) -> int:
    """Patients whose records are in several parts; None is no part."""
    seen: dict[object, set[object]] = defaultdict(set)
    for patient, part in zip(patients, parts, strict=True):
        if part is not None:
            seen[patient].add(part)
    return sum(len(found) > 1 for found in seen.values())


def refuse_torn(
    patients: Sequence[object], parts: Sequence[object], name: Literal["split", "fold"]
) -> None:
    """Refuse given parts that leak.

    Args:
        patients: (N,) a key of each record's patient.
        parts: (N,), None is no part.
        name: of the column.
    Raises:
        ConfigError: a patient is in two parts.
    """
    if torn := num_torn(patients, parts):
        raise ConfigError(
            f"{name} column: {torn} patients are in more than one {name}, allowed none; "
            f"give each patient one {name}, or use --split patient"
        )


def splits_of_fold(fold: Sequence[int | None], held_out: int) -> list[str | None]:
    """Splits of one round of cross-validation.

    Args:
        fold: (N,) column `fold` of a store.
        held_out: the fold that is tested; the next one, or the first, validates.
    Raises:
        ConfigError: there is no such fold.
    """
    present = sorted({number for number in fold if number is not None})
    if held_out not in present:
        names = ", ".join(map(str, present)) or "none: draw splits with ecgfast splits"
        raise ConfigError(f"--fold must be a fold of the store, got {held_out}, allowed {names}")
    valid = present[(present.index(held_out) + 1) % len(present)]
    names_of = {held_out: "test", valid: "valid"}
    return [None if number is None else names_of.get(number, "train") for number in fold]


def warn_where_few(
    target: str,
    split: Sequence[str | None],
    is_case: NDArray[np.bool_],
    is_known: NDArray[np.bool_],
) -> None:
    """Warn of splits with fewer than 20 cases or controls: their results are too uncertain."""
    names = np.array(["" if name is None else name for name in split], dtype=np.str_)
    for name in SPLITS:
        here = (names == name) & is_known
        cases, controls = int((here & is_case).sum()), int((here & ~is_case).sum())
        if min(cases, controls) < FEWEST and here.any():
            log.warning(
                f"split {name}: {cases} cases and {controls} controls of {target}; below {FEWEST} "
                "of either, thresholds and results say little"
            )
