"""`convert`: files to a store, or a store to another codec: list inputs, do the units, seal."""

import shlex
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

import pyarrow.compute as pc

from ecgfast import log
from ecgfast.convert.append import make_append_plan
from ecgfast.convert.growth import seal_append
from ecgfast.convert.plan import (
    ConvertOptions,
    Plan,
    check_choices,
    is_finished,
    is_sealed,
    read_plan,
)
from ecgfast.convert.remote import claim, place_of, prepared, put_store
from ecgfast.convert.seal import seal, warn_of_lacks
from ecgfast.convert.sources import make_plan
from ecgfast.convert.summary import ConvertSummary, summary_of
from ecgfast.convert.units import remove_temporaries, run_units
from ecgfast.errors import ConfigError, EcgfastError
from ecgfast.labels.commands import label_store
from ecgfast.labels.table import check_labels
from ecgfast.store.durable import store_lock
from ecgfast.store.format import MANIFEST, sources_beside
from ecgfast.store.generations import refuse_generation_name
from ecgfast.store.quality import read_limits
from ecgfast.store.reader import available_cores, open_store
from ecgfast.vocabulary import Codec, OnBad, PatientIds, Quality, Short, WindowChoice


def convert(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    labels: str | Path | None = None,
    columns: Sequence[str] | None = None,
    codec: Codec = "ecgpack",
    workers: int | None = None,
    executor: Executor | None = None,
    listing: str | Path | None = None,
    window: WindowChoice = "first",
    short: Short = "quarantine",
    quality: Quality = "flag",
    quality_limits: str | Path | None = None,
    on_bad: OnBad = "quarantine",
    key_file: str | Path | None = None,
    keep_identifiers: bool = False,
    patient_ids: PatientIds = "site",
    one_ecg_per_patient: bool = False,
    split_seed: int = 0,
    target: str | None = None,
    keep_ages_over_89: bool = False,
    append: bool = False,
    replace: bool = False,
) -> ConvertSummary:
    """Convert files or folders, or transcode one store; the same call resumes after any crash.

    With more than one worker the calling script needs `if __name__ == "__main__":`, as everything
    that spawns processes does. Jobs of many machines that share the folders call `plan_convert`,
    `convert_units` and `seal_convert` instead.

    Args:
        sources: files and folders, or one store.
        out: folder of the new store; STORE.key and STORE.sources.csv appear beside it. Or its
            address in object storage; these files then lie in the current folder.
        labels: CSV to join afterwards, as `ecgfast label` does.
        columns: what to take beside the ejection fraction: columns of that CSV, as `ecgfast label
            --columns` does, and fields of the recordings (sidecar keys, "diagnosis" as free text).
        codec: "ecgpack", "zstd" or "none".
        workers: processes to start; 1 does all in this process, None takes the cores that it may
            use.
        executor: does the work instead, on this machine or others that share the folders: Dask's
            `Client.get_executor()`, MPI's, Parsl's or any other of `concurrent.futures`.
        listing: file with the paths of the one source folder, one a line and sorted, in place of
            a look at its folders.
        window: of records longer than 5000 timesteps the "first", or "all" whole windows.
        short: "quarantine" records shorter than 5000 timesteps, or "pad" those of 2500 or
            more with 0 microvolt.
        quality: "flag" what the signal checks find, or "strict": quarantine it.
        quality_limits: TOML file with limits of the signal checks, in place of the defaults.
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
        append: add the inputs that a finished store does not know yet, with its options.
        replace: with `append`, take inputs again whose files have changed.
    Raises:
        ConfigError, FormatError: a wrong option or source.
        ResumeError: `out` was begun with other options or sources.
        EcgfastError: the disk is full or read-only, or another process writes this store. Under
            `--strict` also: records are duplicates; the store is finished, labels joined.
    """
    place = place_of(out)
    out = place.here
    refuse_generation_name(out)
    options = ConvertOptions(
        codec=codec,
        window=window,
        short=short,
        quality=quality,
        keep_identifiers=keep_identifiers,
        patient_ids=patient_ids,
        one_ecg_per_patient=one_ecg_per_patient,
        split_seed=split_seed,
        columns=tuple(columns or ()),
        keep_ages_over_89=keep_ages_over_89,
        quality_limits={} if quality_limits is None else read_limits(Path(quality_limits)),
    )
    check_choices(on_bad=(on_bad, OnBad))
    if labels is None and target is not None:
        raise ConfigError(f"--target {target!r} needs --labels; ecgfast label takes both later")
    if labels is not None:  # a wrong table is refused now, not after hours of converting
        check_labels(Path(labels), columns)
    processes = _processes(workers)
    num_before = 0
    grows = _grows(append, replace, place.url)
    with prepared(place):
        with store_lock(out):
            if grows:
                listed = (sources, out, options, key_file, listing)
                plan = make_append_plan(*listed, replace_changed=replace)
                num_before = len(open_store(out))
            else:
                plan = make_plan(
                    *(sources, out, options, key_file, listing),
                    is_labelled=labels is not None,
                    url=place.url,
                )
            if plan is not None:
                claim(plan)
                remove_temporaries(out)
                run_units(plan, plan.units, processes, executor)
                _seal(plan, is_labelled=labels is not None)
        if plan is None and place.url:
            return summary_of(out, on_bad, place.url)
        if labels is not None:
            given = None if key_file is None else Path(key_file)
            _label(out, Path(labels), columns, target, given, keep_ages_over_89, place.url)
        elif plan is None and not append:  # else its seal has warned
            records = open_store(out).records
            warn_of_lacks(records, records.column_names, options)
        if plan is not None:
            put_store(plan)
        if not any((Path(source) / MANIFEST).exists() for source in sources):
            _refuse_duplicates(out, num_before, place.url)
        return summary_of(out, on_bad, place.url)


