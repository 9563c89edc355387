"""Which records a fine-tuning run learns from, and what nobody knows about the others."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.data.loader import selected_rows
from ecgfast.errors import ConfigError
from ecgfast.labels.selection import parse_target
from ecgfast.store.reader import StoreReader


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The records of a fine-tuning run.

    Attributes:
        is_case: (N,) bool, one per row of the store; False where no label is known.
        train: rows to learn from.
        valid: rows that choose the weights.
        counts: cases and controls of both, and how many selected records have no label.
    """

    is_case: NDArray[np.bool_]
    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    counts: dict[str, int]


def labelled_records(store: StoreReader, target: str, select: str | None) -> Labelled:
    """Find the labelled training and validation records of a selection.

    Args:
        store: with splits.
        target: what a case is; records where it is null are dropped and counted.
        select: an expression, None for all records.
    Raises:
        ConfigError: no splits, or a split without cases or without controls.
    """
    rows = selected_rows(store, select)
    is_case_N, known_N = parse_target(target).labels(store.records)
    split_N = np.array(store.records.column("split").to_pylist(), dtype=object)
    parts = {}
    counts = {"unknown": int((~known_N[rows]).sum())}
    for split in ("train", "valid"):
        part = rows[known_N[rows] & (split_N[rows] == split)]
        cases = int(is_case_N[part].sum())
        counts |= {f"{split}_cases": cases, f"{split}_controls": len(part) - cases}
        if not 0 < cases < len(part):
            raise ConfigError(
                f"split {split!r} must hold cases and controls of {target!r}, got {cases} cases "
                f"and {len(part) - cases} controls; label the store with `ecgfast label`, or "
                "widen --select"
            )
        parts[split] = part
    log.info(", ".join(f"{name} {count}" for name, count in counts.items()) + f" for {target}")
    return Labelled(is_case=is_case_N, train=parts["train"], valid=parts["valid"], counts=counts)
