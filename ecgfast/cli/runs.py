"""Commands that train and test models."""

from pathlib import Path
from typing import Annotated

import typer

from ecgfast.cli.options import StorePath, column_names, show
from ecgfast.errors import ConfigError
from ecgfast.vocabulary import MOST_SEEDS, ModelKind, Pool

DEFAULT_TARGET = "ejection_fraction<40"
NOT_READY = 3  # exit status of reproduce: nothing failed, other processes have cells to do
RunOption = Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder of the run.")]
Preset = Annotated[str, typer.Option(help="Name of a preset, or a TOML file.")]
Select = Annotated[
    str | None,
    typer.Option(
        metavar="EXPR",
        help="Records to use, such as 'site=1 and age>=18'; comparisons < <= > >= = != and ~ "
        "(contains), or 'site in (1, 2)', joined by and, or, not and brackets. Default: all.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="K=V",
        help="Change a setting of the preset, such as train.batch_size=64; repeatable. Sections: "
        "model, mask, train, optim, data, finetune, augment; all settings: docs/training.md.",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Resume the run in --out; start it if there is none.")
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        metavar="EXPR",
        help="What a case is, as in --select; repeatable, one model learns all. Default: "
        "ejection_fraction<40.",
    ),
]
Classes = Annotated[
    list[str] | None,
    typer.Option(metavar="A,B", help="Of a --target that is a column of classes: those to learn."),
]
FinetunePreset = Annotated[str | None, typer.Option(help="Default: that of the initial weights.")]
Fold = Annotated[
    int | None, typer.Option(min=1, help="Hold out this fold instead of the test split.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: the best.")]


def pretrain(
    stores: Annotated[
        list[Path], typer.Argument(metavar="STORE", help="Stores made by convert, read as one.")
    ],
    out: RunOption,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Name of a preset, a TOML file, or auto: that of ecgfast plan. Default: vit_large "
            "on a GPU, demo on a CPU."
        ),
    ] = None,
    select: Select = None,
    include_test: Annotated[
        bool,
        typer.Option(
            "--include-test", help="Read test patients too, unlabelled, as the study did."
        ),
    ] = False,
    distinct: Annotated[
        bool,
        typer.Option(
            "--assume-distinct-patients",
            help="Stores with different keys have no patient in common.",
        ),
    ] = False,
    settings: Settings = None,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Train a masked autoencoder (torchrun -m ecgfast too)."""
    from ecgfast.planning import planned
    from ecgfast.train.pretrain import pretrain as train

    out = train(
        stores,
        out,
        preset=planned(stores, device) if preset == "auto" else preset,
        settings=settings or (),
        select=select,
        include_test=include_test,
        assume_distinct_patients=distinct,
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
    model: Annotated[
        ModelKind | None, typer.Option(help="Sets model.kind. Default: that of the preset.")
    ] = None,
    target: Target = None,
    classes: Classes = None,
    preset: FinetunePreset = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="How to fine-tune: paper, best_practice or a TOML file, over the preset."
        ),
    ] = None,
    select: Select = None,
    fold: Fold = None,
    labels_per_class: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Patients of each class who teach: sets finetune.labels_per_class.",
        ),
    ] = None,
    settings: Settings = None,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Train a classifier at several learning rates; keep the best."""
    from ecgfast.train.finetune import finetune as train

    few = [] if labels_per_class is None else [f"finetune.labels_per_class={labels_per_class}"]
    out = train(
        store,
        out,
        preset=preset,
        model=model,
        recipe=recipe,
        settings=[*(settings or ()), *few],
        init=init,
        target=target or DEFAULT_TARGET,
        classes=column_names(classes) or (),
        select=select,
        fold=fold,
        resume=resume,
        device=device,
    )
    show(out)


