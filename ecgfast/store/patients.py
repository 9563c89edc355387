"""Who is the same patient: by id, and by an ECG that two ids share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.errors import ConfigError, CorruptStoreError
from ecgfast.records import NO_PATIENT
from ecgfast.store.format import ROW_TYPES
from ecgfast.store.pseudonyms import UNNAMED, Pseudonyms
from ecgfast.store.reader import StoreReader

PSEUDONYM = "patient_pseudonym"  # column beside readable ids, for what may leave the store


def patient_groups(records: pa.Table) -> NDArray[np.intp]:
    """Number the patients of a store: records of one number never stand in two splits.

    Two patient ids are one patient where a record of one is a duplicate of a record of the other.
    A record without a patient is its own.

    Args:
        records: `StoreReader.records`.
    Returns:
        (N,) number of each record's patient, from 0 on, in no order that means anything.
    """
    patients = records["patient_id"].to_pylist()
    own = [f"\0{row}" if name is None else name for row, name in enumerate(patients)]
    number = np.unique(np.array(own, dtype=np.str_), return_inverse=True)[1].reshape(-1)
    if "duplicate_of" not in records.column_names:
        return number
    first_of = records["duplicate_of"].to_pylist()
    later = [row for row, name in enumerate(first_of) if name is not None]
    if not later:
        return number
    from scipy.sparse import coo_array  # slow to import, and most stores hold no duplicate
    from scipy.sparse.csgraph import connected_components

    row_of = {name: row for row, name in enumerate(records["record_id"].to_pylist())}
    strangers = [first_of[row] for row in later if first_of[row] not in row_of]
    if strangers:
        raise CorruptStoreError(
            f"duplicate_of names {len(strangers)} records that the store does not have; restore "
            "records.parquet from a copy, or convert again"
        )
    ends = np.array([(number[row], number[row_of[first_of[row]]]) for row in later])
    count = int(number.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    joined: NDArray[np.intp] = connected_components(edges, directed=False)[1]
    return joined[number]


def is_unnamed(records: pa.Table) -> NDArray[np.bool_]:
    """(N,) whether a record names no patient, so that nobody knows which records share one."""
    flags = records["flags"].to_pylist()
    return np.array([NO_PATIENT in text.split(";") for text in flags], dtype=bool)


def pseudonymous_patients(store: StoreReader) -> pa.Array:
    """(N,) text: pseudonyms of a store's patients, also where it keeps readable ids.

    Raises:
        ConfigError: it keeps readable ids, of a version that put no pseudonyms beside them.
    """
    records = store.records
    if store.manifest["identifiers"] != "kept":
        return records["patient_id"].combine_chunks()
    if PSEUDONYM not in records.column_names:
        raise ConfigError(
            f"{store.path} keeps readable patient ids without pseudonyms beside them, and a run "
            "must hold no readable id; join its labels again with ecgfast label"
        )
    return records[PSEUDONYM].combine_chunks()


def with_pseudonyms(records: pa.Table, keys: Sequence[str], pseudonyms: Pseudonyms) -> pa.Table:
    """Put pseudonyms beside readable ids.

    Args:
        records: rows of a store that keeps readable ids; of another they are given back as is.
        keys: (N,) readable keys of the patients.
        pseudonyms: of the store.
    """
    if not pseudonyms.keep:
        return records
    names = [
        pseudonyms.digest(
            "record as patient" if key.startswith(UNNAMED) else "patient", key.removeprefix(UNNAMED)
        ).hex()[:32]
        for key in keys
    ]
    column = pa.array(names, pa.string())
    if PSEUDONYM in records.column_names:
        return records.set_column(records.column_names.index(PSEUDONYM), PSEUDONYM, column)
    return records.append_column(PSEUDONYM, column)


def retained(records: pa.Table, *, identifiers: bool, ages_over_89: bool) -> dict[str, Any]:
    """What a store keeps of its sources beside signals, sex and whole years of age.

    As in DICOM PS3.15, annex E, each option to retain something is written down.

    Args:
        records: its rows.
        identifiers: readable ids of records and patients.
        ages_over_89: apart, not as 90.
    """
    return {
        "identifiers": identifiers,
        "ages_over_89": ages_over_89,
        "dates": False,
        "sites": records["site"].null_count < records.num_rows,
        "columns": sorted(set(records.column_names) - {*ROW_TYPES, PSEUDONYM}),
    }
