"""Commands on records and stores: synth, convert, label, splits, info, verify."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ecgfast.errors import ConfigError
from ecgfast.vocabulary import (
    Codec,
    OnBad,
    PatientIds,
    Quality,
    Short,
    SplitMethod,
    Stage,
    WindowChoice,
)

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store made by convert.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A,B",
        help="Columns to take of the CSV (convert: fields of the files too); may be repeated. "
        "Default: ejection_fraction and yes/no columns; all else only by name.",
    ),
]
KeepAges = Annotated[
    bool, typer.Option("--keep-ages-over-89", help="Keep these ages; else they are all 90.")
]
Target = Annotated[
    str | None,
    typer.Option(
        help="What a case is: splits get equal shares of cases. Default: ejection_fraction<40."
    ),
]
SplitSeed = Annotated[int | None, typer.Option(min=0, help="Seed of the splits; at first 0.")]
OneEcg = Annotated[
    bool,
    typer.Option(
        "--assume-one-ecg-per-patient", help="Records that name no patient are one patient each."
    ),
]
KeyFile = Annotated[Path | None, typer.Option(help="Pseudonym key; default STORE.key.")]


def show(text: object) -> None:
    """Print a result to the standard output."""
    from ecgfast.log import show as show_lines  # brings rich, which --help need not wait for

    show_lines(text)


class Steps:
    """Turns "so much is done in all" into the steps that a progress bar counts."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` units are done."""
        self._advance(done - self._done)
        self._done = done


def _names(columns: list[str] | None) -> list[str] | None:
    """The names in all --columns of a command, each once."""
    text = ",".join(columns or ())
    return list(dict.fromkeys(text.split(","))) if text else None


def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    records: Annotated[int, typer.Option(min=1, help="Number of records.")] = 1000,
    sites: Annotated[int, typer.Option(min=1, help="Number of hospitals.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same files.")] = 0,
) -> None:
    """Write a synthetic cohort: WFDB files and labels.csv."""
    from ecgfast import log
    from ecgfast.ingest.synthetic import write_cohort

    with log.progress("synth", total=records) as advance:
        steps = Steps(advance)
        write_cohort(out, num_records=records, num_sites=sites, seed=seed, progress=steps)
    show(f"{records} SYNTHETIC records of {sites} sites in {out}")


def _list_formats(wanted: bool) -> None:
    """Print the formats that convert reads, and end."""
    if not wanted:
        return
    from ecgfast.ingest import FORMATS

    for each in FORMATS:
        status = "tried on real files" if each.tried else "not tried on a real file"
        show(f"{each.name}: {status}\n    {each.keeps}")
    raise typer.Exit


def convert(
    context: typer.Context,
    out: Annotated[Path, typer.Option(metavar="STORE", help="Store to write.")],
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="SOURCE", help="Files or folders; none with --stage units or seal."),
    ] = None,
    listing: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE", help="Sorted paths below SOURCE, to skip the walk."),
    ] = None,
    stage: Annotated[
        Stage, typer.Option(help="On many machines: plan, then parts of the units, then seal.")
    ] = "all",
    part: Annotated[
        str, typer.Option(metavar="I/N", help="With --stage units: every N-th unit, from I on.")
    ] = "0/1",
    labels: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Table to join, as label does.")
    ] = None,
    columns: Columns = None,
    codec: Annotated[Codec, typer.Option(help="How chunks are compressed.")] = "ecgpack",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: cores.")] = None,
    window: Annotated[
        WindowChoice, typer.Option(help="Which ten-second windows of longer recordings to keep.")
    ] = "first",
    short: Annotated[
        Short, typer.Option(help="Records under 10 s: refuse, or fill up 5 s or more.")
    ] = "quarantine",
    quality: Annotated[
        Quality, typer.Option(help="Records that fail a signal check: keep or quarantine.")
    ] = "flag",
    on_bad: Annotated[
        OnBad, typer.Option(help="With unreadable inputs: exit with 0 or with 1.")
    ] = "quarantine",
    key_file: KeyFile = None,
    keep_identifiers: Annotated[
        bool, typer.Option("--keep-identifiers", help="Keep readable identifiers.")
    ] = False,
    patient_ids: Annotated[
        PatientIds, typer.Option(help="Each site numbers its patients, or all share one numbering.")
    ] = "site",
    one_ecg: OneEcg = False,
    split_seed: SplitSeed = None,
    target: Target = None,
    keep_ages: KeepAges = False,
    list_formats: Annotated[
        bool,
        typer.Option(
            "--list-formats", callback=_list_formats, is_eager=True, help="Show what is read."
        ),
    ] = False,
) -> None:
    """Turn raw files into a store; run again, it resumes."""
    from ecgfast import convert as steps

    _check_stage(context, stage)
    if stage == "units":
        index, _, count = part.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise ConfigError(f"--part must be I/N with 0 <= I < N, got {part!r}")
        done = steps.convert_units(out, part=(int(index), int(count)), workers=workers)
        show(f"{done:,} units of part {part} are finished")
        return
    if not sources and stage != "seal":
        raise ConfigError("convert needs a SOURCE, got none; give files, folders or a store")
    as_given = ("codec", "window", "short", "quality", "keep_identifiers", "patient_ids")
    options: dict[str, Any] = {name: context.params[name] for name in as_given}
    options |= {"one_ecg_per_patient": one_ecg, "split_seed": split_seed or 0}
    options |= {"columns": tuple(_names(columns) or ()), "keep_ages_over_89": keep_ages}
    listed: dict[str, Any] = {"key_file": key_file, "listing": listing}
    if stage == "plan":
        plan = steps.plan_convert(sources or [], out, steps.ConvertOptions(**options), **listed)
        if plan is not None:
            show(f"{plan.num_inputs:,} inputs, {plan.num_units:,} units in {out}")
        return
    options |= {"labels": labels, "target": target, "workers": workers}
    options |= {"columns": _names(columns)}  # None, unlike (), takes the usual ones of the labels
    if stage == "seal":
        summary = steps.seal_convert(out, on_bad=on_bad)
    else:
        summary = steps.convert(sources or [], out, on_bad=on_bad, **listed, **options)
    show(summary)
    if summary.failed:
        raise typer.Exit(1)


