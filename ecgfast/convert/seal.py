"""The last step of a convert: mark duplicates, draw splits, write tables, then the manifest."""

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ecgfast import log
from ecgfast.convert.collect import DRAWN, Collected, collect, table_on_disk
from ecgfast.convert.marks import codes_of, mark_duplicates
from ecgfast.convert.plan import ConvertOptions, Plan, damaged, request_of, work_folder
from ecgfast.convert.preprocess import MAX_INVALID_SHARE
from ecgfast.convert.units import UnitFacts, read_unit, remove_temporaries
from ecgfast.errors import CorruptStoreError, EcgfastError, FormatError
from ecgfast.labels.assign import assign_splits, known_target, one_ecg_each, warn_of_unnamed
from ecgfast.labels.columns import set_column
from ecgfast.records import NUM_TIMESTEPS, SAMPLING_RATE_HZ
from ecgfast.store.csv_files import write_passed_over, write_quarantine, write_sources
from ecgfast.store.durable import write_durably
from ecgfast.store.fingerprints import write_fingerprints
from ecgfast.store.format import (
    PSEUDONYM,
    QUARANTINE,
    RECORDS,
    SHARDS,
    decode_chunks,
    key_beside,
    passed_over_beside,
    sources_beside,
)
from ecgfast.store.manifest import Manifest, identity_of, write_manifest
from ecgfast.store.patients import Pseudonyms, retained, with_pseudonyms
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
_SHOWN_UNITS = 10
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


def seal(plan: Plan, *, is_labelled: bool = False) -> Manifest:
    """Seal a store whose units are finished.

    Args:
        plan: of the store; the caller holds its lock.
        is_labelled: labels are joined next, which will warn of what the store lacks.
    Raises:
        EcgfastError: units are missing.
        FormatError: not one input could be converted.
        ResumeError: the units are not those of the plan.
    """
    manifest = _sealed(plan, is_labelled=is_labelled)
    if not plan.url:  # else it goes when the tables are there
        shutil.rmtree(work_folder(plan.out))  # not before: on NFS what is mapped has a name there
    return manifest


def _sealed(plan: Plan, *, is_labelled: bool) -> Manifest:
    units = finished_units(plan)
    shards = shards_of(plan, units)
    pseudonyms = plan.pseudonyms() if "sources" in plan.spec else None
    if pseudonyms is None:
        found, content = None, _sealed_from_store(plan, is_labelled=is_labelled)
    else:
        found = collect(plan)
        facts = (plan, pseudonyms, units, shards, found)
        content = _sealed_from_files(*facts, is_labelled=is_labelled)
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
    if found is not None:
        write_fingerprints(plan.out, content["identity"], found.slots, found.packed)
    return write_manifest(plan.out, content)


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


def _sealed_from_files(
    plan: Plan,
    pseudonyms: Pseudonyms,
    units: list[UnitFacts],
    shards: ShardTable,
    found: Collected,
    *,
    is_labelled: bool,
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
    work = work_folder(out)
    stored = Shards(Path(plan.url or out), found.slots, shards)  # not sealed yet
    records = mark_duplicates(
        found.table,
        found,
        lambda numbers: decode_chunks(options.codec, *stored.read(numbers)),
        work,
    )
    records = with_site_flags(records, options.limits)
    # By number: what draws the splits would hold all ids in memory.
    patients = pa.array(codes_of(records["patient_id"]))
    records = set_column(records, "patient_id", patients)
    records = table_on_disk(work, records.to_batches(), records.schema)
    records, splits = assign_splits(
        records,
        records["patient_key"],
        seed=options.split_seed,
        target=known_target(records, None),
        one_ecg_per_patient=options.one_ecg_per_patient,
        drawn_by="convert",
    )
    records = table_on_disk(work, records.to_batches(), records.schema)
    kinds = joined_kinds(each.kinds for each in units)
    schema = records_schema(kinds, [PSEUDONYM] if pseudonyms.keep else [])
    table = write_table(out, whole_rows(plan, records, kinds, pseudonyms), schema)
    if plan.passed_over:
        write_passed_over(out, plan.examples)
    log_left_out(found.left_out)
    if not is_labelled:
        warn_of_lacks(records, schema.names, options)
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


def whole_rows(
    plan: Plan, drawn: pa.Table, kinds: Mapping[str, str], pseudonyms: Pseudonyms
) -> Iterator[pa.Table]:
    """The rows of records.parquet, a unit at a time."""
    first = 0
    for unit in plan.units:
        own = read_rows(plan.unit_file(unit))
        rows = with_labels(own, kinds)
        for name in DRAWN:
            rows = set_column(rows, name, drawn[name].slice(first, rows.num_rows))
        first += rows.num_rows
        yield with_pseudonyms(rows, own["patient_key"].to_pylist(), pseudonyms)


def log_left_out(left_out: Mapping[str, int]) -> None:
    """Count what stays out; the names of fields are not logged, they can name patients."""
    if left_out:
        kinds = ", ".join(f"{kind} of {left_out[kind]:,} records" for kind in sorted(left_out))
        log.info(
            f"left out of the store: {kinds}; --columns NAME takes a field that you know to be "
            "safe, such as diagnosis"
        )


def warn_of_lacks(records: pa.Table, names: Iterable[str], options: ConvertOptions) -> None:
    """Warn of what a new store lacks: patients, and columns that were asked for."""
    warn_of_unnamed(records, one_ecg_per_patient=options.one_ecg_per_patient)
    for name in sorted(set(options.columns) - set(names)):
        log.warning(f"--columns: no recording has a field {name!r}")


def any_synthetic(flags: pa.ChunkedArray) -> bool:
    """Whether a record has the flag "synthetic"."""
    return bool(pc.any(pc.match_substring_regex(flags, r"(^|;)synthetic(;|$)")).as_py())


def _sealed_from_store(plan: Plan, *, is_labelled: bool) -> Manifest:
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
    if not is_labelled:
        warn_of_unnamed(records, one_ecg_per_patient=one_ecg_each(reader))
    content = {name: reader.manifest[name] for name in _COPIED if name in reader.manifest}
    return content | {"files": files}


def _copy(source: Path, store: Path) -> dict[str, int | str]:
    return write_durably(store / source.name, [source.read_bytes()])
