"""Which records a fine-tuning run learns from, and what nobody knows about the others."""

import numpy as np
import pyarrow.compute as pc

from ecgfast import log
from ecgfast.data.loader import selected_rows
from ecgfast.errors import ConfigError
from ecgfast.labels.assign import ONE_ECG_OPTION, one_ecg_each, warn_of_unnamed
from ecgfast.labels.selection import Labelled, labelled
from ecgfast.labels.splits import warn_where_few
from ecgfast.store.reader import StoreReader


def labelled_records(
    store: StoreReader, target: str, select: str | None, fold: int | None = None
) -> tuple[Labelled, dict[str, int]]:
    """Find the labelled training and validation records of a selection.

    Args:
        store: with splits.
        target: what a case is; records where it is null are dropped and counted.
        select: an expression, None for all records.
        fold: that is held out, None for the store's splits.
    Returns:
        the records; cases and controls of both splits, how many have no label, and how many of the
        store name no patient.
    Raises:
        ConfigError: no splits, or a split without cases or without controls.
    """
    rows = selected_rows(store, select)
    found = labelled(store.records, rows, target, fold)
    unnamed = warn_of_unnamed(store.records, one_ecg_per_patient=one_ecg_each(store))
    counts = {"unknown": found.num_unknown, "no_patient": unnamed}
    for split, chosen in (("train", found.train), ("valid", found.valid)):
        cases = int(found.is_case[chosen].sum())
        counts |= {f"{split}_cases": cases, f"{split}_controls": len(chosen) - cases}
        if not 0 < cases < len(chosen):
            without = int(pc.is_null(store.records["split"]).to_numpy()[rows].sum())
            cure = f", or say {ONE_ECG_OPTION} there" if unnamed else ""
            raise ConfigError(
                f"split {split!r} must hold cases and controls of {target!r}, got {cases} cases "
                f"and {len(chosen) - cases} controls, {without} of {len(rows)} selected records "
                f"being in no split; label the store with `ecgfast label`{cure}, or widen --select"
            )
    names = np.full(len(store), None, dtype=object)
    names[found.train], names[found.valid] = "train", "valid"
    is_known = names != None  # noqa: E711 (element by element)
    warn_where_few(target, names.tolist(), found.is_case, is_known)
    log.info(", ".join(f"{name} {count}" for name, count in counts.items()) + f" for {target}")
    return found, counts
