"""Commands about this machine: bench, estimate, doctor, demo."""

from pathlib import Path
from typing import Annotated

import typer

from ecgfast.cli.data import show
from ecgfast.cli.runs import Settings


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (bench, estimate, doctor, demo):
        app.command()(command)


def bench(
    case: Annotated[
        str, typer.Argument(metavar="CASE", help="codec, decode, loader, kernels, step or all.")
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
    preset: Annotated[str, typer.Option(help="Name of a preset, or a TOML file.")] = "vit_large",
    gpu: Annotated[str, typer.Option(help="Part of its name, such as A100 or H100.")] = "A100",
    gpus: Annotated[int, typer.Option(help="How many share the batch.")] = 4,
    records: Annotated[int, typer.Option(help="Default: those of the study.")] = 126_203,
    rows: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Measured rows (bench --json).")
    ] = None,
    settings: Settings = None,
) -> None:
    """Tell how long pretraining takes, and on what."""
    from ecgfast.bench.estimate import estimate as estimate_run
    from ecgfast.bench.rows import read_rows
    from ecgfast.config import load_config

    config = load_config(preset, settings or ())
    measured = [row for file in rows or () for row in read_rows(file)]
    show(estimate_run(config, gpu=gpu, num_gpus=gpus, num_records=records, rows=measured))


def doctor() -> None:
    """Show what is installed and what each part would use."""
    from ecgfast.doctor import examine

    show(examine())


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("demo"),
) -> None:
    """Go the whole way here, on synthetic hospitals."""
    from ecgfast.demo import demo as run_demo

    show(run_demo(out))
