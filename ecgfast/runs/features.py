"""Features of records in files: .zarr, .parquet and .npy, written batch by batch."""

# R records, D features

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from torch import Tensor

from ecgfast.errors import FormatError
from ecgfast.store.csv_files import csv_lines

SUFFIXES = (".zarr", ".parquet", ".npy")
_NAMES = ("record_id", "row", "file", "start_s")
_GROUP_ROWS = 8192  # of a Parquet file, which are read together
_CHUNK_VALUES = 1 << 20  # of a Zarr chunk: 4 MB

Values = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Features:
    """What encoders give records.

    Attributes:
        names: R lines: record_id; of a store's records also row, of files file and start_s.
        values: (R, D) float32.
        facts: what they were made with: run, weights, preprocessing, pool, layer, and the store.
        refused: files, and windows of files, that have none: their path and why.
    """

    names: pa.Table
    values: Values
    facts: dict[str, str]
    refused: list[tuple[str, str]] = field(default_factory=list)

    @property
    def record_id(self) -> list[str]:
        """Of each record."""
        ids: list[str] = self.names["record_id"].to_pylist()
        return ids


def weights_digest(encoder: Mapping[str, Tensor]) -> str:
    """16 hex digits of the weights of an encoder, by which features are known to be its own."""
    digest = hashlib.sha256()
    for name in sorted(encoder):
        digest.update(f"{name} {tuple(encoder[name].shape)} ".encode())
        digest.update(encoder[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def write(
    out: Path, names: pa.Table, width: int, batches: Iterable[Values], facts: Mapping[str, str]
) -> None:
    """Write features, whole or not at all.

    Args:
        out: a path with one of `SUFFIXES`, where nothing is.
        names: as of `Features`, with one line at least.
        width: D.
        batches: values (B, D) in the order of `names`.
        facts: as of `Features`; a .npy file has none.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.partial{out.suffix}")
    writers = {".zarr": _write_zarr, ".parquet": _write_parquet, ".npy": _write_array}
    try:
        writers[out.suffix](partial, names, width, batches, facts)
        if out.suffix == ".npy":
            rows = [
                names.column_names,
                *zip(*(map(str, c.to_pylist()) for c in names), strict=True),
            ]
            out.with_name(f"{out.name}.records.csv").write_text(csv_lines(rows), encoding="utf-8")
        partial.replace(out)
    finally:
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)


def blocks(parts: Iterable[NDArray[np.generic]], size: int) -> Iterator[NDArray[np.generic]]:
    """Cut arrays anew along their first axis: blocks of `size`, the last one what is left."""
    waiting: list[NDArray[np.generic]] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count >= size:
            whole = np.concatenate(waiting)
            full = count - count % size
            yield from (whole[start : start + size] for start in range(0, full, size))
            waiting, count = [whole[full:]], count - full
    if count:
        yield np.concatenate(waiting)


def _write_zarr(
    path: Path, names: pa.Table, width: int, batches: Iterable[Values], facts: Mapping[str, str]
) -> None:
    group = zarr.create_group(path, overwrite=True, attributes=dict(facts))
    for name in names.column_names:
        column = names[name].to_numpy()
        kind = str if column.dtype == object else column.dtype
        array = group.create_array(name, shape=column.shape, dtype=kind, dimension_names=["record"])
        array[:] = column
    rows = min(max(1, _CHUNK_VALUES // width), len(names))
    array = group.create_array(
        "features",
        shape=(len(names), width),
        chunks=(rows, width),
        dtype="float32",
        dimension_names=["record", "feature"],
    )
    done = 0
    for block in blocks(batches, rows):
        array[done : done + len(block)] = block
        done += len(block)


def _write_parquet(
    path: Path, names: pa.Table, width: int, batches: Iterable[Values], facts: Mapping[str, str]
) -> None:
    kind = pa.list_(pa.float32(), width)
    schema = names.schema.append(pa.field("features", kind)).with_metadata(dict(facts))
    with pq.ParquetWriter(path, schema) as writer:
        done = 0
        for block in blocks(batches, _GROUP_ROWS):
            column = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), width)
            part = names.slice(done, len(block)).append_column("features", column)
            writer.write_table(part.cast(schema))
            done += len(block)


def _write_array(
    path: Path, names: pa.Table, width: int, batches: Iterable[Values], facts: Mapping[str, str]
) -> None:
    shape = (len(names), width)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    done = 0
    for values in batches:
        array[done : done + len(values)] = values
        done += len(values)
    array.flush()


def read(path: Path) -> Features:
    """Read a .zarr or .parquet of `write`.

    Raises:
        FormatError: it is none of these, or damaged.
    """
    try:
        if path.suffix == ".zarr":
            group = zarr.open_group(path, mode="r")
            columns = {name: array[:] for name, array in group.arrays()}
            values = columns.pop("features")
            facts = {str(key): str(value) for key, value in group.attrs.items()}
            names = pa.table({name: pa.array(columns[name]) for name in _NAMES if name in columns})
        else:
            table = pq.read_table(path)
            features = table["features"].combine_chunks()
            values = features.flatten().to_numpy().reshape(len(table), features.type.list_size)
            facts = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
            names = table.drop_columns(["features"])
    except (OSError, KeyError, ValueError, AttributeError, pa.ArrowException) as error:
        raise FormatError(
            f"{path} is no .zarr or .parquet of ecgfast embed: {' '.join(str(error).split())}; "
            "make it with ecgfast embed"
        ) from error
    return Features(names=names, values=np.asarray(values, dtype=np.float32), facts=facts)