def _check_stage(context: typer.Context, stage: Stage) -> None:
    """Refuse options that a stage would not heed: the plan has them, or another stage takes them.

    Raises:
        ConfigError: names them.
    """
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    of_others = {"part", "workers", "on_bad", "labels", "target"}
    refused = {"all": {"part"}, "plan": of_others}.get(stage, given - {"out", "stage"})
    wrong = given & refused - {"units": {"part", "workers"}, "seal": {"on_bad"}}.get(stage, set())
    if wrong:
        words = [each.opts[0] for each in context.command.params if each.name in wrong]
        raise ConfigError(
            f"--stage {stage} does not take {', '.join(words)}; plan takes what decides "
            "the store, units --part and --workers, seal --on-bad, and ecgfast label the labels"
        )


def label(
    store: StorePath,
    csv: Annotated[
        Path,
        typer.Argument(
            metavar="CSV", help="One row per echo or record: record_id or patient_id, labels."
        ),
    ],
    label_window_days: Annotated[
        int | None, typer.Option(min=0, help="Most days from label_date to the ECG.")
    ] = None,
    columns: Columns = None,
    split: Annotated[
        SplitMethod | None, typer.Option(help="By patient, or from the CSV. Default: as before.")
    ] = None,
    target: Target = None,
    split_seed: SplitSeed = None,
    one_ecg: OneEcg = False,
    key_file: KeyFile = None,
    keep_ages: KeepAges = False,
) -> None:
    """Join labels and splits into a finished store."""
    from ecgfast.labels.commands import label_store

    summary = label_store(
        store,
        csv,
        label_window_days=label_window_days,
        columns=_names(columns),
        split=split,
        target=target,
        split_seed=split_seed,
        one_ecg_per_patient=one_ecg or None,
        key_file=key_file,
        keep_ages_over_89=keep_ages,
    )
    counts = ", ".join(f"{name} {number}" for name, number in sorted(summary.splits.items()))
    unused = f"{summary.num_unused_lines} lines unused"
    if summary.num_unused_lines:
        unused += " (they name no record of this store; capitals count in ids)"
    show(
        f"{summary.num_matched} of {summary.num_records} records labelled with "
        f"{', '.join(summary.columns) or 'no column'}; "
        f"{summary.num_outside_window} outside the window, "
        f"{unused}; {counts}"
    )


def splits(
    store: StorePath,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="CSV", help="Write record_id, split, fold.")
    ] = None,
    readable: Annotated[
        bool, typer.Option("--readable", help="Export readable record ids, to publish a split.")
    ] = False,
    given: Annotated[
        Path | None, typer.Option("--import", metavar="CSV", help="Take the splits of such a file.")
    ] = None,
    draw_others: Annotated[
        bool,
        typer.Option("--draw-others", help="With --import: patients whom CSV does not name draw."),
    ] = False,
    draw: Annotated[bool, typer.Option("--draw", help="Draw the splits anew.")] = False,
    target: Target = None,
    split_seed: SplitSeed = None,
    one_ecg: OneEcg = False,
    key_file: KeyFile = None,
) -> None:
    """Show, draw, export or import train, valid, test and folds."""
    from ecgfast.labels.commands import draw_again, export_splits, import_splits, summary
    from ecgfast.store.format import refuse_inside_store

    if sum((export is not None, given is not None, draw)) > 1:
        raise ConfigError("splits takes one of --export, --import and --draw, got several")
    if draw_others and given is None:
        raise ConfigError("--draw-others goes with --import CSV, got none; --draw draws all anew")
    if export is not None:
        refuse_inside_store(export, "--export")
    if given is not None:
        import_splits(store, given, key_file=key_file, draw_others=draw_others)
    if draw:
        draw_again(
            store,
            target=target,
            split_seed=split_seed,
            one_ecg_per_patient=one_ecg or None,
        )
    if export is not None:
        export_splits(store, export, readable=readable)
    show(summary(store, target))


def info(
    store: StorePath,
    target: Annotated[
        str | None, typer.Option(help="What a case is, such as 'ejection_fraction<40'.")
    ] = None,
) -> None:
    """Show counts, prevalence and what the codec saves."""
    from ecgfast.evaluate.cohort import describe
    from ecgfast.store.reader import open_store

    show(describe(open_store(store), target))


def verify(store: StorePath) -> None:
    """Check every checksum; exit 1 on damage."""
    from ecgfast import log
    from ecgfast.store.verify import verify_store

    with log.progress("verify", total=None, unit="bytes") as advance:
        problems = verify_store(store, Steps(advance))
    for problem in problems:
        show(problem)
    if problems:
        raise typer.Exit(1)
    show(f"{store}: every checksum is right")


COMMANDS = (synth, convert, label, splits, info, verify)
