"""Commands that make and show stores: synth, convert, info, quality, verify."""

import gc
from pathlib import Path
from typing import Annotated, Any

import typer

from ecgfast.cli.options import (
    Columns,
    KeepAges,
    KeyFile,
    OneEcg,
    SplitSeed,
    Steps,
    StorePath,
    Target,
    column_names,
    show,
)
from ecgfast.errors import ConfigError
from ecgfast.vocabulary import (
    Codec,
    OnBad,
    PatientIds,
    Quality,
    Short,
    Stage,
    WindowChoice,
)


def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    records: Annotated[int, typer.Option(min=1, help="Number of records.")] = 1000,
    sites: Annotated[int, typer.Option(min=1, help="Number of hospitals.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same files.")] = 0,
    prevalence: Annotated[float, typer.Option(help="Share of patients below 40 %.")] = 0.2,
    label_signal: Annotated[
        float, typer.Option(help="Effect of the ejection fraction on the waves, times; 0: none.")
    ] = 1.0,
    site_shift: Annotated[
        float, typer.Option(help="0: hospitals alike; 1: they differ, a cart tells labels at 1.")
    ] = 1.0,
    shuffle_labels: Annotated[
        bool, typer.Option("--shuffle-labels", help="Permute the labels of each hospital.")
    ] = False,
    shares: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Of each hospital; default: 2,1,1,...")
    ] = None,
    unlabelled: Annotated[
        str | None, typer.Option(metavar="SITE,...", help="Hospitals without ejection fractions.")
    ] = None,
) -> None:
    """Write a synthetic cohort: WFDB files and labels.csv."""
    from ecgfast import log
    from ecgfast.ingest.synthetic import write_cohort
    from ecgfast.ingest.synthetic_population import Design

    design = Design(
        prevalence=prevalence,
        label_signal=label_signal,
        site_shift=site_shift,
        shuffled_labels=shuffle_labels,
        unlabelled=tuple(unlabelled.split(",")) if unlabelled else (),
        shares=_shares(shares),
    )
    with log.progress("synth", total=records) as advance:
        write_cohort(
            out,
            num_records=records,
            num_sites=sites,
            seed=seed,
            design=design,
            progress=Steps(advance),
        )
    show(f"{records} SYNTHETIC records of {sites} sites in {out}")


def _shares(text: str | None) -> tuple[int, ...]:
    """The numbers of --shares."""
    words = text.split(",") if text else []
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise ConfigError(f"--shares must be whole numbers from 1, such as 2,1,1, got {text!r}")
    return tuple(map(int, words))


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
    out: Annotated[
        Path, typer.Option(metavar="STORE", help="Store to write: a folder, s3://, gs:// or az://.")
    ],
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
    append: Annotated[
        bool, typer.Option("--append", help="Add to a finished store what it does not know yet.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="With --append: also what has changed since.")
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE",
            help="Table to join, with record_id or patient_id. Several tables, other names of "
            "columns, windows of days: ecgfast label, afterwards.",
        ),
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
    quality_limits: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML with limits of the signal checks: noise_uv = 50."),
    ] = None,
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
    from ecgfast import log
    from ecgfast.convert import (
        ConvertOptions,
        convert_units,
        plan_convert,
        seal_convert,
    )
    from ecgfast.convert import convert as convert_all
    from ecgfast.store.quality import read_limits

    _check_stage(context, stage)
    if stage == "units":
        index, _, count = part.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise ConfigError(f"--part must be I/N with 0 <= I < N, got {part!r}")
        done = convert_units(out, part=(int(index), int(count)), workers=workers)
        show(f"{log.counted(done, 'unit')} of part {part} finished")
        return
    if not sources and stage != "seal":
        raise ConfigError("convert needs a SOURCE, got none; give files, folders or a store")
    as_given = ("codec", "window", "short", "quality", "keep_identifiers", "patient_ids")
    options: dict[str, Any] = {name: context.params[name] for name in as_given}
    options |= {"one_ecg_per_patient": one_ecg, "split_seed": split_seed or 0}
    options |= {"columns": tuple(column_names(columns) or ()), "keep_ages_over_89": keep_ages}
    listed: dict[str, Any] = {"key_file": key_file, "listing": listing}
    listed |= {"append": append, "replace": replace}
    if stage == "plan":
        if quality_limits is not None:
            options["quality_limits"] = read_limits(quality_limits)
        plan = plan_convert(sources or [], out, ConvertOptions(**options), **listed)
        if plan is not None:
            inputs, units = plan.num_inputs, len(plan.units)
            show(f"{log.counted(inputs, 'input')}, {log.counted(units, 'unit')} in {out}")
        return
    options |= {"labels": labels, "target": target, "workers": workers}
    options |= {"quality_limits": quality_limits}
    options["columns"] = column_names(columns)  # None, unlike (): the usual ones of the labels
    if stage == "seal":
        summary = seal_convert(out, on_bad=on_bad)
    else:
        gc.freeze()  # or full collections look at all modules again: a twentieth of the time
        summary = convert_all(sources or [], out, on_bad=on_bad, **listed, **options)
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


def quality(
    store: StorePath,
    out: Annotated[Path, typer.Option(metavar="HTML", help="Page to write; it shows signals.")],
) -> None:
    """Draw what the signal checks found, by site and device."""
    from ecgfast.evaluate.quality import write_page

    show(write_page(store, out))


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


def fetch(
    url: Annotated[str, typer.Argument(metavar="URL", help="s3://, gs://, az:// or https://.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the copy.")],
) -> None:
    """Copy a store from object storage; resumable."""
    from ecgfast import log
    from ecgfast.store.fetch import fetch_store

    with log.progress("fetch", total=None, unit="bytes") as advance:
        fetch_store(url, out, Steps(advance))
    show(f"{out}: every file is what {url} lists")


COMMANDS = (synth, convert, info, quality, verify, fetch)
