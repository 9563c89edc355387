"""`convert`: files to a store, or a store to another codec."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args

import pyarrow.compute as pc

from ecgfast import log
from ecgfast.convert.build import build_from_files, build_from_store
from ecgfast.convert.work import ConvertOptions
from ecgfast.errors import ConfigError, EcgfastError
from ecgfast.labels.assign import warn_of_unnamed
from ecgfast.labels.columns import check_names
from ecgfast.labels.commands import label_store
from ecgfast.labels.table import check_labels
from ecgfast.store.csv_files import passed_over_examples
from ecgfast.store.durable import store_lock
from ecgfast.store.format import (
    MANIFEST,
    SIGNALS,
    key_beside,
    refuse_inside_store,
    sources_beside,
)
from ecgfast.store.manifest import Manifest
from ecgfast.store.reader import available_cores, open_store
from ecgfast.vocabulary import Codec, OnBad, PatientIds, Quality, Short, WindowChoice


@dataclass(frozen=True, kw_only=True)
class ConvertSummary:
    """What a convert did; inputs = converted + quarantined, and every other file has its kind.

    Attributes:
        store: the finished store.
        num_inputs: files (or rows of batch files) found.
        num_converted: inputs with at least one record in the store.
        num_quarantined: inputs without; quarantine.csv says why for each.
        num_records: records in the store, more than inputs with `--window all`.
        num_duplicates: records that are another record's ECG once more; None for a transcoded
            store that was made before they were counted.
        failed: True when `--on-bad fail` was asked for and an input was quarantined (exit code 1).
        num_files: files below the sources; None where the store does not know.
        passed_over: of them, those that nothing read, by kind; the others belong to inputs.
        examples: kind -> some of their readable paths, where the table beside the store has them.
    """

    store: Path
    num_inputs: int
    num_converted: int
    num_quarantined: int
    num_records: int
    num_duplicates: int | None
    failed: bool
    num_files: int | None = None
    passed_over: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)


def convert(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    labels: str | Path | None = None,
    columns: Sequence[str] | None = None,
    codec: Codec = "ecgpack",
    workers: int | None = None,
    window: WindowChoice = "first",
    short: Short = "quarantine",
    quality: Quality = "flag",
    on_bad: OnBad = "quarantine",
    key_file: str | Path | None = None,
    keep_identifiers: bool = False,
    patient_ids: PatientIds = "site",
    one_ecg_per_patient: bool = False,
    split_seed: int = 0,
    target: str | None = None,
    keep_ages_over_89: bool = False,
) -> ConvertSummary:
    """Convert files or folders, or transcode one store; the same call resumes after any crash.

    With more than one worker the calling script needs `if __name__ == "__main__":`, as everything
    that spawns processes does.

    Args:
        sources: files and folders, or one store.
        out: folder of the new store; STORE.key and STORE.sources.csv appear beside it.
        labels: CSV to join afterwards, as `ecgfast label` does.
        columns: what to take beside the ejection fraction: columns of that CSV, as `ecgfast label
            --columns` does, and fields of the recordings (sidecar keys, "diagnosis" as free text).
        codec: "ecgpack", "zstd" or "none".
        workers: processes that read and encode for this one, which writes; 1 does all in this
            process, None takes the cores that it may use.
        window: of records longer than 5000 timesteps the "first", or "all" whole windows.
        short: "quarantine" records shorter than 5000 timesteps, or "pad" those of 2500 or
            more with 0 microvolt.
        quality: "flag" what the signal checks find, or "strict": quarantine it.
        on_bad: "fail" marks the summary as failed when an input was quarantined.
        key_file: pseudonym key, made if it does not exist; None means STORE.key.
        keep_identifiers: keep readable ids instead of pseudonyms.
        patient_ids: "site" where each hospital numbers its own patients, "global" where one number
            is one person everywhere.
        one_ecg_per_patient: each record that names no patient is another patient; else such records
            get no split.
        split_seed: another seed is another division into train, valid and test.
        target: what a case is, such as "ejection_fraction<40": splits get equal shares of cases.
        keep_ages_over_89: keep these ages; else they are all 90.
    Raises:
        ConfigError, FormatError: a wrong option or source.
        ResumeError: `out` was begun with other options or sources.
        EcgfastError: the disk is full or read-only, or another process writes this store. Under
            `--strict` also: records are duplicates; the store is finished, labels joined.
    """
    _check(codec=(codec, Codec), window=(window, WindowChoice), short=(short, Short))
    _check(quality=(quality, Quality), on_bad=(on_bad, OnBad))
    _check(patient_ids=(patient_ids, PatientIds))
    paths, out = [Path(source) for source in sources], Path(out)
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}")
    if labels is None and target is not None:
        raise ConfigError(f"--target {target!r} needs --labels; ecgfast label takes both later")
    if labels is not None:  # a wrong table is refused now, not after hours of converting
        check_labels(Path(labels), columns)
    check_names(columns or ())
    key = Path(key_file) if key_file is not None else key_beside(out)
    _refuse_within(out, key)
    # An unfinished store is one too, and no folder without recordings.
    stores = [path for path in paths if (path / MANIFEST).exists() or (path / SIGNALS).exists()]
    with store_lock(out):
        if stores:
            own = (window, short, quality, patient_ids, one_ecg_per_patient, split_seed)
            # With a store as source, these belong to the labels that are joined.
            unused = labels is None and (columns or key_file or keep_ages_over_89)
            is_default = own == ("first", "quarantine", "flag", "site", False, 0)
            if len(paths) > 1 or not is_default or keep_identifiers or unused:
                raise ConfigError(
                    f"{stores[0]} is a store, which is transcoded alone and as it is; give only "
                    "--out, --codec and --workers with it"
                )
            manifest = build_from_store(paths[0], out, codec=codec, workers=workers)
        else:
            settings = partial(
                ConvertOptions,
                codec=codec,
                window=window,
                short=short,
                quality=quality,
                one_ecg_per_patient=one_ecg_per_patient,
                split_seed=split_seed,
                columns=tuple(columns or ()),
                ages_over_89=keep_ages_over_89,
            )
            manifest = build_from_files(
                paths,
                out,
                settings,
                key=key,
                keep=keep_identifiers,
                patient_ids=patient_ids,
                workers=workers,
            )
    if labels is not None:
        given = None if key_file is None else Path(key_file)
        _label(out, Path(labels), columns, target, given, keep_ages_over_89)
    else:
        records = open_store(out).records
        warn_of_unnamed(records, one_ecg_per_patient=one_ecg_per_patient)
        for name in sorted(set(columns or ()) - set(records.column_names)):
            log.warning(f"--columns: no recording has a field {name!r}")
    counts = manifest["counts"]
    if log.is_strict() and not stores and counts.get("duplicates"):
        _refuse_duplicates(out, counts["duplicates"])
    return _summary(out, manifest, failed=on_bad == "fail" and counts["quarantined"] > 0)


def _summary(out: Path, manifest: Manifest, *, failed: bool) -> ConvertSummary:
    counts = manifest["counts"]
    return ConvertSummary(
        store=out,
        num_inputs=counts["inputs"],
        num_converted=counts["converted"],
        num_quarantined=counts["quarantined"],
        num_records=counts["records"],
        num_duplicates=counts.get("duplicates"),
        failed=failed,
        num_files=manifest.get("source_files"),
        passed_over=manifest.get("passed_over", {}),
        examples=passed_over_examples(out),
    )


def _refuse_within(out: Path, key: Path) -> None:
    """Refuse a store in another store, and a key in any store."""
    refuse_inside_store(out.resolve().parent, "--out")
    refuse_inside_store(key, "--key-file")
    if key.resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"--key-file {key} lies in the store {out}, which is meant to be shared without its "
            "key; choose a place outside"
        )


def _refuse_duplicates(out: Path, num_duplicates: int) -> None:
    records = open_store(out).records
    number = pc.index(records["duplicate_of"].is_valid(), True).as_py()
    later, first = (records[name][number].as_py() for name in ("record_id", "duplicate_of"))
    raise EcgfastError(
        f"{num_duplicates} records duplicate other records, allowed 0 with --strict; the first is "
        f"{later}, the same ECG as {first}; {out} is finished and whole: use it without --strict, "
        f"or remove the copies from the sources ({sources_beside(out)} has their paths) and "
        "convert into another folder"
    )


def _label(
    out: Path,
    csv: Path,
    columns: Sequence[str] | None,
    target: str | None,
    key_file: Path | None,
    keep_ages: bool,
) -> None:
    """Label a store that is finished, whatever becomes of it."""
    try:
        label_store(
            out,
            csv,
            columns=columns,
            target=target,
            key_file=key_file,
            keep_ages_over_89=keep_ages,
        )
    except EcgfastError as error:
        words = ["ecgfast", "label", str(out), str(csv)]
        words += ["--columns", ",".join(columns)] if columns else []
        words += ["--target", target] if target else []
        words += ["--key-file", str(key_file)] if key_file else []
        words += ["--keep-ages-over-89"] if keep_ages else []
        raise ConfigError(
            f"{error}; the store {out} is finished, only its labels are missing: when the table "
            f"is right, run {shlex.join(words)}"
        ) from error


def _check(**options: tuple[str, object]) -> None:
    for name, (value, kind) in options.items():
        allowed = get_args(kind)
        if value not in allowed:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} must be one of {', '.join(allowed)}, got {value!r}")