def probe(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN|FILE|imagenet-mae|random", help="Encoder, as --init has it."),
    ],
    store: StorePath,
    out: RunOption,
    target: Target = None,
    classes: Classes = None,
    pool: Annotated[
        Pool | None, typer.Option(help="What is read of the tokens. Default: model.pool.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What embed wrote with the same run.")
    ] = None,
    preset: FinetunePreset = None,
    select: Select = None,
    fold: Fold = None,
    settings: Settings = None,
    device: Device = None,
) -> None:
    """Fit a linear layer on a frozen encoder's features."""
    from ecgfast.train.probe import probe as fit

    out = fit(
        run,
        store,
        out,
        target=target or DEFAULT_TARGET,
        classes=column_names(classes) or (),
        pool=pool,
        features=features,
        preset=preset,
        settings=settings or (),
        select=select,
        fold=fold,
        device=device,
    )
    show(out)


def evaluate(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Fine-tuned and pretraining runs.")
    ],
    store: StorePath,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the report.")],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="EXPR",
            help="Tests runs that learned a number at a threshold too, such as "
            "'ejection_fraction<40'. Default: that of the classifiers beside them.",
        ),
    ] = None,
    leads: Annotated[
        list[str] | None,
        typer.Option(
            metavar="I,II", help="Test each classifier on these leads alone too; repeatable."
        ),
    ] = None,
    average: Annotated[
        bool,
        typer.Option("--average", help="Test recordings: the mean of all windows of each."),
    ] = False,
    device: Device = None,
) -> None:
    """Compare runs site by site: metrics and a report."""
    from ecgfast.evaluate.report import evaluate as write_report

    sets = [names.split(",") for names in leads or ()]
    found = write_report(
        runs, store, out, target=target, device=device, leads=sets, average=average
    )
    show(found)


def reproduce(
    store: StorePath,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the experiment.")],
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Default: DIR/plan.toml, or else the study's columns."),
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Only write DIR/plan.toml, for you to edit.")
    ] = False,
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Do part I of N, from 0, as one job of an array.")
    ] = "0/1",
    target: Annotated[
        str | None, typer.Option(help="What a case is. Default: ejection_fraction<40.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Of the vision transformers. Default: vit_large.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="How to fine-tune, as finetune has it. Default: paper.")
    ] = None,
    settings: Settings = None,
    fractions: Annotated[
        str | None,
        typer.Option(
            metavar="F,F,...", help="Of the labelled patients, such as 0.01,0.1,1. Default: 1."
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_SEEDS, help="Fine-tunings of each model on each set. Default: 1."
        ),
    ] = None,
    device: Device = None,
    ranks: Annotated[
        int, typer.Option(min=1, help="GPUs of each training; torchrun is started for several.")
    ] = 1,
) -> None:
    """Repeat the study: every column of its table, resumable."""
    from ecgfast.reproduce.run import make_plan
    from ecgfast.reproduce.run import reproduce as run_plan
    from ecgfast.store.format import refuse_inside_store

    refuse_inside_store(out, "--out")
    index, slash, count = part.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"--part must be I/N with 0 <= I < N, got {part!r}")
    made = make_plan(
        store,
        out,
        plan=plan,
        target=target,
        preset=preset,
        recipe=recipe,
        settings=settings,
        fractions=None if fractions is None else _fractions(fractions),
        seeds=seeds,
    )
    if plan_only:
        show(out / "plan.toml")
        return
    summary = run_plan(store, out, made, part=(int(index), int(count)), device=device, ranks=ranks)
    show("\n".join([*summary.reasons, str(summary)]))
    if summary.failed or summary.left:
        raise typer.Exit(1 if summary.failed else NOT_READY)


def _fractions(text: str) -> tuple[float, ...]:
    """The numbers of --fractions."""
    from ecgfast.bounds import check_fractions

    try:
        return check_fractions(tuple(map(float, text.split(","))))
    except ValueError:
        raise ConfigError(
            "--fractions must be numbers above 0 and at most 1, each once, such as 0.1,1, got "
            f"{text!r}"
        ) from None


COMMANDS = (pretrain, finetune, probe, evaluate, reproduce)
