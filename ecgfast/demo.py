"""The whole way on this machine: synthetic hospitals -> store -> training -> report."""

import time
from pathlib import Path
from typing import Literal

from ecgfast import log
from ecgfast.config import load_config
from ecgfast.convert import convert
from ecgfast.evaluate.report import evaluate
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.train.finetune import finetune
from ecgfast.train.pretrain import pretrain

NUM_RECORDS, NUM_SITES, SEED = 1600, 4, 0
TARGET = "ejection_fraction<40"
# As in the study, one institution is trained on and the others are only tested on.
TRAINING_SITE = "site=1"
PRETRAINING = (
    "train.batch_size=8",
    "train.epochs=20",
    "train.val_fraction=0.05",
    "train.log_every=100",
    "train.val_every=200",
    "train.checkpoint_every=500",
)
# The small model needs larger rates than the study's 1e-4, 3e-5 and 1e-5.
FINETUNING = (
    "finetune.learning_rates=[1e-3, 3e-4]",
    "finetune.epochs=8",
    "finetune.batch_size=16",
    "finetune.patience=3",
)


def demo(out: Path) -> Path:
    """Run every step on a synthetic cohort; an interrupted demo goes on where it was.

    Args:
        out: folder for the cohort, the store, the runs and the report.
    Returns:
        Path of the report.
    """
    begin = time.monotonic()
    cohort, store, runs = out / "cohort", out / "store", out / "runs"
    _say(begin, "1 of 5: synthetic hospitals")
    if not (cohort / "labels.csv").exists():  # written last
        with log.progress("synth", total=NUM_RECORDS) as advance:
            write_cohort(
                cohort,
                num_records=NUM_RECORDS,
                num_sites=NUM_SITES,
                seed=SEED,
                progress=lambda done, total: advance(1),
            )
    _say(begin, "2 of 5: convert the files to a store")
    convert([cohort], store, labels=cohort / "labels.csv")
    _say(begin, "3 of 5: pretrain a masked autoencoder, without labels")
    pretrained = pretrain(
        load_config("demo", PRETRAINING), store, runs / "pretrained",
        select=TRAINING_SITE, resume=True,
    )  # fmt: skip
    _say(begin, "4 of 5: fine-tune three classifiers on the same labels")
    classifiers = [
        _classifier("vit", str(pretrained), store, runs / "vit-pretrained"),
        _classifier("vit", "random", store, runs / "vit-random"),
        _classifier("cnn", "random", store, runs / "cnn"),
    ]
    _say(begin, "5 of 5: test them on hospitals that they never saw")
    report = evaluate([*classifiers, pretrained], store, out / "report")
    _say(begin, f"done, SYNTHETIC data; the report: {report}")
    return report


def _classifier(model: Literal["vit", "cnn"], init: str, store: Path, run: Path) -> Path:
    log.logger.info(f"fine-tuning: {run.name}")
    return finetune(
        load_config("demo" if model == "vit" else "cnn", FINETUNING),
        store,
        run,
        init=init,
        model=model,
        target=TARGET,
        select=TRAINING_SITE,
        resume=True,
    )


def _say(begin: float, words: str) -> None:
    log.logger.info(f"[{time.monotonic() - begin:4.0f} s] {words}")
