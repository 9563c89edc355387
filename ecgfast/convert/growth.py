"""The last step of an append: new rows behind the old ones, and a generation more."""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ecgfast_kernels.codec.signals import fingerprints
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.convert.collect import Collected, collect
from ecgfast.convert.marks import mark_appended
from ecgfast.convert.measures import (
    FINGERPRINT_BYTES,
    LEAST_TIMESTEPS,
    joined_fingerprints,
    packed_fingerprints,
)
from ecgfast.convert.plan import Plan, work_folder
from ecgfast.convert.seal import (
    any_synthetic,
    finished_units,
    log_left_out,
    shards_of,
    texts,
    whole_rows,
)
from ecgfast.convert.units import remove_temporaries
from ecgfast.labels.appended import with_appended_splits
from ecgfast.labels.assign import warn_of_unnamed
from ecgfast.labels.columns import set_column
from ecgfast.store.csv_files import add_sources, write_passed_over, write_quarantine
from ecgfast.store.fingerprints import read_fingerprints, write_fingerprints
from ecgfast.store.format import (
    NEXT,
    PSEUDONYM,
    QUARANTINE,
    RECORDS,
    SHARDS,
    decode_chunks,
    passed_over_beside,
)
from ecgfast.store.generations import commit, grown_from, settle
from ecgfast.store.manifest import Manifest, identity_of
from ecgfast.store.patients import Pseudonyms, retained
from ecgfast.store.quality import Limits, with_site_flags
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.store.shards import Shards
from ecgfast.store.table import joined_kinds, kinds_of, records_schema, write_table

_BLOCK_RECORDS = 1024  # whose fingerprints are made at a time: 120 MB of signals


def seal_append(plan: Plan) -> Manifest:
    """Seal what an append adds to a store; until the manifest is there, the old one counts.

    Args:
        plan: of the append; the caller holds the store's lock.
    Raises:
        EcgfastError: units are missing.
        ResumeError: the units are not those of the plan.
    """
    manifest = _sealed(plan)
    shutil.rmtree(work_folder(plan.out))  # not before: on NFS what is mapped has a name there
    return manifest


def _sealed(plan: Plan) -> Manifest:
    out = plan.out
    units = finished_units(plan)
    added = shards_of(plan, units)
    settle(out)
    reader = open_store(out)
    shards = reader.shard_table.joined(added, reader.generation + 1)
    found, pseudonyms = collect(plan), plan.pseudonyms()
    slots = np.concatenate([reader.slots, found.slots])
    stored = Shards(out, slots, shards)
    packed = np.concatenate([_known_fingerprints(reader), found.packed])
    new = mark_appended(
        reader.records,
        found.table,
        found,
        packed,
        lambda numbers: decode_chunks(reader.codec, *stored.read(numbers)),
        work_folder(out),
    )
    new = _with_site_flags(reader.records, new, plan.options.limits)
    new = with_appended_splits(
        reader.records,
        new,
        new["patient_key"].to_pylist(),
        splits=reader.manifest["splits"],
        one_ecg_per_patient=plan.options.one_ecg_per_patient,
    )
    kinds = joined_kinds(each.kinds for each in units)
    content = _entries(plan, reader, found, new, kinds, pseudonyms)
    from ecgfast.store.zarr_codec import write_metadata  # zarr takes half a second to import

    files = {
        RECORDS: _write_records(plan, reader, new, kinds, pseudonyms),
        QUARANTINE: _write_quarantine(plan, reader),
        SHARDS: write_table(out, [shards.table], shards.table.schema, SHARDS + NEXT),
        **write_metadata(
            out,
            reader.codec,
            num_slots=plan.num_slots,
            num_records=len(slots),
            suffix=NEXT,
        ),
    }
    content |= {"num_slots": plan.num_slots, "num_records": len(slots), "files": files}
    content["identity"] = identity_of(content, shards.files())
    add_sources(out, "".join(texts(plan, "sources")))
    manifest = commit(out, content, files)
    write_fingerprints(out, manifest["identity"], slots, packed)
    passed_over_beside(out).unlink(missing_ok=True)
    if plan.passed_over:
        write_passed_over(out, plan.examples)
    remove_temporaries(out)
    log_left_out(found.left_out)
    warn_of_unnamed(new, one_ecg_per_patient=plan.options.one_ecg_per_patient)
    return manifest


