"""Changes finished stores: the contents with every digest made to fit again, or one bit of a shard.

Manifest and table are rewritten here, without our own writers.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from ecgfast.store.format import shard_name
from ecgfast.store.reader import open_store


def change_manifest(store: Path, **changes: object) -> None:
    """Set entries of the manifest, and the digests of all its files as they are now."""
    if (store / "shards.parquet").exists():
        _change_shards(store)
    seal_as_it_is(store, **changes)


def seal_as_it_is(store: Path, **changes: object) -> None:
    """Set entries of the manifest, and the digests of the files that it lists itself."""
    path = store / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text()) | changes
    for name in manifest["files"]:
        data = (store / name).read_bytes()
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["files"][name] = entry
    del manifest["digest"]
    manifest["digest"] = hashlib.sha256(_text(manifest)).hexdigest()
    path.write_bytes(_text(manifest))


def _change_shards(store: Path) -> None:
    """Write shards.parquet again, with the digests of the shards' files as they are now."""
    table = pq.read_table(store / "shards.parquet")
    for array in ("signal", "scale_uv", "offset_adc", "lead_mean", "lead_std"):
        suffix = ".0.0" if array == "signal" else ".0"
        names = [f"signals.zarr/{array}/c.{n}{suffix}" for n in table["shard"].to_pylist()]
        data = [(store / name).read_bytes() for name in names]
        for key, values in (
            ("bytes", [len(each) for each in data]),
            ("sha256", [hashlib.sha256(each).hexdigest() for each in data]),
        ):
            at = table.column_names.index(f"{array}_{key}")
            table = table.set_column(at, f"{array}_{key}", pa.array(values))
    pq.write_table(table, store / "shards.parquet")


def change_table(store: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace records.parquet by what `change` makes of it."""
    path = store / "records.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    change_manifest(store)


def change_cell(store: Path, column: str, row: int, value: object) -> None:
    """Replace one cell of records.parquet."""

    def changed(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        at = table.column_names.index(column)
        return table.set_column(at, column, pa.array(values, table.schema.field(column).type))

    change_table(store, changed)


def change_lead_value(store: Path, array: str, record: int, lead: int, value: float) -> None:
    """Replace one value of scale_uv, offset_adc, lead_mean or lead_std."""
    group = zarr.open_group(store / "signals.zarr", mode="r+")
    group[array][record, lead] = value
    change_manifest(store)


def _text(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"


def flip_a_bit(store: Path, record: int) -> None:
    """Flip one bit in the middle of a record's chunk, in the store's first shard."""
    buffer, offsets, lengths = open_store(store).read_chunks([record])
    chunk = buffer[offsets[0] : offsets[0] + lengths[0]].tobytes()
    shard = store / shard_name(0)
    data = bytearray(shard.read_bytes())
    data[data.index(chunk) + len(chunk) // 2] ^= 4
    shard.write_bytes(data)
