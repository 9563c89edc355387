"""Records whose consent was withdrawn: their rows become holes, and no file keeps them.

The list of what is erased is written first, into the store, and removed last. While it is there the
store cannot be opened: nobody can take one in which half is erased for a whole one. The old files
stay until the new ones are whole, and what a crash leaves is finished from the list.
"""

import json
import os
from collections.abc import Iterable, Set
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ecgfast.errors import ConfigError, CorruptStoreError, ResumeError
from ecgfast.store.csv_files import (
    csv_lines,
    read_lines,
    refused_ids,
    remove_sources,
    write_quarantine,
)
from ecgfast.store.durable import DurableFile, sync_folder, write_durably
from ecgfast.store.fingerprints import keep_fingerprints
from ecgfast.store.format import (
    ERASING,
    LEAD_ARRAYS,
    NEXT,
    QUARANTINE,
    QUARANTINE_COLUMNS,
    RECORDS,
    SHARD_RECORDS,
    SHARDS,
    SIGNALS,
    changed_beside,
    erased_beside,
    fingerprints_beside,
    shard_files,
    sources_beside,
    unmatched_beside,
    with_crc32c,
    work_beside,
)
from ecgfast.store.generations import commit, generation_of, settle
from ecgfast.store.manifest import identity_of, read_file
from ecgfast.store.patients import Pseudonyms
from ecgfast.store.reader import StoreReader
from ecgfast.store.shard_table import Entry
from ecgfast.store.shards import pack_shard_index
from ecgfast.store.table import recordings_of, write_table


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What was erased.

    Attributes:
        num_records: records, whose rows are holes now.
        num_refused: inputs in quarantine.csv.
        generation: of the store without them.
    """

    num_records: int
    num_refused: int
    generation: int


def erase_records(reader: StoreReader, recordings: Set[str]) -> Erased:
    """Erase recordings from a store and from the tables beside it; a crash is finished later.

    Args:
        reader: the store; the caller holds its lock.
        recordings: ids as the store has them; those of all windows of a recording are one.
    Raises:
        ConfigError: nothing would be left, or the store has format 1.
        ResumeError: an append of the store is not finished.
        CorruptStoreError: a shard that has to be written again is damaged.
    """
    refuse_to_erase(reader, recordings)
    store = reader.path
    gone, refused = _rows(reader, recordings), _refusals(reader, recordings)
    if not gone.any() and not refused:
        return Erased(num_records=0, num_refused=0, generation=reader.generation)
    changed = np.isin(reader.slots // SHARD_RECORDS, reader.slots[gone] // SHARD_RECORDS)
    reader.check_digests(np.flatnonzero(changed))  # new digests would hide damage
    settle(store)
    intent = {"identity": reader.identity, "recordings": sorted(recordings)}
    write_durably(store / ERASING, [json.dumps(intent).encode()], mode=0o600)
    _write_and_commit(reader, recordings)
    _complete(store, recordings, reader.identity)
    return Erased(
        num_records=int(gone.sum()), num_refused=refused, generation=reader.generation + 1
    )


def refuse_to_erase(reader: StoreReader, recordings: Set[str]) -> None:
    """Refuse what `erase_records` cannot do; nothing is written before.

    Raises:
        ConfigError, ResumeError: as `erase_records`.
    """
    store = reader.path
    if not reader.is_newest:  # the rows behind it would be lost
        raise ConfigError(f"{store} is changed as a whole; give it without @")
    if (work_beside(store) / "plan.json").exists():
        raise ResumeError(
            f"{store} has a convert that is not finished, whose new records would be missed; run "
            f"that convert again first, or remove {work_beside(store)}"
        )
    if reader.manifest["version"] == 1:
        raise ConfigError(
            f"{store} has format 1, from which nothing can be erased; ecgfast convert {store} "
            "--out NEW makes a store of format 2, erase there and remove this one"
        )
    if _rows(reader, recordings).all():
        raise ConfigError(
            f"all {len(reader)} records of {store} would be erased; remove the store and what lies "
            "beside it instead"
        )


def finish_erasure(store: Path) -> bool:
    """Finish an erasure that a crash interrupted; the caller holds the store's lock.

    Returns:
        whether there was one.
    """
    try:
        intent = json.loads((store / ERASING).read_bytes())
    except FileNotFoundError:
        return False
    reader, recordings = StoreReader(store, erasing=True), set(intent["recordings"])
    if reader.identity == intent["identity"]:  # it was killed before the new files counted
        for path in [*store.rglob(f"*{NEXT}"), *store.rglob(f".*{NEXT}.tmp")]:
            path.unlink()
        _write_and_commit(reader, recordings)
    _complete(store, recordings, intent["identity"])
    return True


def erased_digests(store: Path) -> set[str]:
    """The recordings that were erased from a store, as `Pseudonyms.erased` names them."""
    path = erased_beside(store)
    return set(path.read_text().split()) if path.exists() else set()


def add_erased(store: Path, pseudonyms: Pseudonyms, record_ids: Iterable[str]) -> None:
    """Add recordings, by the ids that the store has, to STORE.erased, mode 0600."""
    digests = erased_digests(store) | set(map(pseudonyms.erased, record_ids))
    text = "".join(f"{each}\n" for each in sorted(digests))
    write_durably(erased_beside(store), [text.encode()], mode=0o600)


def _rows(reader: StoreReader, recordings: Set[str]) -> NDArray[np.bool_]:
    """(N,) which records are windows of the recordings."""
    return np.array([name in recordings for name in recordings_of(reader.records)], bool)


def _refusals(reader: StoreReader, recordings: Set[str]) -> int:
    """Inputs of the recordings that have no record."""
    refused = refused_ids(reader.quarantine) & recordings
    return len(refused.difference(recordings_of(reader.records)))


def _write_and_commit(reader: StoreReader, recordings: Set[str]) -> None:
    """Write all that changes under second names, and the manifest that makes them count."""
    store, gone = reader.path, _rows(reader, recordings)
    shards = reader.shard_table
    slots = reader.slots
    changed: dict[int, tuple[int, dict[str, Entry]]] = {}
    for shard in np.unique(slots[gone] // SHARD_RECORDS).tolist():
        here = np.flatnonzero(slots // SHARD_RECORDS == shard)
        kept = here[~gone[here]]
        changed[shard] = (len(kept), _write_shard(reader, shard, kept) if len(kept) else {})
    shards = shards.replaced(changed)
    records = reader.records.filter(pa.array(~gone))
    quarantine = read_lines(reader.quarantine.decode().splitlines(keepends=True))
    lines = [line for line in quarantine if line["record_id"] not in recordings]
    rows = csv_lines([line[name] for name in QUARANTINE_COLUMNS] for line in lines)
    from ecgfast.store.zarr_codec import write_metadata  # zarr takes half a second to import

    files: dict[str, Any] = {
        RECORDS: write_table(store, [records], records.schema, RECORDS + NEXT),
        QUARANTINE: write_quarantine(store, [rows], QUARANTINE + NEXT),
        SHARDS: write_table(store, [shards.table], shards.table.schema, SHARDS + NEXT),
        **write_metadata(
            store,
            reader.codec,
            num_slots=reader.num_slots,
            num_records=records.num_rows,
            suffix=NEXT,
        ),
    }
    content = {key: value for key, value in reader.manifest.items() if key != "digest"}
    content |= {"files": files, "num_records": records.num_rows, "history": []}
    content |= {"generation": generation_of(content) + 1}
    content["counts"] = _counts(reader, recordings, records)
    content["identity"] = identity_of(content, shards.files())
    commit(store, content, files)


def _counts(reader: StoreReader, recordings: Set[str], records: pa.Table) -> dict[str, int]:
    counts = dict(reader.manifest["counts"])
    converted = len(recordings & set(recordings_of(reader.records)))
    refused = _refusals(reader, recordings)
    counts["converted"] -= converted
    counts["quarantined"] -= refused
    counts["inputs"] -= converted + refused
    duplicates = records.num_rows - records["duplicate_of"].null_count
    return counts | {"records": records.num_rows, "duplicates": duplicates}


def _write_shard(reader: StoreReader, shard: int, kept: NDArray[np.int64]) -> dict[str, Entry]:
    """Write the files of a shard with some of its records; returns path -> entry."""
    names, store = shard_files(shard), reader.path
    rows = reader.slots[kept] - shard * SHARD_RECORDS
    buffer, offsets, lengths = reader.read_chunks(kept)
    file = DurableFile(store / f"{names['signal']}{NEXT}")
    for start, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
        file.write([buffer.data[start : start + length]])
    file.write([pack_shard_index(rows.tolist(), lengths.tolist())])
    files: dict[str, Entry] = {names["signal"]: file.finish()}
    for array in LEAD_ARRAYS:
        name = names[array]
        data = read_file(store / name, reader.shard_table.entry(shard, array)["bytes"])
        if with_crc32c(data[:-4]) != data:
            raise CorruptStoreError(f"{store}: the checksum of {name} is wrong")
        leads = np.frombuffer(data[:-4], "<f4").reshape(SHARD_RECORDS, -1)
        without = np.zeros_like(leads)
        without[rows] = leads[rows]
        files[name] = write_durably(store / f"{name}{NEXT}", [with_crc32c(without.tobytes())])
    return files


def _complete(store: Path, recordings: Set[str], before: str) -> None:
    """Give the new files their names, and remove what is left of the records."""
    reader = StoreReader(store, erasing=True)
    for path in store.rglob(f"*{NEXT}"):
        os.replace(path, path.with_name(path.name.removesuffix(NEXT)))
    files = {name for name, _ in reader.shard_table.files()}
    for path in (store / SIGNALS).glob("*/c.*"):
        if path.relative_to(store).as_posix() not in files:  # of shards that are holes alone now
            path.unlink()
    private = [
        each(store)
        for each in (sources_beside, fingerprints_beside, changed_beside, unmatched_beside)
    ]
    killed = [path.with_name(f".{path.name}.tmp") for path in private]
    for path in chain(store.rglob(".*.tmp"), killed):  # of any command that was killed
        path.unlink(missing_ok=True)
    for folder in (store, *(path for path in store.rglob("*") if path.is_dir())):
        sync_folder(folder)
    remove_sources(store, recordings)
    keep_fingerprints(reader, before)
    for listed in (changed_beside(store), unmatched_beside(store)):  # they can be made again
        listed.unlink(missing_ok=True)
    (store / ERASING).unlink()
    sync_folder(store)
