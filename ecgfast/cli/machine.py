"""Commands about this machine: bench, estimate, doctor, demo."""

from pathlib import Path
from typing import Annotated

import typer

from ecgfast.cli.training import Settings


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
) -> None:
    """Measure rates on this machine, each beside a baseline."""
    from ecgfast.bench.cases import run

    run(case, json=json, device=device)


def estimate(
    preset: Annotated[str, typer.Option(help="Name of a preset, or a TOML file.")] = "vit_large",
    gpu: Annotated[str, typer.Option(help="Kind of GPU, such as A100 or H100.")] = "A100",
    gpus: Annotated[int, typer.Option(metavar="N", help="How many share the batch.")] = 4,
    records: Annotated[int, typer.Option(metavar="N", help="Records in the store.")] = 126_203,
    rows: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Rows of `bench step`: a file or a folder.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Hours, GPU-hours and memory of a whole pretraining run, and what they rest on."""
    from ecgfast.bench.estimate import estimate as estimate_run
    from ecgfast.bench.rows import read_rows
    from ecgfast.config import load_config

    config = load_config(preset, settings or ())
    measured = read_rows(rows) if rows is not None else ()
    print(estimate_run(config, gpu=gpu, num_gpus=gpus, num_records=records, rows=measured))


def doctor() -> None:
    """Show what is installed, which backend each part would take, and why."""
    from ecgfast.doctor import examine

    print(examine())


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")] = Path("demo"),
) -> None:
    """Synthetic hospitals to report on this machine: the whole way in under ten minutes."""
    from ecgfast.demo import demo as run_demo

    print(run_demo(out))
