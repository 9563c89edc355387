"""Commands that change the tables of a finished store: label, splits, erase."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ecgfast.cli.options import (
    Columns,
    KeepAges,
    KeyFile,
    OneEcg,
    SplitSeed,
    StorePath,
    Target,
    column_names,
    show,
)
from ecgfast.errors import ConfigError
from ecgfast.vocabulary import LabelPick, SplitMethod


def label(
    store: StorePath,
    tables: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="TABLE",
            help="CSV, Parquet or FILE.xlsx#SHEET; one line per echo or record: record_id or "
            "patient_id, labels. Of several, the later replaces the earlier.",
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column that holds the record ids, if not record_id."),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="Such as LVEF=ejection_fraction; may be repeated."),
    ] = None,
    drop_id_prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="Begins record ids of the table, not of the store.")
    ] = "",
    label_window_days: Annotated[
        str | None,
        typer.Option(
            metavar="N|A..B",
            help="Days from the ECG to label_date: 14 is up to 14 before or after, -7..30 from 7 "
            "before to 30 after.",
        ),
    ] = None,
    label_pick: Annotated[
        LabelPick, typer.Option(help="Of several labels in the window, the nearest or the first.")
    ] = "nearest",
    columns: Columns = None,
    split: Annotated[
        SplitMethod | None, typer.Option(help="By patient, or from a table. Default: as before.")
    ] = None,
    target: Target = None,
    split_seed: SplitSeed = None,
    one_ecg: OneEcg = False,
    key_file: KeyFile = None,
    keep_ages: KeepAges = False,
    shift_dates: Annotated[
        bool,
        typer.Option(
            "--shift-dates", help="Keep days of recordings, moved by a secret shift per patient."
        ),
    ] = False,
    unmatched: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="Lines and records without a partner; default STORE.unmatched.csv."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the preview and write nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask; without a terminal nobody is asked.")
    ] = False,
) -> None:
    """Show a preview, then join labels and splits into a finished store."""
    from ecgfast.labels.commands import label_store
    from ecgfast.labels.naming import Naming
    from ecgfast.log import counted

    if dry_run and yes:
        raise ConfigError("label takes --dry-run or --yes, got both")

    def decide(preview: str) -> None:
        show(preview)
        if dry_run:
            show("nothing is written: --dry-run")
            raise typer.Exit
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        if is_terminal and not yes and not typer.confirm(f"Write these labels into {store}?"):
            show("nothing is written")
            raise typer.Exit(1)

    summary = label_store(
        store,
        tables or [],
        naming=Naming(
            id_column=id_column, renamed=_renamed(rename or []), id_prefix=drop_id_prefix
        ),
        label_window_days=label_window_days,
        label_pick=label_pick,
        columns=column_names(columns),
        split=split,
        target=target,
        split_seed=split_seed,
        one_ecg_per_patient=one_ecg or None,
        key_file=key_file,
        keep_ages_over_89=keep_ages,
        shift_dates=shift_dates,
        unmatched=unmatched,
        before_write=decide,
    )
    num_labelled = summary.num_matched - summary.num_outside_window
    if tables and (summary.num_unused_lines or num_labelled < summary.num_records):
        show(f"{summary.unmatched} lists lines and records without a partner, by readable ids")
    counts = ", ".join(f"{name} {number}" for name, number in sorted(summary.splits.items()))
    unused = f"{counted(summary.num_unused_lines, 'line')} unused"
    if summary.num_unused_lines:
        unused += " (they name no record of this store; capitals count in ids)"
    show(
        f"{summary.num_matched} of {summary.num_records} records labelled with "
        f"{', '.join(summary.columns) or 'no column'}; "
        f"{summary.num_outside_window} outside the window, "
        f"{unused}; {counts}"
    )


def _renamed(pairs: list[str]) -> dict[str, str]:
    """The names in all --rename of a command.

    Raises:
        ConfigError: one is not OLD=NEW, or an old name has two new ones.
    """
    renamed: dict[str, str] = {}
    for pair in pairs:
        old, _, new = pair.rpartition("=")
        if not old or not new or old in renamed:
            raise ConfigError(
                f"--rename must be OLD=NEW, each OLD once, such as LVEF=ejection_fraction, got "
                f"{pair!r}"
            )
        renamed[old] = new
    return renamed


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


def erase(
    store: StorePath,
    patients: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ids of patients, one a line.")
    ] = None,
    records: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ids of recordings, refused ones too.")
    ] = None,
    key_file: KeyFile = None,
) -> None:
    """Erase the records of patients who withdraw their consent."""
    from ecgfast.labels.consent import erase as erase_patients

    show(erase_patients(store, patients=patients, records=records, key_file=key_file))


COMMANDS = (label, splits, erase)
