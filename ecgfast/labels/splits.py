"""Train, valid and test by patient: a keyed hash, so that a patient keeps the split for ever."""

from collections import defaultdict
from collections.abc import Sequence

from ecgfast.errors import ConfigError
from ecgfast.store.pseudonyms import Pseudonyms

SPLITS = ("train", "valid", "test")
_TRAIN, _TRAIN_AND_VALID = 0.70, 0.85


def split_of(pseudonyms: Pseudonyms, patient_id: str) -> str:
    """The split of a patient: 70 / 15 / 15, the same whatever records are added later.

    Args:
        pseudonyms: the key of the store.
        patient_id: as the store holds it.
    """
    draw = int.from_bytes(pseudonyms.digest("split", patient_id)[:8], "big") / 2**64
    if draw < _TRAIN:
        return "train"
    return "valid" if draw < _TRAIN_AND_VALID else "test"


def check_splits(patient_ids: Sequence[str], splits: Sequence[str | None]) -> None:
    """Refuse given splits that leak.

    Raises:
        ConfigError: an unknown name, or a patient in two splits.
    """
    unknown = sorted({split for split in splits if split is not None} - set(SPLITS))
    if unknown:
        raise ConfigError(
            f"split column: got {unknown[0]!r}, allowed {', '.join(SPLITS)} or an empty cell"
        )
    seen: dict[str, set[str]] = defaultdict(set)
    for patient, split in zip(patient_ids, splits, strict=True):
        if split is not None:
            seen[patient].add(split)
    torn = sum(len(found) > 1 for found in seen.values())
    if torn:
        raise ConfigError(
            f"split column: {torn} patients are in more than one split, allowed none; "
            "give each patient one split, or use --split patient"
        )
