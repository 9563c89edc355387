"""A whole study by the public functions: synthetic hospitals, a store, three models, a report.

python examples/python/study.py study
python examples/python/study.py study --source /share/ecg --labels echo.csv --target "lvh=1"

Of several targets (`--target` repeated) each model learns all at once.
"""

import argparse
from pathlib import Path

import ecgfast

# Minutes on two cores; a study of its own takes the defaults.
PRETRAINING = {"train.epochs": 20}
FINETUNING = {"finetune.epochs": 5, "finetune.learning_rates": [1e-3]}


def study(
    out: Path,
    *,
    source: Path | None = None,
    labels: Path | None = None,
    targets: tuple[str, ...] = ("ejection_fraction<40",),
    columns: tuple[str, ...] = (),
    select: str | None = "site=1",
    num_records: int = 1500,
    settings: dict[str, object] | None = None,
    workers: int | None = None,
) -> Path:
    """Return the path of the report.

    Args:
        out: folder of everything that is written.
        source: raw ECGs; None makes synthetic hospitals.
        labels: table with the targets' columns; None: that of the synthetic hospitals.
        targets: what a case is; of several, one model learns all.
        columns: of `labels` to take, beside the ejection fraction and those of 0 and 1.
        select: the records that teach, such as those of one hospital.
        num_records: of the synthetic hospitals.
        settings: of all trainings, over those of this file.
        workers: processes that convert; None takes the cores.
    """
    if source is None:
        source = out / "cohort"
        ecgfast.synth(source, num_records=num_records)
    store, runs, more = out / "store", out / "runs", settings or {}
    ecgfast.convert([source], store, workers=workers)
    ecgfast.label(store, labels or source / "labels.csv", columns=columns or None)
    pretrained = ecgfast.pretrain(
        store, runs / "pretrained", preset="demo", settings={**PRETRAINING, **more}, select=select
    )
    tuned = [
        ecgfast.finetune(
            store, runs / name, init=init, target=targets, select=select, preset=preset,
            settings={**FINETUNING, **more},
        )
        for name, init, preset in (
            ("transformer", pretrained, None),
            ("random", "random", "demo"),
            ("cnn", "random", "cnn"),
        )
    ]  # fmt: skip
    return ecgfast.evaluate([*tuned, pretrained], store, out / "report")


def main() -> None:
    """Do the study that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder, new or empty")
    parser.add_argument("--source", type=Path, help="raw ECGs; default: synthetic hospitals")
    parser.add_argument("--labels", type=Path, help="table with the columns of the targets")
    parser.add_argument("--target", action="append", help="may be repeated")
    parser.add_argument("--select", help="records that teach; default: site=1, or all of --source")
    given = parser.parse_args()
    select = given.select or (None if given.source else "site=1")
    targets = tuple(given.target or ["ejection_fraction<40"])
    report = study(
        given.out, source=given.source, labels=given.labels, targets=targets, select=select
    )
    print(report)


if __name__ == "__main__":
    main()
