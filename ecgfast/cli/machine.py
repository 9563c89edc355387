"""Commands about this machine: bench, estimate, doctor, demo."""

from pathlib import Path
from typing import Annotated

import typer

from ecgfast.cli.options import show
from ecgfast.cli.runs import Settings
from ecgfast.vocabulary import EstimateOf


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
    from ecgfast.bench.measuring import read_rows
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


COMMANDS = (bench, estimate, doctor, demo)
