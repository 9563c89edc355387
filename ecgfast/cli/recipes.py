"""Commands before a training: what a machine can do with a store, and open data sets."""

from pathlib import Path
from typing import Annotated

import typer

from ecgfast.cli.options import show
from ecgfast.cli.runs import Device, Settings
from ecgfast.errors import ConfigError
from ecgfast.vocabulary import RecipeName


def plan(
    stores: Annotated[
        list[Path], typer.Argument(metavar="STORE", help="Stores made by convert, read as one.")
    ],
    out: Annotated[Path, typer.Option(metavar="TOML", help="Preset to write.")] = Path("plan.toml"),
    preset: Annotated[
        str | None, typer.Option(help="Default: the largest that fits and ends in time.")
    ] = None,
    hours: Annotated[float, typer.Option(min=0.0, help="That the run may take.")] = 168.0,
    rows: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Rows of ecgfast bench step.")
    ] = None,
    device: Device = None,
) -> None:
    """Write a preset for a store and this machine: size, hours, cost."""
    from ecgfast.bench.measuring import read_rows
    from ecgfast.planning import Machine
    from ecgfast.planning import plan as plan_run
    from ecgfast.store.durable import write_durably
    from ecgfast.store.format import refuse_inside_store

    refuse_inside_store(out, "--out")
    measured = [row for file in rows or () for row in read_rows(file)]
    planned = plan_run(stores, Machine.here(device), preset=preset, hours=hours, rows=measured)
    write_durably(out, [planned.to_toml().encode()])
    show("\n".join([*planned.lines(), str(out)]))


def recipe(
    name: Annotated[RecipeName, typer.Argument(metavar="NAME", help="An open data set.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="As published; none: how to get it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of store and run.")
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Train a model of all targets too; print the table.")
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


COMMANDS = (plan, recipe)
