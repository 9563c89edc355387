"""The whole way on this machine: synthetic hospitals -> store -> training -> report."""

import time
from dataclasses import dataclass
from pathlib import Path

from ecgfast import log
from ecgfast.config import load_config
from ecgfast.convert import convert
from ecgfast.evaluate.report import evaluate
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.store.durable import write_durably
from ecgfast.store.format import key_beside
from ecgfast.train.finetune import finetune
from ecgfast.train.pretrain import pretrain

TARGET = "ejection_fraction<40"
# Pseudonyms decide the splits: one known key gives the same numbers on every machine. Real data get
# a random key from convert.
PSEUDONYM_KEY = "00" * 31 + "01"
TRAINING_SITE = "site=1"  # as in the study: one institution is trained on, the others only test


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """How much the demo does; the defaults fit two cores and ten minutes.

    Attributes:
        num_records: of the cohort; the first of its hospitals has 40 % of them.
        num_sites: hospitals.
        seed: of the cohort.
        pretraining: settings over the preset `demo`.
        finetuning: settings over the presets `demo` and `cnn`: one rate, larger than the study's
            1e-4, 3e-5 and 1e-5, because the model is small and time is short.
    """

    num_records: int = 1600
    num_sites: int = 4
    seed: int = 0
    pretraining: tuple[str, ...] = (
        "train.batch_size=8",
        "train.epochs=30",
        "train.max_steps=1900",  # the schedule is left before the rate is too low to learn
        "optim.base_lr=0.064",  # 2e-3: the loss leaves its plateau at 1.0 after some 900 steps
        "optim.warmup_epochs=1",
        "train.val_fraction=0.05",
        "train.log_every=100",
        "train.val_every=200",
        "train.checkpoint_every=500",
    )
    finetuning: tuple[str, ...] = (
        "model.pool=mean",  # few labels: the class token alone learns later
        "finetune.learning_rates=[1e-3]",
        "finetune.epochs=8",
        "finetune.batch_size=16",
        "finetune.patience=4",
    )


def demo(out: Path, plan: DemoPlan | None = None) -> Path:
    """Run every step on a synthetic cohort; an interrupted demo is resumed.

    Args:
        out: folder for the cohort, the store, the runs and the report.
        plan: how much to do.
    Returns:
        Path of the report.
    """
    plan, begin = plan or DemoPlan(), time.monotonic()
    cohort, store, runs = out / "cohort", out / "synthetic", out / "runs"
    _log_step(begin, "1 of 5: synthetic hospitals")
    if not (cohort / "labels.csv").exists():  # written last
        with log.progress("synth", total=plan.num_records) as advance:
            write_cohort(
                cohort,
                num_records=plan.num_records,
                num_sites=plan.num_sites,
                seed=plan.seed,
                progress=lambda done, total: advance(1),
            )
    _log_step(begin, "2 of 5: convert the files to a store")
    write_durably(key_beside(store), [f"{PSEUDONYM_KEY}\n".encode()], mode=0o600)
    convert([cohort], store, labels=cohort / "labels.csv")
    _log_step(begin, "3 of 5: pretrain a masked autoencoder, without labels")
    pretrained = pretrain(
        load_config("demo", plan.pretraining), store, runs / "pretrained",
        select=TRAINING_SITE, resume=True,
    )  # fmt: skip
    _log_step(begin, "4 of 5: fine-tune three classifiers on the same labels")

    def classifier(preset: str, init: str, name: str) -> Path:
        log.info(f"fine-tuning: {name}")
        config = load_config(preset, plan.finetuning)
        return finetune(
            config, store, runs / name, init=init, target=TARGET, select=TRAINING_SITE, resume=True
        )

    classifiers = [
        classifier("demo", str(pretrained), "vit-pretrained"),
        classifier("demo", "random", "vit-random"),
        classifier("cnn", "random", "cnn"),
    ]
    _log_step(begin, "5 of 5: test them on hospitals that they never saw")
    report = evaluate([*classifiers, pretrained], store, out / "report")
    _log_step(begin, f"done, SYNTHETIC data; the report: {report}")
    return report


def _log_step(begin: float, text: str) -> None:
    log.info(f"[{time.monotonic() - begin:4.0f} s] {text}")
