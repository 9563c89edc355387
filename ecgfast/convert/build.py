"""A store is built from files, or from another store: list, work in parallel, write in order, seal.

The list of inputs is frozen before the first one is read, and the writer journals each shard: the
same command resumes after any crash, and ends in the same bytes.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ecgfast import log
from ecgfast.convert.plan import (
    Plan,
    Spec,
    check_free,
    is_finished,
    is_frozen,
    read_plan,
    work_folder,
    write_inputs,
    write_plan,
)
from ecgfast.convert.pool import WorkerPool
from ecgfast.convert.seal import seal_from_files
from ecgfast.convert.work import ConvertOptions, InputLines, encode_lines
from ecgfast.errors import ConfigError, CorruptStoreError, FormatError
from ecgfast.ingest.inventory import discover, take_inventory
from ecgfast.store.csv_files import write_passed_over
from ecgfast.store.durable import write_durably
from ecgfast.store.format import (
    FORMAT_VERSION,
    LEAD_ARRAYS,
    QUARANTINE,
    RECORDS,
    encode_chunks,
    key_beside,
    passed_over_beside,
    sources_beside,
)
from ecgfast.store.manifest import Manifest, read_manifest
from ecgfast.store.outcomes import Cursor, EncodedRecord, Outcomes, in_columns
from ecgfast.store.patients import Pseudonyms, read_key, read_or_create_key
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.store.writer import StoreWriter
from ecgfast.vocabulary import Codec, PatientIds

_BATCH_FILES, _BATCH_RECORDS = 32, 64
_COPIED = (  # manifest entries of a store that is transcoded; earlier versions lack some
    *("preprocessing", "quality", "counts", "synthetic", "identifiers", "key_fingerprint"),
    *("labels", "patients", "splits", "retained", "left_out", "source_files", "passed_over"),
)


def build_from_files(
    paths: list[Path],
    out: Path,
    options: Callable[..., ConvertOptions],
    *,
    key: Path,
    keep: bool,
    patient_ids: PatientIds,
    workers: int,
) -> Manifest:
    """Convert files and folders, or resume where an earlier run stopped.

    Args:
        paths: sources.
        out: folder of the store; the caller holds its lock.
        options: gives the settings when it is called with `pseudonyms`.
        key: file of the pseudonym key.
        keep: keep readable ids.
        patient_ids: whose the patients' ids are, a site's or everybody's.
        workers: processes.
    Raises:
        ConfigError: `out` holds something else.
        ResumeError: `out` was begun with other options or sources.
    """
    with WorkerPool(encode_lines, 1 if is_finished(out) else workers) as pool:
        # Read and listed before anything else is written: a wrong path leaves nothing behind.
        known = read_key(key) if key.exists() else None
        new = None if is_finished(out) or is_frozen(out) else _freeze_inputs(paths, out)
        pseudonyms = Pseudonyms(known or _key(key, new=new is not None), keep, patient_ids)
        settings = options(pseudonyms=pseudonyms)
        spec = _spec(paths, settings)
        # Keyed: the manifest must not let anybody test guesses of a readable path.
        request = pseudonyms.digest("request", json.dumps(spec, sort_keys=True)).hex()
        if is_finished(out):
            other = "a finished store made from other sources or options"
            manifest = _same_store(out, request, other)
            log.info(f"{out} is finished already")
            _warn_of_changes(out, manifest["counts"]["inputs"], paths)
            return manifest
        plan = read_plan(out, spec) if new is None else write_plan(out, spec, new)
        with StoreWriter(out, plan.work) as writer:
            _encode_files(plan, writer, settings, pool)
    if plan.passed_over:
        write_passed_over(out, plan.examples)
    found = {"source_files": plan.num_files, "passed_over": plan.passed_over}
    return seal_from_files(out, writer, settings, request, plan.num_inputs, found)


def _spec(paths: list[Path], settings: ConvertOptions) -> Spec:
    """All that decides the bytes of a store from files."""
    pseudonyms = settings.pseudonyms
    return {
        "sources": [str(path.resolve()) for path in paths],
        "codec": settings.codec,
        "window": settings.window,
        "short": settings.short,
        "quality": settings.quality,
        "keep_identifiers": pseudonyms.keep,
        "patient_ids": pseudonyms.patient_ids,
        "one_ecg_per_patient": settings.one_ecg_per_patient,
        "split_seed": settings.split_seed,
        "columns": list(settings.columns),
        "ages_over_89": settings.ages_over_89,
        "key": pseudonyms.fingerprint,
        "format_version": FORMAT_VERSION,
    }


def _same_store(out: Path, request: str, other: str) -> Manifest:
    """The manifest of the finished store, if it answers the same request."""
    manifest = read_manifest(out)
    if manifest["request"] != request:
        raise ConfigError(f"--out {out} holds {other}; choose another folder")
    # Left by a process that died after writing the manifest.
    shutil.rmtree(work_folder(out), ignore_errors=True)
    return manifest


def _warn_of_changes(out: Path, before: int, paths: list[Path]) -> None:
    """Warn where the sources hold other inputs than the finished store; it needs them no more."""
    if not all(path.exists() for path in paths):
        return
    try:
        now = len(discover(paths))
    except (FormatError, OSError) as error:  # an emptied folder, a share that is not mounted
        log.warning(f"{out} stays as it is; its sources cannot be listed again: {error}")
        return
    if now != before:
        log.warning(
            f"the sources hold {now:,} inputs, {out} was made from {before:,} and stays as it is; "
            "give another --out to convert them all"
        )


def _freeze_inputs(paths: list[Path], out: Path) -> Plan:
    check_free(out)
    return write_inputs(out, take_inventory(paths))


def _key(path: Path, *, new: bool) -> bytes:
    """The store's key; a new one only for a new store."""
    if not new:
        return read_key(path)
    log.info(f"made the pseudonym key {path}: keep it, and keep it apart from the store")
    return read_or_create_key(path)


