"""Every checksum, count and invariant of a store: `ecgfast verify`."""

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ecgfast.errors import CorruptStoreError
from ecgfast.store.format import (
    ERASING,
    MANIFEST,
    NEXT,
    RECORDS,
    SHARD_RECORDS,
    SIGNALS,
    num_shards,
    shard_name,
    work_beside,
)
from ecgfast.store.generations import counts_as_next, whole_store
from ecgfast.store.manifest import digest_of_file
from ecgfast.store.objects import names_below, size_of
from ecgfast.store.reader import StoreReader, open_store

Progress = Callable[[int, int], None]

_BATCH_RECORDS = 64
# Files of shards, finished or not.
_ADDED = re.compile(rf"{re.escape(SIGNALS)}/\w+/\.?c\.(\d+)\.0(?:\.0)?(?:\.\w+\.tmp)?")
_SPLITS = {"train", "valid", "test", None}


def verify_store(path: str | Path, progress: Progress | None = None) -> list[str]:
    """Check a whole store.

    Args:
        path: folder of the store.
        progress: called with (bytes done, bytes in all) of the digests.
    Returns:
        one line per problem, naming file, shard and record; empty for a sound store.
    Raises:
        FormatError: the folder is no store, or one of another version.
        ConfigError: the path names one generation; all are checked at once.
    """
    path = whole_store(path)
    try:
        reader = open_store(path)
    except CorruptStoreError as error:
        return [str(error)]
    try:
        files = reader.manifest["files"] | dict(reader.shard_table.files())
        shards, firsts = np.unique(reader.slots // SHARD_RECORDS, return_index=True)
    except CorruptStoreError as error:  # what else there must be is not known
        return [str(error), *_digests(reader, reader.manifest["files"], progress)]
    problems = [*_digests(reader, files, progress), *_foreign_files(reader, files)]
    for shard, records in zip(shards, np.split(np.arange(len(reader)), firsts[1:]), strict=True):
        problems.extend(_records(reader, shard, range(records[0], records[-1] + 1)))
    problems.extend(_lead_arrays(reader))
    problems.extend(_table(reader))
    return problems


def _digests(
    reader: StoreReader, files: dict[str, dict[str, Any]], progress: Progress | None
) -> Iterator[str]:
    """Sizes and digests of every file."""
    total, done = sum(entry["bytes"] for entry in files.values()), 0
    for name, entry in sorted(files.items()):
        path = reader.path / name
        if counts_as_next(reader.path, name, entry):
            continue  # it was killed in the last step: what comes next gives the file its name
        size = size_of(path)
        if size is None:
            yield f"{name} is missing"
        elif size != entry["bytes"]:
            yield f"{name} has {size} bytes, expected {entry['bytes']}"
        elif digest_of_file(path) != entry["sha256"]:
            yield f"{name}: the digest is wrong; the file is damaged"
        done += entry["bytes"]
        if progress is not None:
            progress(done, total)


def _foreign_files(reader: StoreReader, files: Collection[str]) -> Iterator[str]:
    tables = reader.manifest["files"]
    expected = {*files, MANIFEST, f".{MANIFEST}.tmp", f".{ERASING}.tmp"}
    # What a killed label or append leaves, and the next one removes.
    expected |= {f"{name}{NEXT}" for name in tables} | {
        str(PurePath(name).with_name(f".{PurePath(name).name}{NEXT}.tmp")) for name in tables
    }
    grows = work_beside(reader.path).exists()
    for name in names_below(reader.path):
        if name in expected:
            continue
        shard = _ADDED.fullmatch(name)
        if grows and shard and int(shard[1]) >= num_shards(reader.num_slots):
            continue
        yield f"{name} does not belong to the store"


def _records(reader: StoreReader, shard: int, inside: range) -> Iterator[str]:
    """Decode every record of a shard with checks on."""
    for start in range(0, len(inside), _BATCH_RECORDS):
        records = inside[start : start + _BATCH_RECORDS]
        try:
            reader.read(records)
        except CorruptStoreError:
            damaged = list(_one_by_one(reader, shard, records))
            yield from damaged
            if len(damaged) == len(records):  # the index or all of the file: one line for the rest
                yield f"{shard_name(shard)}: the records behind {records[-1]} were not looked at"
                return


def _one_by_one(reader: StoreReader, shard: int, records: range) -> Iterator[str]:
    for record in records:
        try:
            reader.read([record])
        except CorruptStoreError as error:
            yield f"record {record} in {shard_name(shard)}: {error}"


def _lead_arrays(reader: StoreReader) -> Iterator[str]:
    try:
        arrays = (reader.scale_uv, reader.offset_adc, reader.lead_mean, reader.lead_std)
    except CorruptStoreError as error:
        yield str(error)
        return
    scale, _, _, std = arrays
    if not all(np.isfinite(array).all() for array in arrays):
        yield "scale_uv, offset_adc, lead_mean or lead_std holds a value that is not finite"
    if (scale == 0).any() or (std < 0).any():
        yield "scale_uv holds a zero, or lead_std a negative value"


def _table(reader: StoreReader) -> Iterator[str]:
    try:
        table = reader.records
    except CorruptStoreError as error:
        yield str(error)
        return
    if "row" in table.column_names and table["row"].to_pylist() != reader.slots.tolist():
        yield f"{RECORDS}: the column row does not name the rows of the records"
    ids = table["record_id"].to_pylist()
    if len(set(ids)) != len(ids):
        yield f"{RECORDS}: {len(ids) - len(set(ids))} record_ids occur more than once"
    splits, patients = table["split"].to_pylist(), table["patient_id"].to_pylist()
    for split in sorted({str(split) for split in splits if split not in _SPLITS}):
        yield f"{RECORDS}: unknown split {split!r}"
    pairs = {(p, s) for p, s in zip(patients, splits, strict=True) if s is not None}
    if len(pairs) != len({patient for patient, _ in pairs}):
        yield f"{RECORDS}: a patient is in more than one split"