def _grows(append: bool, replace: bool, url: str) -> bool:
    if replace and not append:
        raise ConfigError("--replace goes with --append, got it alone; give both")
    if append and url:
        raise ConfigError(
            f"--append needs a store in a folder, got {url}; copy it with ecgfast fetch, append "
            "there, and put the copy where it is to be read with any tool"
        )
    return append


def plan_convert(
    sources: Sequence[str | Path],
    out: str | Path,
    options: ConvertOptions,
    *,
    key_file: str | Path | None = None,
    listing: str | Path | None = None,
    append: bool = False,
    replace: bool = False,
) -> Plan | None:
    """List the inputs of a store, the first step of `convert`; None where nothing is to be done."""
    place = place_of(out)
    refuse_generation_name(place.here)
    listed = (sources, place.here, options, key_file, listing)
    grows = _grows(append, replace, place.url)
    with prepared(place), store_lock(place.here):
        if grows:
            return make_append_plan(*listed, replace_changed=replace)
        plan = make_plan(*listed, is_labelled=False, url=place.url)
        if plan is not None:
            claim(plan)
        return plan


def convert_units(
    out: str | Path,
    *,
    part: tuple[int, int] = (0, 1),
    workers: int | None = None,
    executor: Executor | None = None,
) -> int:
    """Do units of a planned store, the second step of `convert`; any number of jobs at once.

    Args:
        out: folder of the store.
        part: (i, n) takes the units i, i + n, i + 2 n ...
        workers: processes to start, as `convert`.
        executor: as `convert`.
    Returns:
        how many units the part has; all of them are finished.
    """
    index, count = part
    if not 0 <= index < count:
        raise ConfigError(f"--part must be I/N with 0 <= I < N, got {index}/{count}")
    place = place_of(out)
    if is_finished(place.here) or (place.url and is_sealed(Path(place.url))):
        log.info(f"{out} is finished already")
        return 0
    plan = read_plan(place.here)
    units = plan.units[index::count]
    run_units(plan, units, _processes(workers), executor)
    return len(units)


def seal_convert(out: str | Path, *, on_bad: OnBad = "quarantine") -> ConvertSummary:
    """Seal a store whose units are all finished, the last step of `convert`.

    Raises:
        EcgfastError: units are missing, which are named.
    """
    place = place_of(out)
    out = place.here
    with prepared(place), store_lock(out):
        if is_finished(out):
            log.info(f"{place.url or out} is finished already")
        else:
            plan = read_plan(out)
            num_before = len(open_store(out)) if plan.appends else 0
            _seal(plan, is_labelled=False)
            put_store(plan)
            if "sources" in plan.spec:
                _refuse_duplicates(out, num_before, place.url)
        return summary_of(out, on_bad, place.url)


def _seal(plan: Plan, *, is_labelled: bool) -> None:
    if plan.appends:
        seal_append(plan)
    else:
        seal(plan, is_labelled=is_labelled)


def _processes(workers: int | None) -> int:
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}")
    return workers


def _refuse_duplicates(out: Path, first: int, url: str) -> None:
    """Under --strict, say that new records have them; those before `first` were there before."""
    if not log.is_strict():
        return
    records = open_store(out).records.slice(first)
    if "duplicate_of" not in records.column_names:
        return
    num_duplicates = records.num_rows - records["duplicate_of"].null_count
    if not num_duplicates:
        return
    number = pc.index(records["duplicate_of"].is_valid(), True).as_py()
    later, first = (records[name][number].as_py() for name in ("record_id", "duplicate_of"))
    raise EcgfastError(
        f"{num_duplicates} records duplicate other records, allowed 0 with --strict; the first is "
        f"{later}, the same ECG as {first}; {url or out} is finished and whole: use it without "
        f"--strict, or remove the copies from the sources ({sources_beside(out)} has their paths) "
        "and convert into another folder"
    )


def _label(
    out: Path,
    csv: Path,
    columns: Sequence[str] | None,
    target: str | None,
    key_file: Path | None,
    keep_ages: bool,
    url: str,
) -> None:
    """Label a store that is finished, whatever becomes of it; or one that has yet to be put."""
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
        if url:
            raise
        words = ["ecgfast", "label", str(out), str(csv)]
        words += ["--columns", ",".join(columns)] if columns else []
        words += ["--target", target] if target else []
        words += ["--key-file", str(key_file)] if key_file else []
        words += ["--keep-ages-over-89"] if keep_ages else []
        raise ConfigError(
            f"{error}; the store {out} is finished, only its labels are missing: when the table "
            f"is right, run {shlex.join(words)}"
        ) from error
