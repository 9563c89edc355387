"""Commands on trained models: what they give for records and files."""

from pathlib import Path
from typing import Annotated

import typer

from ecgfast.cli.options import StorePath, show
from ecgfast.cli.runs import Device, Select
from ecgfast.errors import ConfigError
from ecgfast.vocabulary import Pool

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run, a folder of export, s3:// of either, or hf://OWNER/NAME of the hub.",
    ),
]


def predict(
    run: ModelName,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Raw ECGs or folders.")],
    out: Annotated[Path | None, typer.Option(metavar="CSV", help="Default: the screen.")] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="Pseudonym key of the run's store: recognises its patients."),
    ] = None,
    average: Annotated[
        bool,
        typer.Option(
            "--average", help="One line a file: the mean of all its windows, and their spread."
        ),
    ] = False,
    leads: Annotated[
        str | None,
        typer.Option(metavar="I,II,V1", help="Use these leads alone. Default: those of the run."),
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing-leads", help="Take files that lack leads, with those that they have."
        ),
    ] = False,
) -> None:
    """Write a probability for each raw ECG file."""
    from ecgfast import log
    from ecgfast.predict import write_predictions

    done = write_predictions(
        run,
        files,
        out,
        key_file=key_file,
        average=average,
        leads=None if leads is None else leads.split(","),
        allow_missing=allow_missing,
    )
    if done.num_refused == done.num_files:
        log.warning("no file could be scored; the column note says why for each")
        raise typer.Exit(1)


def export(
    run: RunPath,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the model, created.")],
) -> None:
    """Write a model that can be passed on: weights, config.json, card."""
    from ecgfast.runs.export import export as write
    from ecgfast.store.format import refuse_inside_store

    refuse_inside_store(out, "--out")
    show(write(run, out))


def embed(
    run: ModelName,
    source: Annotated[
        list[Path], typer.Argument(metavar="STORE|FILE", help="A store; or raw ECGs or folders.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .zarr, .parquet or .npy.")],
    pool: Annotated[Pool, typer.Option(help="How a ViT's tokens become features.")] = "mean",
    layer: Annotated[
        int | None, typer.Option(help="Block of a ViT, from 1. Default: the last, and its norm.")
    ] = None,
    select: Select = None,
    device: Device = None,
) -> None:
    """Write the features that an encoder gives each record."""
    from ecgfast import log
    from ecgfast.embedding import write_features

    done = write_features(out, run, source, pool=pool, layer=layer, select=select, device=device)
    if done.num_refused:
        log.warning(
            f"{done.num_refused} of {done.num_files} files have no features; {out}.refused.csv "
            "says why"
        )
    if not done.num_records:
        raise typer.Exit(1)
    show(f"{out}: {done.width} features of {done.num_records:,} records")


def reconstruct(
    run: RunPath,
    store: StorePath,
    record: Annotated[str, typer.Option(metavar="ID", help="A record_id, or its beginning.")],
    out: Annotated[Path, typer.Option(metavar="PNG", help="Picture to write.")],
    leads: Annotated[str, typer.Option(metavar="II,V5|all", help="Which leads.")] = "all",
) -> None:
    """Draw a record: original, masked, reconstructed."""
    from ecgfast.evaluate.reconstructions import reconstruct as draw
    from ecgfast.records import LEADS

    names = LEADS if leads == "all" else tuple(leads.split(","))
    unknown = sorted(set(names) - set(LEADS))
    if unknown:
        raise ConfigError(f"--leads: got {', '.join(unknown)}; allowed: all, {', '.join(LEADS)}")
    show(draw(run, store, record_id=record, out=out, leads=names))


COMMANDS = (predict, export, embed, reconstruct)
