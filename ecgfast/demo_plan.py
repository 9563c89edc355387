"""What the demo does, planned before any result was seen.

Hospital 1 has labels, hospitals 2 to 4 have ECGs without them, hospital 5 tests. A ViT that read
the ECGs of hospitals 1 to 4, the same ViT with random weights, and a CNN learn from 50, 100, 200
and 400 labelled ECGs of hospital 1, three times each, from other patients. The claim is that
pretraining saves labels: at 100 of them, the pretrained ViT is better than both others in
hospital 5. `ecgfast.evaluate.claim` says whether it was.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ecgfast.errors import ConfigError
from ecgfast.ingest.synthetic_population import Design

Init = Literal["pretrained", "random"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A model of the label-efficiency curve.

    Attributes:
        name: in the report.
        folder: beginning of the names of its runs' folders.
        preset: of its settings.
        init: first weights.
        settings: over those of the plan.
    """

    name: str
    folder: str
    preset: str
    init: Init
    settings: tuple[str, ...] = ()


_FROZEN = ("finetune.frozen=true", "finetune.learning_rates=[3e-3]", "finetune.epochs=8")


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """How much the demo does; the defaults take two cores some ten minutes.

    Attributes:
        num_records: of the cohort; the first of its hospitals has two shares, every other one.
        num_sites: hospitals.
        seed: of the cohort.
        design: what is planted, and which hospitals have no labels.
        unlabelled: which records pretraining reads.
        vit: architecture of the ViT, over the preset `demo`.
        labels: number of labelled records -> epochs, so that small sets are seen often enough.
        claim_at: number of labels at which the claim is tested.
        num_seeds: trainings of each model on each number of labels.
        pretraining: settings over the preset `demo` and `vit`.
        finetuning: settings of all models over their presets and the recipe `best_practice`.
        lines: models of the curve, the one of the claim first.
        frozen: encoders of which the head alone learns, from the most labels.
    """

    num_records: int = 3600
    num_sites: int = 5
    seed: int = 0
    design: Design = field(
        default_factory=lambda: Design(prevalence=0.33, unlabelled=("2", "3", "4"))
    )
    unlabelled: str = "site in (1, 2, 3, 4)"
    vit: tuple[str, ...] = (
        "model.encoder_width=64",
        "model.encoder_depth=3",
        "model.decoder_width=64",
        "model.decoder_depth=1",
    )
    labels: tuple[tuple[int, int], ...] = ((50, 10), (100, 8), (200, 5), (400, 3))
    claim_at: int = 100
    num_seeds: int = 3
    pretraining: tuple[str, ...] = (
        "train.batch_size=8",
        "train.epochs=12",
        "mask.norm_patch_loss=false",  # flat patches, most of a record, would else weigh as QRS do
        "optim.base_lr=0.064",  # 2e-3
        "optim.warmup_epochs=0.5",
        "train.val_fraction=0.025",
        "train.log_every=100",
        "train.val_every=700",
        "train.checkpoint_every=700",
    )
    finetuning: tuple[str, ...] = (
        "finetune.learning_rates=[1e-3]",
        "finetune.batch_size=8",
        "finetune.warmup_epochs=1",
        "finetune.probe_epochs=0",
    )
    lines: tuple[Line, ...] = (
        Line(
            name="ViT, pretrained",
            folder="vit-pretrained",
            preset="demo",
            init="pretrained",
            settings=("finetune.probe_epochs=5", "finetune.probe_lr=3e-3"),
        ),
        Line(
            name="ViT, random init",
            folder="vit-random",
            preset="demo",
            init="random",
        ),
        Line(name="CNN", folder="cnn", preset="resnet1d_small", init="random"),
    )
    frozen: tuple[Line, ...] = (
        Line(
            name="frozen, pretrained",
            folder="probe-pretrained",
            preset="demo",
            init="pretrained",
            settings=_FROZEN,
        ),
        Line(
            name="frozen, random init",
            folder="probe-random",
            preset="demo",
            init="random",
            settings=_FROZEN,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Training:
    """One fine-tuning.

    Attributes:
        line: what is trained.
        num_labels: records that teach, about: patients are taken whole.
        seed: of weights and order, and of the patients who teach.
        settings: all of them.
    """

    line: Line
    num_labels: int
    seed: int
    settings: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.line.folder}-{self.num_labels}-seed{self.seed}"


def trainings(plan: DemoPlan, num_labelled: int) -> Iterator[Training]:
    """Every fine-tuning of a plan, seed by seed.

    Args:
        plan: of the demo.
        num_labelled: records of the training split of `TRAINING_SITE`.
    Raises:
        ConfigError: it asks for more labels than there are.
    """
    most, _ = plan.labels[-1]
    if most > num_labelled:
        raise ConfigError(f"labels must be at most {num_labelled}, got {most}; write more records")
    for seed in range(plan.num_seeds):
        for num_labels, epochs in plan.labels:
            common = (
                *plan.finetuning,
                f"finetune.epochs={epochs}",
                f"finetune.label_fraction={num_labels / num_labelled!r}",
                f"train.seed={seed}",
            )
            frozen = plan.frozen if num_labels == most and seed == 0 else ()
            for line in (*plan.lines, *frozen):
                architecture = plan.vit if line.preset == "demo" else ()
                settings = (*common, *architecture, *line.settings)
                yield Training(line=line, num_labels=num_labels, seed=seed, settings=settings)
