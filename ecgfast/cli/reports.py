"""Commands that look at what was trained: evaluate, predict, reconstruct."""

from pathlib import Path
from typing import Annotated

import typer

from ecgfast.cli.data import StorePath
from ecgfast.cli.output import show
from ecgfast.errors import ConfigError

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (evaluate, predict, reconstruct):
        app.command()(command)


def evaluate(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Fine-tuned and pretraining runs.")
    ],
    store: StorePath,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the report.")],
) -> None:
    """Compare runs site by site: metrics and a report."""
    from ecgfast.evaluate.report import evaluate as write_report
    from ecgfast.store.format import refuse_inside_store

    refuse_inside_store(out, "--out")
    show(write_report(runs, store, out))


def predict(
    run: RunPath,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Raw ECGs or folders.")],
    out: Annotated[Path | None, typer.Option(metavar="CSV", help="Default: the screen.")] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="Pseudonym key of the run's store: recognises its patients."),
    ] = None,
) -> None:
    """Write a probability for each raw ECG file."""
    from ecgfast.predict import predict as predict_files
    from ecgfast.store.format import refuse_inside_store

    if out is not None:
        refuse_inside_store(out, "--out")
    predict_files(run, files, out, key_file=key_file)


def reconstruct(
    run: RunPath,
    store: StorePath,
    record: Annotated[str, typer.Option(metavar="ID", help="A record_id, or its beginning.")],
    out: Annotated[Path, typer.Option(metavar="PNG", help="Picture to write.")],
    leads: Annotated[str, typer.Option(metavar="II,V5|all", help="Which leads.")] = "all",
) -> None:
    """Draw a record: original, masked, reconstructed."""
    from ecgfast.evaluate.reconstruct import reconstruct as draw
    from ecgfast.records import LEADS
    from ecgfast.store.format import refuse_inside_store

    refuse_inside_store(out, "--out")
    names = LEADS if leads == "all" else tuple(leads.split(","))
    unknown = sorted(set(names) - set(LEADS))
    if unknown:
        raise ConfigError(f"--leads: got {', '.join(unknown)}; allowed: all, {', '.join(LEADS)}")
    show(draw(run, store, record_id=record, out=out, leads=names))
