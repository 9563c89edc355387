"""`convert`: freeze the inputs, let workers encode, let one writer write, seal."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from ecgfast import log
from ecgfast.convert.plan import Plan, Spec, finished, resume_or_freeze, work_folder
from ecgfast.convert.pool import available_cores, in_order
from ecgfast.convert.preprocess import Short, Window
from ecgfast.convert.seal import seal_converted
from ecgfast.convert.transcode import transcode
from ecgfast.convert.work import Quality, Settings, convert_batch
from ecgfast.errors import ConfigError
from ecgfast.labels import label_store
from ecgfast.store.durable import store_lock
from ecgfast.store.format import FORMAT_VERSION, MANIFEST, Codec, key_beside
from ecgfast.store.journal import Cursor
from ecgfast.store.manifest import Manifest, read_manifest
from ecgfast.store.pseudonyms import Pseudonyms, read_key, read_or_create_key
from ecgfast.store.writer import StoreWriter

OnBad = Literal["quarantine", "fail"]

_BATCH_FILES = 32


@dataclass(frozen=True, kw_only=True)
class ConvertSummary:
    """What a convert did; inputs = converted + quarantined.

    Attributes:
        store: the finished store.
        num_inputs: files (or rows of batch files) found.
        num_converted: inputs with at least one record in the store.
        num_quarantined: inputs without; quarantine.csv says why for each.
        num_records: records in the store, more than inputs with `--window all`.
        failed: True when `--on-bad fail` was asked for and an input was quarantined (exit code 1).
    """

    store: Path
    num_inputs: int
    num_converted: int
    num_quarantined: int
    num_records: int
    failed: bool


def convert(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    labels: str | Path | None = None,
    codec: Codec = "ecgpack",
    workers: int | None = None,
    window: Window = "first",
    short: Short = "quarantine",
    quality: Quality = "flag",
    on_bad: OnBad = "quarantine",
    key_file: str | Path | None = None,
    keep_identifiers: bool = False,
) -> ConvertSummary:
    """Convert files or folders, or transcode one store; the same call goes on after any crash.

    With more than one worker the calling script needs `if __name__ == "__main__":`, as everything
    that spawns processes does.

    Args:
        sources: files and folders, or one store.
        out: folder of the new store; STORE.key and STORE.sources.csv appear beside it.
        labels: CSV to join afterwards, as `ecgfast label` does.
        codec: "ecgpack", "zstd" or "none".
        workers: processes; None takes the cores that this process may use.
        window: of records longer than 5000 timesteps the "first", or "all" whole windows.
        short: "quarantine" records shorter than 5000 timesteps or "pad" them with 0 microvolt.
        quality: "flag" what the signal checks find, or "strict": quarantine it.
        on_bad: "fail" marks the summary as failed when an input was quarantined.
        key_file: pseudonym key, made if it does not exist; None means STORE.key.
        keep_identifiers: keep readable ids instead of pseudonyms.
    Raises:
        ConfigError, FormatError: a wrong option or source.
        ResumeError: `out` was begun with other options or sources.
        EcgfastError: the disk is full or read-only, or another process writes this store.
    """
    _check(codec=(codec, Codec), window=(window, Window), short=(short, Short))
    _check(quality=(quality, Quality), on_bad=(on_bad, OnBad))
    paths, out = [Path(source) for source in sources], Path(out)
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}")
    stores = [path for path in paths if (path / MANIFEST).exists()]
    with store_lock(out):
        if stores:
            if len(paths) > 1 or (window, short, quality) != ("first", "quarantine", "flag"):
                raise ConfigError(
                    f"{stores[0]} is a store, which is transcoded alone and as it is; give only "
                    "--out, --codec and --workers with it"
                )
            manifest = transcode(paths[0], out, codec=codec, workers=workers)
        else:
            key = Path(key_file) if key_file is not None else key_beside(out)
            pseudonyms = Pseudonyms(_key(out, key), keep=keep_identifiers)
            settings = Settings(
                codec=codec, window=window, short=short, quality=quality, pseudonyms=pseudonyms
            )
            manifest = _convert_files(paths, out, settings, workers)
    if labels is not None:
        label_store(out, labels, key_file=None if key_file is None else Path(key_file))
    counts = manifest["counts"]
    return ConvertSummary(
        store=out,
        num_inputs=counts["inputs"],
        num_converted=counts["converted"],
        num_quarantined=counts["quarantined"],
        num_records=counts["records"],
        failed=on_bad == "fail" and counts["quarantined"] > 0,
    )


def _convert_files(paths: list[Path], out: Path, settings: Settings, workers: int) -> Manifest:
    spec: Spec = {
        "sources": [str(path.resolve()) for path in paths],
        "codec": settings.codec,
        "window": settings.window,
        "short": settings.short,
        "quality": settings.quality,
        "keep_identifiers": settings.pseudonyms.keep,
        "key": settings.pseudonyms.fingerprint,
        "format_version": FORMAT_VERSION,
    }
    # Keyed: the manifest must not let anybody test guesses of a readable path.
    request = settings.pseudonyms.digest("request", json.dumps(spec, sort_keys=True)).hex()
    if finished(out):
        manifest = read_manifest(out)
        if manifest["request"] != request:
            raise ConfigError(
                f"--out {out} holds a finished store made from other sources or options; "
                "choose another folder"
            )
        shutil.rmtree(work_folder(out), ignore_errors=True)
        log.info(f"{out} is finished already")
        return manifest
    plan = resume_or_freeze(out, spec, paths)
    writer = StoreWriter(out, plan.work)
    _write_all(plan, writer, settings, workers)
    return seal_converted(out, plan.work, writer, settings, request, plan.num_inputs)


def _write_all(plan: Plan, writer: StoreWriter, settings: Settings, workers: int) -> None:
    start = writer.cursor
    position, done = start.position, start.outcome
    left = plan.num_inputs - position
    workers = max(1, min(workers, -(-left // _BATCH_FILES)))
    batches = plan.batches(position, _BATCH_FILES)
    with log.progress("convert", total=plan.num_inputs) as advance:
        advance(position)
        if position:
            log.info(f"going on at input {position:,} of {plan.num_inputs:,}")
        work = partial(convert_batch, settings=settings)
        for results in in_order(work, batches, workers=workers):
            for outcomes in results:
                for number, outcome in enumerate(outcomes[done:], done + 1):
                    writer.add(outcome, Cursor(position=position, outcome=number))
                position, done = position + 1, 0
            advance(len(results))
    writer.finish(Cursor(position=plan.num_inputs))


def _key(out: Path, path: Path) -> bytes:
    """The store's key; a new one only for a new store."""
    if finished(out) or work_folder(out).exists():
        return read_key(path)
    if not path.exists():
        log.info(f"made the pseudonym key {path}: keep it, and keep it apart from the store")
    return read_or_create_key(path)


def _check(**options: tuple[str, object]) -> None:
    for name, (value, kind) in options.items():
        allowed = get_args(kind)
        if value not in allowed:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} must be one of {', '.join(allowed)}, got {value!r}")
