"""Turns a store without holes into one of format 1, as versions before 0.2 wrote them.

By hand, without our own writers: the manifest lists every file itself, records.parquet has no
column `row`, and what Zarr reads where nothing is written is 0.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def to_format_1(store: Path) -> Path:
    """Rewrite a store in place; its shards and lead chunks stay as they are."""
    (store / "shards.parquet").unlink()
    table = pq.read_table(store / "records.parquet").drop_columns(["row"])
    pq.write_table(table, store / "records.parquet", row_group_size=65536, compression="zstd")
    path = store / "signals.zarr/signal/zarr.json"
    path.write_text(path.read_text().replace('"fill_value": -32768', '"fill_value": 0'))
    path = store / "signals.zarr/zarr.json"
    group = json.loads(path.read_text())
    del group["attributes"]["holes"], group["attributes"]["rows"]
    path.write_text(json.dumps(group, indent=2))
    manifest: dict[str, Any] = json.loads((store / "manifest.json").read_text())
    assert manifest.pop("num_slots") == manifest["num_records"], "format 1 knows no holes"
    manifest |= {"version": 1, "files": {}}
    for file in sorted(store.rglob("*")):
        name = file.relative_to(store).as_posix()
        if file.is_file() and name != "manifest.json":
            data = file.read_bytes()
            entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            manifest["files"][name] = entry
    signals = {name: e for name, e in manifest["files"].items() if name.startswith("signals.zarr")}
    kept = {key: manifest[key] for key in ("version", "codec", "num_records", "preprocessing")}
    manifest["identity"] = hashlib.sha256(_text(kept | {"files": signals})).hexdigest()
    del manifest["digest"]
    manifest["digest"] = hashlib.sha256(_text(manifest)).hexdigest()
    (store / "manifest.json").write_bytes(_text(manifest))
    return store


def _text(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"
