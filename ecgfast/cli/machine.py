"""Commands about this machine, and open data sets: plan, recipe, bench, estimate, doctor, demo."""

from pathlib import Path
from typing import Annotated

import typer

from ecgfast.cli.options import show
from ecgfast.cli.runs import Device, Settings
from ecgfast.errors import ConfigError
from ecgfast.vocabulary import EstimateOf, RecipeName


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
    from ecgfast.bench import read_rows
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


def bench(
    case: Annotated[
        str,
        typer.Argument(metavar="CASE", help="codec, decode, loader, kernels, step, embed or all."),
    ] = "all",
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Append rows here.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: the best.")] = None,
    preset: Annotated[str | None, typer.Option(help="Model of the step.")] = None,
    microbatch: Annotated[
        int | None, typer.Option(metavar="N", help="Records of the step, on each rank.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Of the step; may be repeated.")
    ] = None,
) -> None:
    """Measure rates here, each beside a baseline."""
    from ecgfast.bench import run

    run(case, json=json, device=device, preset=preset, microbatch=microbatch, variants=variant)


def estimate(
    what: Annotated[EstimateOf, typer.Argument(help="pretrain or convert.")] = "pretrain",
    preset: Annotated[str, typer.Option(help="Name of a preset, or a TOML file.")] = "vit_large",
    gpu: Annotated[str, typer.Option(help="Part of its name, such as A100 or H100.")] = "A100",
    gpus: Annotated[int, typer.Option(help="How many share the batch.")] = 4,
    cores: Annotated[int, typer.Option(help="Of a conversion.")] = 1,
    records: Annotated[int, typer.Option(help="Default: those of the study.")] = 126_203,
    rows: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Measured rows, or a folder of them.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Estimate hours, memory and money of a run."""
    from ecgfast.bench import read_rows
    from ecgfast.config import load_config
    from ecgfast.estimate import estimate_convert, estimate_pretrain

    measured = [row for file in rows or () for row in read_rows(file)]
    if what == "convert":
        show(estimate_convert(num_records=records, num_cores=cores, rows=measured))
        return
    config = load_config(preset, settings or ())
    show(estimate_pretrain(config, gpu=gpu, num_gpus=gpus, num_records=records, rows=measured))


def doctor() -> None:
    """Show what is installed and what each part would use."""
    from ecgfast.doctor import examine

    show(examine())


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("demo"),
) -> None:
    """Run every step here on synthetic hospitals, up to a report."""
    from ecgfast.demo import demo as run_demo

    show(run_demo(out))


COMMANDS = (plan, recipe, bench, estimate, doctor, demo)
