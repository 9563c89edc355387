"""Files -> store: freeze the inputs, let workers encode, let one writer write, seal."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ecgfast import log
from ecgfast.convert.plan import (
    Plan,
    Spec,
    begun,
    check_free,
    finished,
    freeze,
    freeze_inputs,
    thaw,
    work_folder,
)
from ecgfast.convert.pool import Crew
from ecgfast.convert.seal import seal_converted
from ecgfast.convert.work import Lines, Settings, convert_lines
from ecgfast.errors import ConfigError, FormatError
from ecgfast.ingest.inventory import discover, take_inventory
from ecgfast.store.csv_files import write_passed_over
from ecgfast.store.format import FORMAT_VERSION
from ecgfast.store.manifest import Manifest, read_manifest
from ecgfast.store.outcomes import Cursor, Outcomes
from ecgfast.store.patients import Pseudonyms, read_key, read_or_create_key
from ecgfast.store.writer import StoreWriter
from ecgfast.vocabulary import PatientIds

_BATCH_FILES = 32


def convert_files(
    paths: list[Path],
    out: Path,
    options: Callable[..., Settings],
    *,
    key: Path,
    keep: bool,
    patient_ids: PatientIds,
    workers: int,
) -> Manifest:
    """Convert files and folders, or go on where an earlier run stopped.

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
    with Crew(convert_lines, 1 if finished(out) else workers) as crew:
        # Read and found before anything else is written: a wrong path leaves nothing behind.
        known = read_key(key) if key.exists() else None
        new = None if finished(out) or begun(out) else _freeze_inputs(paths, out)
        pseudonyms = Pseudonyms(known or _key(key, new=new is not None), keep, patient_ids)
        settings = options(pseudonyms=pseudonyms)
        spec: Spec = {
            "sources": [str(path.resolve()) for path in paths],
            "codec": settings.codec,
            "window": settings.window,
            "short": settings.short,
            "quality": settings.quality,
            "keep_identifiers": keep,
            "patient_ids": patient_ids,
            "one_ecg_per_patient": settings.one_ecg_per_patient,
            "split_seed": settings.split_seed,
            "columns": list(settings.columns),
            "ages_over_89": settings.ages_over_89,
            "key": pseudonyms.fingerprint,
            "format_version": FORMAT_VERSION,
        }
        # Keyed: the manifest must not let anybody test guesses of a readable path.
        request = pseudonyms.digest("request", json.dumps(spec, sort_keys=True)).hex()
        if finished(out):
            return _same_store(out, request, paths)
        plan = thaw(out, spec) if new is None else freeze(out, spec, new)
        with StoreWriter(out, plan.work) as writer:
            _write_all(plan, writer, settings, crew)
    if plan.passed_over:
        write_passed_over(out, plan.examples)
    found = {"source_files": plan.num_files, "passed_over": plan.passed_over}
    return seal_converted(out, writer, settings, request, plan.num_inputs, found)


def _same_store(out: Path, request: str, paths: list[Path]) -> Manifest:
    manifest = read_manifest(out)
    if manifest["request"] != request:
        raise ConfigError(
            f"--out {out} holds a finished store made from other sources or options; "
            "choose another folder"
        )
    shutil.rmtree(work_folder(out), ignore_errors=True)  # of a crash after the last step
    log.info(f"{out} is finished already")
    _tell_of_changes(out, manifest["counts"]["inputs"], paths)
    return manifest


def _tell_of_changes(out: Path, before: int, paths: list[Path]) -> None:
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
    return freeze_inputs(out, take_inventory(paths))


def _write_all(
    plan: Plan, writer: StoreWriter, settings: Settings, crew: Crew[Lines, Outcomes]
) -> None:
    start = writer.cursor
    with log.progress("convert", total=plan.num_inputs) as advance:
        advance(start.position)
        if start.position:
            log.info(f"going on at input {start.position:,} of {plan.num_inputs:,}")
        for outcomes in crew.map(_tasks(plan, start, settings)):
            writer.add(outcomes)
            advance(outcomes.num_inputs)
    writer.finish(Cursor(position=plan.num_inputs))


def _tasks(plan: Plan, start: Cursor, settings: Settings) -> Iterator[Lines]:
    for lines in plan.batches(start.position, _BATCH_FILES):
        yield lines, start, settings
        start = Cursor(position=start.position + len(lines))


def _key(path: Path, *, new: bool) -> bytes:
    """The store's key; a new one only for a new store."""
    if not new:
        return read_key(path)
    log.info(f"made the pseudonym key {path}: keep it, and keep it apart from the store")
    return read_or_create_key(path)
