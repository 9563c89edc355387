"""Replace records.parquet of a finished store; a crash leaves the old or the new one, whole."""

import os
from typing import Any

import pyarrow as pa

from ecgfast.errors import ShapeError
from ecgfast.store.durable import explained, sync_folder
from ecgfast.store.format import NEXT_RECORDS, RECORDS
from ecgfast.store.manifest import write_manifest
from ecgfast.store.reader import StoreReader
from ecgfast.store.table import write_table

_SEALED = ("format", "version", "identity", "digest")


def replace_records(reader: StoreReader, records: pa.Table, changed: dict[str, Any]) -> None:
    """Write a new records.parquet and seal the manifest again; the caller holds the store's lock.

    The new table lies beside the old one until the manifest names it: whichever of the two files
    has the manifest's digest is the one that counts.

    Args:
        reader: the store.
        records: one row per record, in the same order.
        changed: entries of the manifest that change with it, such as what was joined.
    """
    if records.num_rows != len(reader):
        raise ShapeError(f"records must have {len(reader)} rows, got {records.num_rows}")
    store = reader.path
    content = {key: value for key, value in reader.manifest.items() if key not in _SEALED}
    # A crash after an earlier seal may have left the table that counts under its second name.
    if (store / NEXT_RECORDS).exists() and reader.records_name == NEXT_RECORDS:
        os.replace(store / NEXT_RECORDS, store / RECORDS)
    files = content["files"] | {RECORDS: write_table(store, records, NEXT_RECORDS)}
    write_manifest(store, content | changed | {"files": files})
    with explained(store):
        os.replace(store / NEXT_RECORDS, store / RECORDS)
        sync_folder(store)