def _encode_files(
    plan: Plan,
    writer: StoreWriter,
    settings: ConvertOptions,
    pool: WorkerPool[InputLines, Outcomes],
) -> None:
    start = writer.cursor
    with log.progress("convert", total=plan.num_inputs) as advance:
        advance(start.position)
        if start.position:
            log.info(f"resuming at input {start.position:,} of {plan.num_inputs:,}")
        for outcomes in pool.map(_tasks(plan, start, settings)):
            writer.add(outcomes)
            advance(outcomes.num_inputs)
    writer.finish(Cursor(position=plan.num_inputs))


def _tasks(plan: Plan, start: Cursor, settings: ConvertOptions) -> Iterator[InputLines]:
    for lines in plan.batches(start.position, _BATCH_FILES):
        yield lines, start, settings
        start = Cursor(position=start.position + len(lines))


def build_from_store(source: Path, out: Path, *, codec: Codec, workers: int) -> Manifest:
    """Encode every record of a store again, bit for bit; the caller holds the lock of `out`.

    Raises:
        CorruptStoreError: the source is damaged.
        ConfigError: `out` is a finished store of something else.
    """
    reader = open_store(source)
    request = hashlib.sha256(f"{reader.identity} {codec}".encode()).hexdigest()
    if is_finished(out):
        return _same_store(out, request, "another finished store")
    spec = {"store": str(source.resolve()), "identity": reader.identity, "codec": codec}
    if is_frozen(out):
        plan = read_plan(out, spec)
    else:
        check_free(out)
        plan = write_plan(out, spec, Plan(work=work_folder(out), num_inputs=len(reader)))
    reader.check_digests()  # the new store's own digests would hide damage that is here already
    with StoreWriter(out, plan.work) as writer:
        _encode_store(reader, writer, codec, workers)
    tables = {
        RECORDS: _copy(source / reader.records_name, out / RECORDS),
        QUARANTINE: _copy(source / QUARANTINE, out / QUARANTINE),
    }
    if tables[QUARANTINE] != reader.manifest["files"][QUARANTINE]:
        raise CorruptStoreError(
            f"{source / QUARANTINE} is damaged: its digest is wrong; restore it from a copy"
        )
    for beside in (key_beside, sources_beside, passed_over_beside):
        if beside(source).exists():
            _copy(beside(source), beside(out), mode=0o600)
    content = {name: reader.manifest[name] for name in _COPIED if name in reader.manifest}
    return writer.seal(codec, tables, content | {"request": request})


def _encode_store(reader: StoreReader, writer: StoreWriter, codec: Codec, workers: int) -> None:
    leads = np.stack([getattr(reader, name) for name in LEAD_ARRAYS], axis=1)  # (N, 4, 12)
    position = writer.cursor.position
    batches = (
        range(first, min(first + _BATCH_RECORDS, len(reader)))
        for first in range(position, len(reader), _BATCH_RECORDS)
    )
    encode = partial(_encode_records, path=reader.path, codec=codec)
    total = len(reader)
    with WorkerPool(encode, workers) as pool, log.progress("transcode", total=total) as advance:
        advance(position)
        for chunks in pool.map(batches):
            records = [
                EncodedRecord(after=Cursor(position=n + 1), chunk=chunk, leads=leads[n], row={})
                for n, chunk in enumerate(chunks, position)
            ]
            writer.add(in_columns(records))
            position += len(chunks)
            advance(len(chunks))
    writer.finish(Cursor(position=len(reader)))


def _encode_records(records: range, path: Path, codec: Codec) -> list[bytes]:
    return encode_chunks(codec, _opened(path).read(records))


@lru_cache(maxsize=1)
def _opened(path: Path) -> StoreReader:
    return open_store(path)


def _copy(source: Path, target: Path, mode: int = 0o644) -> dict[str, int | str]:
    return write_durably(target, [source.read_bytes()], mode=mode)
