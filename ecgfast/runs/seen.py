"""What was seen by whom: the records of a store whose patients a run already knows."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast.runs.register import Register, Role
from ecgfast.store.patients import patient_groups, pseudonymous_patients
from ecgfast.store.reader import StoreReader

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Records of a store, by what a run knows of their patients.

    Attributes:
        taught: (N,) of patients whose labels taught the run or chose its weights.
        read: (N,) of patients whose ECGs its encoder was trained on, without labels.
        heldout: (N,) of patients who were set aside to watch that training.
        same_key: whether the store has the pseudonym key of the run's store.
        by_patient: whether patients could be compared at all: they have one key, and patient ids of
            one kind. If not, only ECGs that are the same digit by digit are recognised.
        encoder_by_patient: the same of those whose ECGs its encoder read; True where none did.
    """

    taught: Flags
    read: Flags
    heldout: Flags
    same_key: bool
    by_patient: bool
    encoder_by_patient: bool


def seen(register: Register, store: StoreReader) -> Seen:
    """Find the records of a store whose patients a run has seen.

    A patient is known by his pseudonym, where store and run share a key, or by one of his ECGs: all
    his records, and those of every id that shares an ECG with him, then count as seen.

    Args:
        register: of the run.
        store: any store.
    """
    ids = store.manifest.get("patients", {}).get("ids", "global")
    same_key = register.key_fingerprint == store.manifest["key_fingerprint"]
    by_patient = same_key and register.patient_ids == ids
    groups = patient_groups(store.records)
    patients = pseudonymous_patients(store) if by_patient else None
    content = store.records["content"] if "content" in store.records.column_names else None

    def known(*roles: Role) -> Flags:
        rows = register.select(*roles)
        found = np.zeros(len(store), dtype=bool)
        for ours, theirs in ((patients, rows["patient"]), (content, rows["content"])):
            if ours is not None:
                found |= _is_in(ours, theirs)
        return np.isin(groups, groups[found])

    nameless = register.select("pretrain")["patient"].null_count  # of an encoder of another key
    return Seen(
        taught=known("train", "valid"),
        read=known("pretrain"),
        heldout=known("heldout"),
        same_key=same_key,
        by_patient=by_patient,
        encoder_by_patient=not len(register.select("pretrain")) or (by_patient and not nameless),
    )


def _is_in(ours: pa.Array | pa.ChunkedArray, theirs: pa.ChunkedArray) -> Flags:
    """Which values occur there; a null is nobody."""
    values = theirs.drop_null().combine_chunks()
    found = pc.is_in(ours, value_set=values)
    flags: Flags = pc.fill_null(found, False).to_numpy(zero_copy_only=False).astype(bool)
    return flags
