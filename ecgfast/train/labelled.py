"""Which records a fine-tuning run learns from, and what nobody knows about the others."""

from ecgfast import log
from ecgfast.data.loader import selected_rows
from ecgfast.errors import ConfigError
from ecgfast.labels.learning import Labelled, labelled
from ecgfast.store.reader import StoreReader


def labelled_records(
    store: StoreReader, target: str, select: str | None
) -> tuple[Labelled, dict[str, int]]:
    """Find the labelled training and validation records of a selection.

    Args:
        store: with splits.
        target: what a case is; records where it is null are dropped and counted.
        select: an expression, None for all records.
    Returns:
        the records; cases and controls of both splits, and how many have no label.
    Raises:
        ConfigError: no splits, or a split without cases or without controls.
    """
    found = labelled(store.records, selected_rows(store, select), target)
    counts = {"unknown": found.num_unknown}
    for split, rows in (("train", found.train), ("valid", found.valid)):
        cases = int(found.is_case[rows].sum())
        counts |= {f"{split}_cases": cases, f"{split}_controls": len(rows) - cases}
        if not 0 < cases < len(rows):
            raise ConfigError(
                f"split {split!r} must hold cases and controls of {target!r}, got {cases} cases "
                f"and {len(rows) - cases} controls; label the store with `ecgfast label`, or "
                "widen --select"
            )
    log.info(", ".join(f"{name} {count}" for name, count in counts.items()) + f" for {target}")
    return found, counts
