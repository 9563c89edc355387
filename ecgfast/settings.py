"""Every setting of a run: type, bounds, default, meaning, and whether a resume may change it."""

import dataclasses
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ecgfast.bounds import (
    ClipNorm,
    Count,
    Flag,
    Fraction,
    Leads,
    MaskRatio,
    Memory,
    NotNegative,
    NotNegativeCount,
    PatchTimesteps,
    Positive,
    Rates,
    Seed,
    Share,
    Shift,
    Text,
    Timesteps,
    errors_in_words,
)
from ecgfast.errors import ConfigError
from ecgfast.vocabulary import (
    AttentionKernel,
    ClassWeights,
    EngineName,
    Fused,
    HeadInit,
    Kernels,
    Mesh,
    ModelKind,
    Normalise,
    NumberLoss,
    Parallel,
    Pool,
    Precision,
    RunKind,
    Schedule,
)

T = TypeVar("T")
Auto = Literal["auto"]
_CLOSED = ConfigDict(extra="forbid")


def _setting(
    default: T,
    meaning: str,
    *,
    free: bool = False,
    only: RunKind | None = None,
    of: ModelKind | None = None,
) -> T:
    """A field of a section.

    Args:
        default: in the type that it shall have; runs made before there was this setting have it.
        meaning: one line, with the unit.
        free: may change on a resume: roundings, the end, what is logged, kept or cached; or its
            resolved value is compared.
        only: the one kind of run that uses it, None for both or for that of its section; the other
            may change it.
        of: the one kind of model that uses it, None for several.
    """
    marks = {"meaning": meaning, "free": free, "only": only, "of": of}
    field: T = dataclasses.field(default=default, metadata=marks)
    return field


