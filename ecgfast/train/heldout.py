"""Records that pretraining sets aside to watch itself, whole patients at a time."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from ecgfast.store.reader import StoreReader


def split_heldout(
    store: StoreReader, rows: NDArray[np.int64], *, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows into training and held-out ones by a keyed hash of the patient.

    The hash knows nothing but seed and patient (or record, where no patient is named), so that
    records added later move nobody.

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
    table = store.records.select(["patient_id", "record_id"]).take(rows)
    patients, records = (table.column(name).to_pylist() for name in ("patient_id", "record_id"))
    held = np.array(
        [
            _uniform(seed, p if p is not None else r) < fraction
            for p, r in zip(patients, records, strict=True)
        ],
        dtype=bool,
    )
    return rows[~held], rows[held]


def _uniform(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"held out {seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64
