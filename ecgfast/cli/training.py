"""Commands that train: pretrain and finetune."""

from pathlib import Path
from typing import Annotated

import typer

from ecgfast.cli.data import StorePath
from ecgfast.cli.output import show
from ecgfast.vocabulary import ModelKind

RunOption = Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder of the run.")]
Preset = Annotated[str, typer.Option(help="Name of a preset, or a TOML file.")]
Select = Annotated[
    str | None,
    typer.Option(
        metavar="EXPR",
        help="Records to use, such as 'site=1 and age>=18'; comparisons < <= > >= = != and ~ "
        "(contains), joined by 'and'. Default: all.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="K=V",
        help="Change a setting of the preset, such as train.batch_size=64; repeatable. Sections: "
        "model, mask, train, optim, data, finetune; all settings: docs/training.md.",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Resume the run in --out; start it if there is none.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: the best.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (pretrain, finetune):
        app.command()(command)


def pretrain(
    store: StorePath,
    out: RunOption,
    preset: Preset = "vit_large",
    select: Select = None,
    include_test: Annotated[
        bool,
        typer.Option("--include-test", help="Read test patients too, unlabelled, as the study did"),
    ] = False,
    settings: Settings = None,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Train a masked autoencoder (torchrun -m ecgfast too)."""
    from ecgfast.config import load_config
    from ecgfast.store.format import refuse_inside_store
    from ecgfast.train.pretrain import pretrain as train

    refuse_inside_store(out, "--out")
    config = load_config(preset, settings or ())
    out = train(
        config,
        store,
        out,
        select=select,
        include_test=include_test,
        resume=resume,
        device=device,
    )
    show(out)


def finetune(
    store: StorePath,
    out: RunOption,
    init: Annotated[
        str, typer.Option(metavar="RUN|FILE|imagenet-mae|random", help="Initial weights.")
    ],
    model: Annotated[ModelKind, typer.Option(help="Transformer or convolutional network.")] = "vit",
    target: Annotated[
        str, typer.Option(help="What a case is, as in --select.")
    ] = "ejection_fraction<40",
    preset: Annotated[
        str | None, typer.Option(help="Default: that of the initial weights.")
    ] = None,
    select: Select = None,
    fold: Annotated[
        int | None, typer.Option(min=1, help="Hold out this fold instead of the test split.")
    ] = None,
    settings: Settings = None,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Train a classifier: a sweep, the lowest loss kept."""
    from ecgfast.config import load_config
    from ecgfast.store.format import refuse_inside_store
    from ecgfast.train.finetune import finetune as train

    refuse_inside_store(out, "--out")
    if preset is None:
        settings_of_run = Path(init, "config.toml")
        default = "cnn" if model == "cnn" else "vit_large"
        preset = str(settings_of_run) if settings_of_run.is_file() else default
    config = load_config(preset, settings or ())
    out = train(
        config,
        store,
        out,
        init=init,
        model=model,
        target=target,
        select=select,
        fold=fold,
        resume=resume,
        device=device,
    )
    show(out)
