"""Commands on open data sets: recipe."""

from pathlib import Path
from typing import Annotated

import typer

from ecgfast.cli.options import show
from ecgfast.cli.runs import Device, Settings
from ecgfast.errors import ConfigError
from ecgfast.vocabulary import RecipeName


def recipe(
    name: Annotated[RecipeName, typer.Argument(metavar="NAME", help="An open data set.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="As published; none: how to get it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of store and runs.")
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Train a run for each target too; print the table.")
    ] = False,
    init: Annotated[
        str, typer.Option(metavar="RUN|FILE|random", help="Initial weights, with --run.")
    ] = "random",
    preset: Annotated[
        str | None,
        typer.Option(help="Default: that of the initial weights; else a residual network."),
    ] = None,
    settings: Settings = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of the convert.")] = None,
    device: Device = None,
) -> None:
    """Convert an open data set with its labels and folds; train on it."""
    from ecgfast.recipes import run as steps
    from ecgfast.recipes.catalogue import recipe_named

    chosen = recipe_named(name)
    if folder is None:
        show(steps.describe(chosen))
        return
    if out is None:
        raise ConfigError("recipe FOLDER needs --out DIR, got none; name a folder to write")
    config = steps.config_for(init, preset, settings or (), device)
    prepared = steps.prepare(chosen, folder, out, workers=workers)
    named = preset or (config.preset if init == "random" else None)
    show(steps.commands(prepared, preset=named, init=init))
    if run:
        found = steps.train(prepared, config, init=init, device=device)
        show(steps.table_of(chosen, found))


COMMANDS = (recipe,)
