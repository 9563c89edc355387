"""The last step of a convert: mark duplicates, draw splits, write tables, then the manifest."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.convert.marks import mark_duplicates
from ecgfast.convert.measures import FINGERPRINT_BYTES, unpacked_fingerprints
from ecgfast.convert.plan import Plan, damaged, request_of, work_folder
from ecgfast.convert.preprocess import MAX_INVALID_SHARE
from ecgfast.convert.units import UnitFacts, read_unit, remove_temporaries
from ecgfast.errors import CorruptStoreError, EcgfastError, FormatError
from ecgfast.labels.assign import assign_splits, known_target
from ecgfast.labels.columns import set_column
from ecgfast.records import NUM_TIMESTEPS, SAMPLING_RATE_HZ
from ecgfast.store.csv_files import write_passed_over, write_quarantine, write_sources
from ecgfast.store.durable import write_durably
from ecgfast.store.fingerprints import write_fingerprints
from ecgfast.store.format import (
    QUARANTINE,
    RECORDS,
    SHARDS,
    decode_chunks,
    key_beside,
    passed_over_beside,
    sources_beside,
)
from ecgfast.store.manifest import Manifest, identity_of, write_manifest
from ecgfast.store.patients import PSEUDONYM, Pseudonyms, retained, with_pseudonyms
from ecgfast.store.quality import with_site_flags
from ecgfast.store.reader import open_store
from ecgfast.store.shard_table import ShardTable
from ecgfast.store.shards import Shards
from ecgfast.store.table import (
    joined_kinds,
    read_rows,
    read_text,
    records_schema,
    with_labels,
    write_table,
)

_PATIENCE_S = 60.0  # for units that other machines finished: a share shows new files late
_NO_FINGERPRINT = b"\xff" * FINGERPRINT_BYTES  # no beats
_SHOWN_UNITS = 10
_DRAWN = ("flags", "quality", "duplicate_of", "split", "fold")  # columns that no unit knows alone
_ASKED = (
    *("record_id", "patient_id", "site", "ejection_fraction", "content", "start_timestep"),
    *("position", "amplitude_uv"),
)
_COPIED = (  # manifest entries of a store that is transcoded; earlier versions lack some
    *(
        "preprocessing",
        "quality",
        "quality_limits",
        "counts",
        "synthetic",
        "identifiers",
        "key_fingerprint",
    ),
    *("labels", "patients", "splits", "retained", "left_out", "source_files", "passed_over"),
    "columns",
)


def seal(plan: Plan) -> Manifest:
    """Seal a store whose units are finished.

    Args:
        plan: of the store; the caller holds its lock.
    Raises:
        EcgfastError: units are missing.
        FormatError: not one input could be converted.
        ResumeError: the units are not those of the plan.
    """
    units = finished_units(plan)
    shards = shards_of(plan, units)
    pseudonyms = plan.pseudonyms() if "sources" in plan.spec else None
    found = Collected()
    if pseudonyms is None:
        content = _sealed_from_store(plan)
    else:
        content = _sealed_from_files(plan, pseudonyms, units, shards, found)
    from ecgfast.store.zarr_codec import write_metadata  # zarr takes half a second to import

    num_records = sum(each.num_records for each in units)
    counts = {"num_slots": plan.num_slots, "num_records": num_records}
    content |= {"codec": plan.spec["codec"], "request": request_of(plan.spec, pseudonyms)}
    content |= counts
    content["files"][SHARDS] = write_table(plan.out, [shards.table], shards.table.schema, SHARDS)
    content["files"] |= write_metadata(
        plan.out, plan.spec["codec"], num_slots=plan.num_slots, num_records=num_records
    )
    content["identity"] = identity_of(content, shards.files())
    remove_temporaries(plan.out)
    if pseudonyms is not None:
        slots, packed = np.concatenate(found.slots), found.fingerprints()
        write_fingerprints(plan.out, content["identity"], slots, packed)
    manifest = write_manifest(plan.out, content)
    if not plan.url:  # else it goes when the tables are there
        shutil.rmtree(work_folder(plan.out))
    return manifest


def shards_of(plan: Plan, units: list[UnitFacts]) -> ShardTable:
    """The shards that the units of a plan have made.

    Raises:
        ResumeError: the units are not those of the plan.
    """
    num_inputs = sum(each.num_inputs for each in units)
    if num_inputs != plan.num_inputs:
        path = work_folder(plan.out)
        raise damaged(plan.out, path, f"it has {num_inputs:,} inputs of {plan.num_inputs:,}")
    made = [pair for pair in zip(plan.units, units, strict=True) if pair[1].files]
    return ShardTable.of((unit, each.num_records, each.files) for unit, each in made)


def finished_units(plan: Plan) -> list[UnitFacts]:
    """What every unit says; each is opened by its name, because shares list new files late.

    Raises:
        EcgfastError: some are missing.
    """
    until, waits = time.monotonic() + _PATIENCE_S, False
    found: dict[int, UnitFacts] = {}
    missing = list(plan.units)
    while True:
        for unit in missing:
            try:
                found[unit] = read_unit(plan, unit)
            except FileNotFoundError:
                continue
        missing = [unit for unit in missing if unit not in found]
        if not missing:
            return [found[unit] for unit in plan.units]
        if time.monotonic() >= until:
            shown = ", ".join(map(str, missing[:_SHOWN_UNITS]))
            more = " ..." if len(missing) > _SHOWN_UNITS else ""
            raise EcgfastError(
                f"{len(missing):,} of {len(plan.units):,} units are missing: {shown}{more}; run "
                f"ecgfast convert --out {plan.out} --stage units, then --stage seal again"
            )
        if not waits:
            log.info(
                f"waiting up to {_PATIENCE_S:.0f} s for {len(missing):,} of {len(plan.units):,} "
                "units: shares show late what other machines wrote"
            )
            waits = True
        time.sleep(1)


@dataclass
class Collected:
    """What one pass over the rows of all units collects: about 100 bytes a record."""

    num_converted: int = 0  # inputs: one can give many windows
    patient_keys: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    slots: list[NDArray[np.int64]] = field(default_factory=list)
    packed: list[bytes] = field(default_factory=list)  # fingerprints of each unit
    segments: dict[int, list[str]] = field(default_factory=dict)  # by the joined record's number

    def fingerprints(self) -> NDArray[np.uint8]:
        """(N, bytes) uint8 of all records."""
        return np.frombuffer(b"".join(self.packed), np.uint8).reshape(-1, FINGERPRINT_BYTES)

    def rows(self, plan: Plan) -> Iterator[pa.Table]:
        """Yield what the seal asks of the rows of each unit, and collect the rest."""
        last = -1
        for unit in plan.units:
            table = read_rows(plan.unit_file(unit))
            if table["segments"].null_count < table.num_rows:
                names = enumerate(table["segments"].to_pylist(), len(self.patient_keys))
                self.segments |= {number: json.loads(each) for number, each in names if each}
            positions = table["position"].to_numpy()
            self.num_converted += int(np.count_nonzero(np.diff(positions, prepend=last)))
            last = positions[-1] if positions.size else last
            self.patient_keys += table["patient_key"].to_pylist()
            for words in table["left_out"].to_pylist():
                self.left_out.update(words.split(";") if words else ())
            self.slots.append(table["row"].to_numpy())
            packed = pc.fill_null(table["fingerprint"], _NO_FINGERPRINT).to_pylist()
            self.packed.append(b"".join(packed))
            yield table.select([*_ASKED, *_DRAWN])


def _sealed_from_files(
    plan: Plan,
    pseudonyms: Pseudonyms,
    units: list[UnitFacts],
    shards: ShardTable,
    found: Collected,
) -> Manifest:
    """Write the tables of a store that was made from files; returns entries of its manifest."""
    out, options = plan.out, plan.options
    quarantine = write_quarantine(out, texts(plan, "quarantine"))
    write_sources(sources_beside(out), texts(plan, "sources"))
    if not shards.table.num_rows:
        raise FormatError(
            f"none of {plan.num_inputs} inputs could be converted; {sources_beside(out)} says why "
            f"for each: correct them, then remove {out} and {work_folder(out)} to begin again"
        )
    records = pa.concat_tables(found.rows(plan))
    stored = Shards(Path(plan.url or out), np.concatenate(found.slots), shards)  # not sealed yet
    records = mark_duplicates(
        records,
        found.segments,
        *unpacked_fingerprints(found.packed),
        lambda numbers: decode_chunks(options.codec, *stored.read(numbers)),
    )
    records = with_site_flags(records, options.limits)
    records, splits = assign_splits(
        records,
        found.patient_keys,
        seed=options.split_seed,
        target=known_target(records, None),
        one_ecg_per_patient=options.one_ecg_per_patient,
        drawn_by="convert",
    )
    records = with_pseudonyms(records, found.patient_keys, pseudonyms)
    kinds = joined_kinds(each.kinds for each in units)
    schema = records_schema(kinds, [PSEUDONYM] if pseudonyms.keep else [])
    table = write_table(out, whole_rows(plan, records, kinds), schema)
    if plan.passed_over:
        write_passed_over(out, plan.examples)
    log_left_out(found.left_out)
    return {
        "preprocessing": {
            "sampling_rate_hz": SAMPLING_RATE_HZ,
            "num_timesteps": NUM_TIMESTEPS,
            "window": options.window,
            "short": options.short,
            "max_invalid_share": MAX_INVALID_SHARE,
            "resampling": "scipy.signal.resample_poly, padtype line",
        },
        "quality": options.quality,
        "quality_limits": options.limits,
        "counts": {
            "inputs": plan.num_inputs,
            "converted": found.num_converted,
            "quarantined": plan.num_inputs - found.num_converted,
            "records": records.num_rows,
            "duplicates": records.num_rows - records["duplicate_of"].null_count,
        },
        "synthetic": any_synthetic(records["flags"]),
        "identifiers": "kept" if pseudonyms.keep else "pseudonyms",
        "key_fingerprint": pseudonyms.fingerprint,
        "patients": {"ids": pseudonyms.patient_ids, "one_ecg_each": options.one_ecg_per_patient},
        "splits": splits,
        "labels": None,
        "retained": retained(
            schema.names,
            sites=records["site"].null_count < records.num_rows,
            identifiers=pseudonyms.keep,
            ages_over_89=options.keep_ages_over_89,
        ),
        "left_out": dict(found.left_out),
        **({"columns": list(options.columns)} if options.columns else {}),
        "source_files": plan.num_files,
        "passed_over": plan.passed_over,
        "files": {QUARANTINE: quarantine, RECORDS: table},
    }


def texts(plan: Plan, name: str) -> Iterator[str]:
    """What the units have to say in a table, by its name."""
    for unit in plan.units:
        yield read_text(plan.unit_file(unit))[name]


def whole_rows(plan: Plan, drawn: pa.Table, kinds: Mapping[str, str]) -> Iterator[pa.Table]:
    """The rows of records.parquet, a unit at a time."""
    first = 0
    names = [*_DRAWN, *(name for name in drawn.column_names if name == PSEUDONYM)]
    for unit in plan.units:
        rows = with_labels(read_rows(plan.unit_file(unit)), kinds)
        for name in names:
            rows = set_column(rows, name, drawn[name].slice(first, rows.num_rows))
        first += rows.num_rows
        yield rows


def log_left_out(left_out: Mapping[str, int]) -> None:
    """Count what stays out; the names of fields are not logged, they can name patients."""
    if left_out:
        kinds = ", ".join(f"{kind} of {left_out[kind]:,} records" for kind in sorted(left_out))
        log.info(
            f"left out of the store: {kinds}; --columns NAME takes a field that you know to be "
            "safe, such as diagnosis"
        )


def any_synthetic(flags: pa.ChunkedArray) -> bool:
    """Whether a record has the flag "synthetic"."""
    return bool(pc.any(pc.match_substring_regex(flags, r"(^|;)synthetic(;|$)")).as_py())


def _sealed_from_store(plan: Plan) -> Manifest:
    """Write the tables of a store that was transcoded; returns entries of its manifest."""
    out, source = plan.out, Path(plan.spec["store"])
    reader = open_store(source)
    records = set_column(reader.records, "row", pa.array(range(len(reader)), pa.int64()))
    files = {
        RECORDS: write_table(out, [records], records.schema),
        QUARANTINE: _copy(source / QUARANTINE, out),
    }
    if files[QUARANTINE] != reader.manifest["files"][QUARANTINE]:
        raise CorruptStoreError(
            f"{source / QUARANTINE} is damaged: its digest is wrong; restore it from a copy"
        )
    for beside in (key_beside, sources_beside, passed_over_beside):
        if beside(source).exists():
            write_durably(beside(out), [beside(source).read_bytes()], mode=0o600)
    content = {name: reader.manifest[name] for name in _COPIED if name in reader.manifest}
    return content | {"files": files}


def _copy(source: Path, store: Path) -> dict[str, int | str]:
    return write_durably(store / source.name, [source.read_bytes()])
