"""Fingerprints of the records of a store, beside it: what an append compares new ECGs with.

They are a copy: without the file, or with one of another store, they are made from the signals.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.store.durable import DurableFile
from ecgfast.store.format import fingerprints_beside
from ecgfast.store.reader import StoreReader
from ecgfast.store.table import Sink

_IDENTITY = b"identity"
_UNUSABLE = (OSError, KeyError, TypeError, ValueError, AttributeError, pa.ArrowException)


def write_fingerprints(
    store: Path, identity: str, slots: NDArray[np.int64], packed: NDArray[np.uint8]
) -> None:
    """Write STORE.fingerprints, mode 0600.

    Args:
        store: its folder.
        identity: of the store with these records.
        slots: (N,) rows of the records in the arrays, ascending.
        packed: (N, bytes) uint8, as `convert.measures` makes them.
    """
    values = pa.Array.from_buffers(
        pa.binary(packed.shape[1]), len(packed), [None, pa.py_buffer(np.ascontiguousarray(packed))]
    )
    table = pa.table({"row": slots, "fingerprint": values})
    table = table.replace_schema_metadata({_IDENTITY: identity})
    file = DurableFile(fingerprints_beside(store), mode=0o600)
    try:
        with pa.ipc.new_stream(Sink(file), table.schema) as stream:
            stream.write_table(table)
    except BaseException:  # Ctrl-C too
        file.discard()
        raise
    file.finish()


def keep_fingerprints(reader: StoreReader, before: str) -> None:
    """Keep those of the rows that a store has, after others were erased; `before`: its identity."""
    try:
        slots, packed, identity = _read(reader.path)
    except _UNUSABLE:
        identity = ""
    if identity not in (before, reader.identity):
        fingerprints_beside(reader.path).unlink(missing_ok=True)
        return
    here = np.isin(slots, reader.slots)
    write_fingerprints(reader.path, reader.identity, slots[here], packed[here])


def read_fingerprints(
    reader: StoreReader, num_bytes: int
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Read STORE.fingerprints.

    Args:
        reader: the store.
        num_bytes: of a fingerprint.
    Returns:
        slots (n,) and fingerprints (n, num_bytes), ascending; those of rows that the store does not
        have are left out, and all are where the file is missing, damaged or of another store.
    """
    try:
        slots, packed, identity = _read(reader.path)
    except _UNUSABLE:
        identity = ""
    generations = {reader.identity, *(each["identity"] for each in reader.history)}
    if identity not in generations or packed.shape[1] != num_bytes:
        return np.empty(0, np.int64), np.empty((0, num_bytes), np.uint8)
    here = np.isin(slots, reader.slots)
    return slots[here], packed[here]


def _read(store: Path) -> tuple[NDArray[np.int64], NDArray[np.uint8], str]:
    """Slots, fingerprints, and the identity of the store that they are of."""
    with pa.OSFile(str(fingerprints_beside(store))) as file:
        table = pa.ipc.open_stream(file).read_all()
    identity = table.schema.metadata[_IDENTITY].decode()
    width = table.schema.field("fingerprint").type.byte_width
    data = b"".join(each.buffers()[1] or b"" for each in table["fingerprint"].chunks)
    packed = np.frombuffer(data, np.uint8).reshape(-1, width)
    slots = table["row"].to_numpy()
    if len(slots) != len(packed):
        raise ValueError("rows and fingerprints differ in number")
    return slots, packed, identity
