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
import pyarrow as pa
import pyarrow.compute as pc
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
        site: (N,) text, site of each record, null where it is not known.
        is_case: (N,) bool.
        is_known: (N,) bool, whether `is_case` means anything; all False without a target.
    """

    site: pa.ChunkedArray
    is_case: NDArray[np.bool_]
    is_known: NDArray[np.bool_]

    def of(self, groups: NDArray[np.intp]) -> NDArray[np.int32]:
        """The stratum of each patient: of a site the cases, then the controls, then the unknown.

        His site is the first in the alphabet; he is a case when one of his records is one.

        Args:
            groups: (N,) number of each record's patient.
        """
        sites = sorted({site or "" for site in pc.unique(self.site).to_pylist()})
        codes = pc.fill_null(pc.index_in(self.site, pa.array(sites, pa.string())), 0)  # 0: ""
        count = int(groups.max(initial=-1)) + 1
        stratum = np.full(count, len(sites), np.int32)
        np.minimum.at(stratum, groups, codes.to_numpy())
        is_case, is_known = np.zeros(count, bool), np.zeros(count, bool)
        is_case[groups[self.is_case]] = True
        is_known[groups[self.is_known]] = True
        kind = np.where(is_known, ~is_case, np.int8(2))  # int8, as all of these are long
        return 3 * stratum + kind


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Splits of N records.

    Attributes:
        split: "train", "valid", "test", or null where a record's patient is not known.
        fold: 1 to `NUM_FOLDS`, null likewise.
    """

    split: pa.Array | pa.ChunkedArray
    fold: pa.Array | pa.ChunkedArray


def draw(seed: int, patient_key: str) -> float:
    """The number in [0, 1) that places a patient: SHA-256 of seed and readable id.

    Args:
        seed: of the split; another one is another split.
        patient_key: `Pseudonyms.patient_key`, or another key that only this patient has.
    """
    return _number(seed, patient_key) / 2**64


def _number(seed: int, patient_key: str) -> int:
    digest = hashlib.sha256(f"ecgfast split {seed}\0{patient_key}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def draw_splits(
    keys: pa.ChunkedArray,
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
        left_out: (N,) records that get neither split nor fold, all of a patient.
        kept: splits and folds that stay; only patients without one draw.
    Raises:
        ConfigError: a patient of `kept` is in two splits or folds.
    """
    count = int(groups.max(initial=-1)) + 1
    split, fold = np.full(count, -1, np.int8), np.full(count, -1, np.int32)
    if kept is not None:
        _keep(kept, groups, split, fold)
    owed = dict.fromkeys(SHARES, 0.0)  # patients that rounding in earlier strata left over
    position = 0
    for members in _patients(keys, groups, strata, seed, left_out):
        free = members[fold[members] < 0]
        fold[free] = (position + np.arange(len(free))) % NUM_FOLDS + 1
        position += len(free)
        free = members[split[members] < 0]
        begin = 0
        for name, share in SHARES.items():
            owed[name] += share * len(free)
            end = min(begin + int(owed[name] + 0.5), len(free))
            owed[name] -= end - begin
            split[free[begin:end]] = SPLITS.index(name)
            begin = end
        split[free[begin:]] = SPLITS.index("train")
    codes = pa.array(split[groups], mask=left_out)
    return Drawn(
        split=pa.DictionaryArray.from_arrays(codes, pa.array(SPLITS)).dictionary_decode(),
        fold=pa.array(fold[groups], pa.int64(), mask=left_out),
    )


def _keep(
    kept: Drawn, groups: NDArray[np.intp], split: NDArray[np.int8], fold: NDArray[np.int32]
) -> None:
    """Give patients the splits and folds that their records have."""
    patients, names, numbers = groups.tolist(), kept.split.to_pylist(), kept.fold.to_pylist()
    check_splits(patients, names)
    refuse_torn(patients, numbers, "fold")
    for patient, name, number in zip(patients, names, numbers, strict=True):
        if name is not None:
            split[patient] = SPLITS.index(name)
        if number is not None:
            fold[patient] = number


def _patients(
    keys: pa.ChunkedArray,
    groups: NDArray[np.intp],
    strata: Strata,
    seed: int,
    left_out: NDArray[np.bool_],
) -> list[NDArray[np.intp]]:
    """The patients of each stratum, in the order of their numbers."""
    stratum, number = strata.of(groups), _numbers(keys, groups, seed)
    draws = np.zeros(len(number), bool)
    draws[groups[~left_out]] = True
    stratum[~draws] = np.iinfo(np.int32).max
    order = np.lexsort((number, stratum))[: np.count_nonzero(draws)]
    return np.split(order, np.flatnonzero(np.diff(stratum[order])) + 1)


def _numbers(keys: pa.ChunkedArray, groups: NDArray[np.intp], seed: int) -> NDArray[np.uint64]:
    """The number of each patient: of his first key, whatever the order of the records."""
    each = (_number(seed, key) for chunk in keys.chunks for key in chunk.to_pylist())
    own = np.fromiter(each, np.uint64, len(keys))
    number = np.zeros(int(groups.max(initial=-1)) + 1, np.uint64)
    number[groups] = own
    several = np.isin(groups, groups[own != number[groups]])  # one ECG under two ids
    first: dict[int, str] = {}
    names = keys.filter(pa.array(several)).to_pylist()
    for group, key in zip(groups[several].tolist(), names, strict=True):
        first[group] = min(first.get(group, key), key)
    for group, key in first.items():
        number[group] = _number(seed, key)
    return number


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
    split: pa.Array,
    is_case: NDArray[np.bool_],
    is_known: NDArray[np.bool_],
) -> None:
    """Warn of splits with fewer than 20 cases or controls: their results are too uncertain."""
    for name in SPLITS:
        here = np.asarray(pc.fill_null(pc.equal(split, name), False)) & is_known
        cases, controls = int((here & is_case).sum()), int((here & ~is_case).sum())
        if min(cases, controls) < FEWEST and here.any():
            log.warning(
                f"split {name}: {cases} cases and {controls} controls of {target}; below {FEWEST} "
                "of either, thresholds and results say little"
            )