@errors_in_words("model.")
@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class ModelConfig:
    """Architecture; the defaults are the study's ViT-Large."""

    # Free: what is compared is the identity's `model`, which earlier versions took from elsewhere.
    kind: ModelKind = _setting("vit", "Transformer or convolutional network.", free=True)
    encoder_width: Count = _setting(1024, "Channels of the encoder.", of="vit")
    encoder_depth: Count = _setting(24, "Blocks of the encoder.", of="vit")
    encoder_heads: Count = _setting(16, "Attention heads of each encoder block.", of="vit")
    decoder_width: Count = _setting(512, "Channels of the decoder.", only="pretrain")
    decoder_depth: Count = _setting(8, "Blocks of the decoder.", only="pretrain")
    decoder_heads: Count = _setting(16, "Attention heads of each decoder block.", only="pretrain")
    pool: Pool = _setting(
        "cls",
        "What a vit's head reads: class token, mean of the patches, or mean and max by lead.",
        only="finetune",
        of="vit",
    )
    head_norm: Flag = _setting(
        True, "Of a vit: normalise features before the last layer.", only="finetune", of="vit"
    )
    dense_norm: Flag = _setting(
        False, "Of the cnn: batch norm behind its dense layers.", only="finetune", of="cnn"
    )
    dense_dropout: Fraction = _setting(
        0.0, "Of the cnn: share of dense units left out.", only="finetune", of="cnn"
    )
    filters: Count = _setting(
        128, "Of resnet1d_wang: of each convolution.", only="finetune", of="resnet1d_wang"
    )
    stem_stride: Count = _setting(
        1,
        "Of resnet1d_wang: stride of the first convolution, at 100 Hz.",
        only="finetune",
        of="resnet1d_wang",
    )
    num_leads: Count = _setting(12, "Leads of a record; with data.leads their number.")
    num_timesteps: Timesteps = _setting(5000, "Timesteps of a record.")
    patch_timesteps: PatchTimesteps = _setting(250, "Timesteps of a patch: the codec's column.")

    @property
    def num_patches(self) -> int:
        """Patches per record: leads x columns."""
        return self.num_leads * (self.num_timesteps // self.patch_timesteps)


@errors_in_words("mask.")
@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class MaskConfig:
    """Random masking of pretraining."""

    ratio: MaskRatio = _setting(0.75, "Share of the patches that is removed.")
    norm_patch_loss: Flag = _setting(True, "Predict patches of mean 0 and variance 1.")


@errors_in_words("train.")
@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class TrainConfig:
    """Length, batch and bookkeeping of a run."""

    batch_size: Count = _setting(1024, "Records per update, over all ranks.", only="pretrain")
    epochs: Count = _setting(1600, "Passes over the records.", only="pretrain")
    max_steps: Count | None = _setting(
        None, "Ends the run early; same schedule.", free=True, only="pretrain"
    )
    microbatch: Count | Auto = _setting("auto", "Records per rank and forward pass.", free=True)
    precision: Literal[Auto, Precision] = _setting(
        "auto", "auto: fp32 on CPU, bf16 on GPU.", free=True, of="vit"
    )
    compile: Flag | Auto = _setting("auto", "auto: where there is a GPU.", free=True)
    cuda_graph: Flag = _setting(False, "Replay forward and backward; bf16 on GPUs.", free=True)
    parallel: Parallel = _setting(
        "fsdp", "fsdp shards the weights; replicas repeat them.", free=True
    )
    mesh: Mesh = _setting(
        "auto", "fsdp over all GPUs (flat) or within each machine (hybrid).", free=True
    )
    deterministic: Flag = _setting(False, "The same bits in each run on a GPU; slower.")
    seed: Seed = _setting(0, "Of initial weights, order and masks.")
    log_every: Count = _setting(50, "Steps between rows of metrics.", free=True, only="pretrain")
    checkpoint_every: Count = _setting(
        1000, "Steps between checkpoints.", free=True, only="pretrain"
    )
    checkpoint_keep: Count = _setting(2, "Checkpoints that are kept.", free=True, only="pretrain")
    milestone_every: Count | None = _setting(
        None, "Steps between checkpoints kept for good.", free=True, only="pretrain"
    )
    clip_norm: ClipNorm | None = _setting(None, "Largest norm of a gradient.", only="pretrain")
    val_fraction: Fraction = _setting(
        0.0, "Share of records (whole patients) that validate pretraining.", only="pretrain"
    )
    val_every: Count = _setting(500, "Steps between validations.", free=True, only="pretrain")
    probe: Text | None = _setting(
        None, "A target whose linear probe watches pretraining.", free=True, only="pretrain"
    )
    probe_every: Count = _setting(1000, "Steps between probes.", free=True, only="pretrain")


@errors_in_words("optim.")
@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class OptimConfig:
    """AdamW; the learning rate is base_lr x batch_size / 256."""

    base_lr: Positive = _setting(1.5e-4, "Learning rate for 256 records per update.")
    beta1: Fraction = _setting(0.9, "Decay of the first moment.")
    beta2: Fraction = _setting(0.95, "Decay of the second moment.")
    weight_decay: NotNegative = _setting(0.05, "Decoupled, of matrices only.")
    warmup_epochs: NotNegative = _setting(40, "Epochs of linear warmup.")
    min_lr: NotNegative = _setting(0.0, "Learning rate at the end of the cosine.")
    one_pass: Flag = _setting(
        False, "Our AdamW kernel; replayed too with train.cuda_graph.", free=True
    )


@errors_in_words("data.")
@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class DataConfig:
    """How records reach the model."""

    engine: EngineName = _setting("auto", "Who decodes the records, and where.", free=True)
    normalise: Normalise = _setting("record_lead", "What mean and variance are taken over.")
    leads: Leads | None = _setting(None, "Leads that the model takes; unset: all twelve.")
    resident_budget_gib: Memory | Auto = _setting("auto", "GPU memory for the store.", free=True)
    num_threads: Count | Auto = _setting("auto", "Threads that read and decode.", free=True)
    cache_dir: Text | None = _setting(None, "Folder for copies of stores by address.", free=True)


@errors_in_words("finetune.")
@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class FinetuneConfig:
    """Supervised training: every learning rate is tried, the lowest validation loss is kept."""

    learning_rates: Rates = _setting((1e-4, 3e-5, 1e-5), "A training for each.")
    epochs: Count = _setting(30, "Passes over the training records.")
    batch_size: Count = _setting(64, "Records per update.")
    patience: Count = _setting(5, "Epochs without a lower validation loss.")
    schedule: Schedule = _setting("constant", "Of the learning rate; cosine ends at 0.")
    warmup_epochs: NotNegative = _setting(0.0, "Epochs of linear warmup.")
    layer_decay: Share = _setting(
        1.0, "Of a vit: rate of a block, as a share of the next one's.", of="vit"
    )
    weight_decay: NotNegative = _setting(0.0, "Decoupled, of matrices only.")
    drop_path: Fraction = _setting(
        0.0,
        "Of a vit: share of the last block's branches left out; linear over the blocks.",
        of="vit",
    )
    head_init: HeadInit = _setting(
        "xavier", "First weights of the last layer; prior: 0, and the training prevalence as bias."
    )
    number_loss: NumberLoss = _setting("squared", "Of a number; huber is linear beyond one SD.")
    frozen: Flag = _setting(False, "Train the head alone: a linear probe.")
    probe_epochs: NotNegativeCount = _setting(0, "Epochs of the head alone, before all weights.")
    probe_lr: Positive = _setting(1e-3, "Constant learning rate of these epochs.")
    probe_c: Rates = _setting(
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
        "Of ecgfast probe: C to try, inverse strength of the L2 penalty; of ridge 1 / (2 alpha).",
        of="vit",
    )
    label_fraction: Share = _setting(
        1.0, "Of the patients with labels, in training and validation; train.seed draws them."
    )
    labels_per_class: Count | None = _setting(
        None, "Patients of each class who teach, drawn likewise; null: all of label_fraction."
    )
    class_weights: ClassWeights = _setting(
        "none", "balanced: every class weighs alike in the loss, however rare it is."
    )

    def __post_init__(self) -> None:
        if self.frozen and self.probe_epochs:
            raise ConfigError(
                "finetune.probe_epochs must be 0 with finetune.frozen, which trains the head alone "
                f"in all epochs, got {self.probe_epochs}; set one of the two"
            )
        if self.labels_per_class is not None and self.label_fraction != 1:
            raise ConfigError(
                "finetune.labels_per_class must be unset with a finetune.label_fraction, got "
                f"{self.labels_per_class} and {self.label_fraction:g}; set one of the two"
            )


@errors_in_words("augment.")
@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class AugmentConfig:
    """Random changes of the records that fine-tuning learns from, new in each epoch."""

    shift_timesteps: Shift = _setting(0, "Largest shift, either way; zeros move in.")
    lead_dropout: Fraction = _setting(0.0, "Share of leads set to 0; one always stays.")
    noise: NotNegative = _setting(0.0, "Standard deviation of white noise, in normalised units.")


@errors_in_words("")
@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Config:
    """Everything that a run depends on; written into its folder."""

    preset: Text = _setting("vit_large", "Name of the preset or of its file.", free=True)
    recipe: Text = _setting("paper", "Name of the fine-tuning recipe, or of its file.", free=True)
    kernels: Kernels = _setting(
        "auto", "Triton kernels or PyTorch's operators.", free=True, of="vit"
    )
    attention: AttentionKernel = _setting(
        "auto", "Attention kernel; auto: the fastest.", free=True, of="vit"
    )
    fused: Fused = _setting(
        "off", "What runs between a block's matrix products.", free=True, of="vit"
    )
    model: ModelConfig = ModelConfig()
    mask: MaskConfig = MaskConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    augment: AugmentConfig = AugmentConfig()

    def __post_init__(self) -> None:
        leads = self.data.leads
        if leads is not None and self.model.num_leads != len(leads):
            object.__setattr__(self, "model", replace(self.model, num_leads=len(leads)))


SECTIONS: dict[str, Any] = {f.name: f.type for f in fields(Config) if is_dataclass(f.type)}

# Sections that one kind of run uses.
OF_ONE_KIND: dict[str, RunKind] = {
    "mask": "pretrain", "optim": "pretrain", "finetune": "finetune", "augment": "finetune",
}  # fmt: skip

_EVERY = {  # flat name, such as "train.log_every" -> the one kind of run that uses it, marks
    f"{section}.{field.name}".lstrip("."): (
        field.metadata.get("only") or OF_ONE_KIND.get(section),
        field.metadata,
    )
    for section, cls in {"": Config, **SECTIONS}.items()
    for field in fields(cls)
}


def free_on_resume(kind: RunKind | None = None) -> frozenset[str]:
    """Flat names of settings that a resumed run may change, those of other kinds of run too."""
    return frozenset(
        name
        for name, (only, marks) in _EVERY.items()
        if marks.get("free") or (kind and only not in (None, kind))
    )


def ignored_by(kind: ModelKind) -> frozenset[str]:
    """Flat names of the settings that another kind of model uses alone."""
    return frozenset(n for n, (_, marks) in _EVERY.items() if marks.get("of") not in (None, kind))