def _with_site_flags(old: pa.Table, new: pa.Table, limits: Limits) -> pa.Table:
    """Hold new records against all of their site; what is said of old ones stays."""
    names = ["site", "amplitude_uv", "quality"]
    schema = new.select(names).schema
    both = pa.concat_tables([_fitted(old, schema), new.select(names)])
    filled = both.set_column(2, "quality", pc.fill_null(both["quality"], ""))
    return set_column(new, "quality", with_site_flags(filled, limits)["quality"].slice(len(old)))


def _entries(
    plan: Plan,
    reader: StoreReader,
    found: Collected,
    new: pa.Table,
    kinds: Mapping[str, str],
    pseudonyms: Pseudonyms,
) -> Manifest:
    """The manifest's entries, without counts and digests of the arrays."""
    before = {key: value for key, value in reader.manifest.items() if key != "digest"}
    more = {
        "inputs": plan.num_inputs,
        "converted": found.num_converted,
        "quarantined": plan.num_inputs - found.num_converted,
        "records": new.num_rows,
        "duplicates": new.num_rows - new["duplicate_of"].null_count,
    }
    counts = {name: before["counts"][name] + count for name, count in more.items()}
    records = reader.records
    has_sites = any(each["site"].null_count < each.num_rows for each in (records, new))
    entries = before | grown_from(reader.manifest) | {"counts": counts}
    entries |= {
        "synthetic": before["synthetic"] or any_synthetic(new["flags"]),
        "retained": retained(
            {*records.column_names, *kinds},
            sites=has_sites,
            identifiers=pseudonyms.keep,
            ages_over_89=plan.options.keep_ages_over_89,
        ),
        "left_out": dict(Counter(before.get("left_out", {})) + found.left_out),
        "source_files": plan.num_files,
        "passed_over": plan.passed_over,
    }
    return entries | ({"columns": list(plan.options.columns)} if plan.options.columns else {})


def _write_records(
    plan: Plan,
    reader: StoreReader,
    new: pa.Table,
    kinds: Mapping[str, str],
    pseudonyms: Pseudonyms,
) -> dict[str, Any]:
    """Write records.parquet with the new rows; where a column's kinds differ, it holds text."""
    old = reader.records
    known = kinds_of(old.schema)
    both = joined_kinds([known, kinds])
    schema = records_schema(both, [PSEUDONYM] if pseudonyms.keep else [])
    for each in old.schema:  # such as dates, which labels brought
        schema = schema if each.name in schema.names else schema.append(each)
    for name, kind in known.items():
        if both[name] != kind:
            log.warning(f"column {name} held {kind} values and holds text from now on")
    parts = chain([old], whole_rows(plan, new, kinds, pseudonyms))
    return write_table(plan.out, (_fitted(each, schema) for each in parts), schema, RECORDS + NEXT)


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns of a schema; those that it lacks are empty."""
    columns: list[pa.ChunkedArray | pa.Array] = []
    for column in schema:
        if column.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, column.type))
        elif pa.types.is_string(column.type) and table[column.name].type != column.type:
            values = table[column.name].to_pylist()
            columns.append(pa.array([None if each is None else str(each) for each in values]))
        else:
            columns.append(table[column.name])
    return pa.table(columns, schema=schema)


def _write_quarantine(plan: Plan, reader: StoreReader) -> dict[str, Any]:
    """Write quarantine.csv with the new refusals: that of before is its beginning."""
    rest = reader.quarantine.decode().partition("\n")[2]
    return write_quarantine(plan.out, chain([rest], texts(plan, "quarantine")), QUARANTINE + NEXT)


def _known_fingerprints(reader: StoreReader) -> NDArray[np.uint8]:
    """(N, bytes) uint8 of a store's records, made from the signals where they are not known."""
    packed = np.empty((len(reader), FINGERPRINT_BYTES), np.uint8)
    slots, known = read_fingerprints(reader, FINGERPRINT_BYTES)
    here = np.isin(reader.slots, slots)
    packed[here] = known
    missing = np.flatnonzero(~here)
    if len(missing):
        log.info(f"fingerprints of {len(missing):,} records are made from their signals")
    with log.progress("fingerprints", total=len(missing)) as advance:
        for some in _blocks(missing):
            found = fingerprints(reader.read(some), least_timesteps=LEAST_TIMESTEPS)
            packed[some] = joined_fingerprints(packed_fingerprints(found))
            advance(len(some))
    return packed


def _blocks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), _BLOCK_RECORDS):
        yield rows[start : start + _BLOCK_RECORDS]
