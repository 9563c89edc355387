"""The study of `ecgfast demo` by the public functions, and a smaller one on files of your own.

python examples/python/study.py study
python examples/python/study.py study --source /share/ecg --labels echo.csv --target "lvh=1"

A transformer that read ECGs without labels, the same with random weights, and a CNN: in the demo
they learn from few labels to many, three times each; on your files once from all labels. Of several
targets (`--target` repeated) one model learns all. Run again after an interrupt, it resumes.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ecgfast

Settings = Mapping[str, object]

# Those of ecgfast/demo_plan.py: minutes on two cores. With a GPU and days, leave them out.
VIT: Settings = {
    "model.encoder_width": 64,
    "model.encoder_depth": 3,
    "model.decoder_width": 64,
    "model.decoder_depth": 1,
}
PRETRAINING: Settings = {
    **VIT,
    "train.batch_size": 8,
    "train.epochs": 12,
    "mask.norm_patch_loss": False,
    "optim.base_lr": 0.064,
    "optim.warmup_epochs": 0.5,
    "train.val_fraction": 0.025,
    "train.log_every": 100,
    "train.val_every": 700,
    "train.checkpoint_every": 700,
}
FINETUNING: Settings = {
    "finetune.learning_rates": [1e-3],
    "finetune.batch_size": 8,
    "finetune.warmup_epochs": 1,
    "finetune.probe_epochs": 0,
}
HEAD_FIRST: Settings = {**VIT, "finetune.probe_epochs": 5, "finetune.probe_lr": 3e-3}
FROZEN: Settings = {
    **VIT,
    "finetune.frozen": True,
    "finetune.learning_rates": [3e-3],
    "finetune.epochs": 8,
}
EPOCHS = {50: 10, 100: 8, 200: 5, 400: 3}  # by number of labelled records
TARGET = "ejection_fraction<40"


class Training(NamedTuple):
    """A fine-tuning: its folder, where its weights come from, preset and settings."""

    name: str
    is_pretrained: bool
    preset: str
    settings: Settings


def models(name: str, settings: Settings) -> list[Training]:
    """The three models, in folders that end with `name`, with these settings."""
    base = {**FINETUNING, **settings}
    return [
        Training(f"vit-pretrained{name}", True, "demo", {**base, **HEAD_FIRST}),
        Training(f"vit-random{name}", False, "demo", {**base, **VIT}),
        Training(f"cnn{name}", False, "resnet1d_small", base),
    ]


def trainings(num_labelled: int, epochs: Mapping[int, int], seeds: int) -> Iterator[Training]:
    """The fine-tunings of the demo.

    Args:
        num_labelled: records of hospital 1 that could teach.
        epochs: number of those that do -> epochs.
        seeds: trainings of each model on each number, from other patients.
    """
    for seed in range(seeds):
        for number, num_epochs in epochs.items():
            of_labels = {
                "finetune.epochs": num_epochs,
                "finetune.label_fraction": number / num_labelled,
                "train.seed": seed,
            }
            yield from models(f"-{number}-seed{seed}", of_labels)
            if number == max(epochs) and seed == 0:
                frozen = {**FINETUNING, **of_labels, **FROZEN}
                yield Training(f"probe-pretrained-{number}-seed0", True, "demo", frozen)
                yield Training(f"probe-random-{number}-seed0", False, "demo", frozen)


def train(
    store: Path,
    runs: Path,
    planned: Iterable[Training],
    pretrained: Path,
    *,
    targets: Sequence[str],
    select: str | None,
    more: Settings,
) -> list[Path]:
    """Do fine-tunings; `more` settings go over theirs."""
    return [
        ecgfast.finetune(
            store, runs / each.name, init=pretrained if each.is_pretrained else "random",
            target=targets, select=select, preset=each.preset, recipe="best_practice",
            settings={**each.settings, **more}, resume=True,
        )
        for each in planned
    ]  # fmt: skip


def synthetic_study(
    out: Path,
    *,
    num_records: int = 3600,
    epochs: Mapping[int, int] = EPOCHS,
    seeds: int = 3,
    settings: Settings | None = None,
    workers: int | None = None,
) -> Path:
    """Hospital 1 has labels, 2 to 4 have ECGs alone, 5 tests; return the path of the report.

    Args:
        out: folder of everything that is written.
        num_records: of all hospitals.
        epochs: number of labels -> epochs.
        seeds: trainings of each model on each number of labels.
        settings: of all trainings, over those of this file.
        workers: processes that convert; None takes the cores.
    """
    cohort, store, runs, more = out / "cohort", out / "store", out / "runs", settings or {}
    if not (cohort / "labels.csv").exists():  # written last
        design = ecgfast.Design(prevalence=0.33, unlabelled=("2", "3", "4"))
        ecgfast.synth(cohort, num_records=num_records, num_sites=5, design=design)
    # Pseudonyms decide the splits: one known key gives everyone the same. Real data get their own.
    key = out / "store.key"
    key.touch(mode=0o600)
    key.write_text("00" * 31 + "01\n")
    ecgfast.convert([cohort], store, labels=cohort / "labels.csv", workers=workers)
    pretrained = ecgfast.pretrain(
        store, runs / "pretrained", preset="demo", settings={**PRETRAINING, **more},
        select="site in (1, 2, 3, 4)", resume=True,
    )  # fmt: skip
    labelled = ecgfast.EcgDataset(store, select="split=train and site=1", labels=TARGET)
    planned = trainings(len(labelled), epochs, seeds)
    done = train(store, runs, planned, pretrained, targets=[TARGET], select="site=1", more=more)
    most = f"-{max(epochs)}-seed0"
    shown = [run for run in done if run.name.endswith(most)]
    curve = [run for run in done if not run.name.startswith("probe")]
    ecgfast.evaluate(curve, store, out / "curve")  # AUROC by number of labels
    return ecgfast.evaluate([*shown, pretrained], store, out / "report")


def own_study(
    out: Path,
    source: Path,
    labels: Path,
    targets: Sequence[str],
    *,
    columns: Sequence[str] = (),
    select: str | None = None,
    settings: Settings | None = None,
    workers: int | None = None,
) -> Path:
    """Return the path of the report.

    Args:
        out: folder of everything that is written.
        source: raw ECGs.
        labels: table with the targets' columns.
        targets: what a case is; of several, one model learns all.
        columns: of `labels` to take, beside the ejection fraction and those of yes and no.
        select: which records are read and teach, such as those of one hospital.
        settings: of all trainings, over those of this file.
        workers: processes that convert; None takes the cores.
    """
    store, runs, more = out / "store", out / "runs", settings or {}
    ecgfast.convert([source], store, workers=workers)
    ecgfast.label(store, labels, columns=columns or None)
    pretrained = ecgfast.pretrain(
        store, runs / "pretrained", preset="demo", settings={**PRETRAINING, **more},
        select=select, resume=True,
    )  # fmt: skip
    planned = models("", {"finetune.epochs": 10})
    done = train(store, runs, planned, pretrained, targets=targets, select=select, more=more)
    return ecgfast.evaluate([*done, pretrained], store, out / "report")


def main() -> None:
    """Do the study that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder, new or of a study that was interrupted")
    parser.add_argument("--source", type=Path, help="raw ECGs; default: synthetic hospitals")
    parser.add_argument("--labels", type=Path, help="table with the columns of the targets")
    parser.add_argument("--target", action="append", help=f"may be repeated; default {TARGET}")
    parser.add_argument("--select", help="records of --source that are read; default: all")
    given = parser.parse_args()
    if (given.source is None) != (given.labels is None):
        parser.error("--source and --labels go together")
    if given.source is None:
        report = synthetic_study(given.out)
    else:
        targets = given.target or [TARGET]
        report = own_study(given.out, given.source, given.labels, targets, select=given.select)
    print(report)


if __name__ == "__main__":
    main()
