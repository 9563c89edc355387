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
    settings: Settings = None,
) -> None:
    """Hours of pretraining, from a short measurement of its step on this machine."""
    from ecgfast.bench.estimate import estimate as measure
    from ecgfast.config import load_config

    print(measure(load_config(preset, settings or ())))


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
