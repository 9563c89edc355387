"""Who is the same patient: by id, and by an ECG that two ids share."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.records import NO_PATIENT


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
    ends = np.array([(number[row], number[row_of[first_of[row]]]) for row in later])
    count = int(number.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    joined: NDArray[np.intp] = connected_components(edges, directed=False)[1]
    return joined[number]


def is_unnamed(records: pa.Table) -> NDArray[np.bool_]:
    """(N,) whether a record names no patient, so that nobody knows which records share one."""
    flags = records["flags"].to_pylist()
    return np.array([NO_PATIENT in text.split(";") for text in flags], dtype=bool)
