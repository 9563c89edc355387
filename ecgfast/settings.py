"""Every setting of a run: type, bounds, default, meaning, and whether a resume may change it."""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, TypeVar

from ecgfast_kernels.codec.format import COLUMN_TIMESTEPS
from pydantic import AfterValidator, ConfigDict, InstanceOf, ValidationError
from pydantic import StrictBool as Flag
from pydantic import StrictFloat as Real
from pydantic import StrictInt as Int
from pydantic.dataclasses import dataclass

from ecgfast.errors import ConfigError
from ecgfast.vocabulary import (
    AttentionKernel,
    EngineName,
    Fused,
    Kernels,
    ModelKind,
    Normalise,
    Parallel,
    Pool,
    Precision,
    RunKind,
)

T = TypeVar("T")
Auto = Literal["auto"]
_CLOSED = ConfigDict(extra="forbid")


def _bound(allowed: str, holds: Callable[[Any], bool], *, cure: str = "") -> AfterValidator:
    def check(value: T) -> T:
        if not holds(value):
            got = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{allowed}, got {got!r}{cure}")
        return value

    return AfterValidator(check)


def _positive(value: float) -> bool:
    return 0 < value < math.inf


def _not_negative(value: float) -> bool:
    return 0 <= value < math.inf


def _below_1(value: float) -> bool:
    return 0 <= value < 1


Text = InstanceOf[str]  # also of file names that are not UTF-8, which pydantic's str refuses
Count = Annotated[Int, _bound("at least 1", lambda value: value >= 1)]
PatchTimesteps = Annotated[
    Int,
    _bound(
        f"{COLUMN_TIMESTEPS}, the width of what the loader decodes and the kernels read",
        lambda value: value == COLUMN_TIMESTEPS,
        cure="; leave it out",
    ),
]
Timesteps = Annotated[
    Int,
    _bound(
        f"a multiple of {COLUMN_TIMESTEPS} above 0, a patch being that long",
        lambda value: value > 0 and value % COLUMN_TIMESTEPS == 0,
        cure="; records of a store have 5000",
    ),
]
Seed = Annotated[Int, _bound("in [0, 2^63)", lambda value: 0 <= value < 2**63)]
Positive = Annotated[Real, _bound("above 0", _positive)]
NotNegative = Annotated[Real, _bound("at least 0", _not_negative)]
Fraction = Annotated[Real, _bound("in [0, 1)", _below_1)]
MaskRatio = Annotated[Real, _bound("in [0, 1)", _below_1, cure="; the study masks 0.75")]
# Beside "auto" or unset an integer stays one, and config.toml shows it as it was given.
ClipNorm = Annotated[Int | Real, _bound("above 0", _positive)]
Memory = Annotated[Int | Real, _bound("'auto' or at least 0", _not_negative)]  # GiB
Rates = Annotated[
    tuple[Real, ...],
    _bound("one or more numbers above 0", lambda rates: bool(rates) and all(map(_positive, rates))),
]


def _setting(default: T, meaning: str, *, free: bool = False, only: RunKind | None = None) -> T:
    """A field of a section.

    Args:
        default: in the type that it shall have; runs made before there was this setting have it.
        meaning: one line, with the unit.
        free: may change on a resume: it changes nothing but roundings, or its resolved value is
            compared instead.
        only: the one kind of run that uses it, None for both; the other may change it.
    """
    marks = {"meaning": meaning, "free": free, "only": only}
    field: T = dataclasses.field(default=default, metadata=marks)
    return field


def _errors_in_words(prefix: str) -> Callable[[type[T]], type[T]]:
    """Make a class raise `ConfigError`, with the names that users write, for pydantic's errors."""

    def decorate(cls: type[T]) -> type[T]:
        construct = cls.__init__

        @functools.wraps(construct)
        def checked(self: T, /, **values: object) -> None:
            try:
                construct(self, **values)
            except ValidationError as error:
                raise ConfigError(_in_words(cls, error, values, prefix)) from None

        cls.__init__ = checked  # type: ignore[assignment]  # wider: keywords
        return cls

    return decorate


@_errors_in_words("model.")
@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class ModelConfig:
    """Architecture; the defaults are the study's ViT-Large."""

    # Free: what is compared is the identity's `model`, which earlier versions took from elsewhere.
    kind: ModelKind = _setting("vit", "Transformer or convolutional network.", free=True)
    encoder_width: Count = _setting(1024, "Channels of the encoder.")
    encoder_depth: Count = _setting(24, "Blocks of the encoder.")
    encoder_heads: Count = _setting(16, "Attention heads of each encoder block.")
    decoder_width: Count = _setting(512, "Channels of the decoder.", only="pretrain")
    decoder_depth: Count = _setting(8, "Blocks of the decoder.", only="pretrain")
    decoder_heads: Count = _setting(16, "Attention heads of each decoder block.", only="pretrain")
    pool: Pool = _setting(
        "cls", "What the classifier reads: class token, or mean of the patches.", only="finetune"
    )
    num_leads: Count = _setting(12, "Leads of a record.")
    num_timesteps: Timesteps = _setting(5000, "Timesteps of a record.")
    patch_timesteps: PatchTimesteps = _setting(250, "Timesteps of a patch: the codec's column.")

    @property
    def num_patches(self) -> int:
        """Patches per record: leads x columns."""
        return self.num_leads * (self.num_timesteps // self.patch_timesteps)


@_errors_in_words("mask.")
@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class MaskConfig:
    """Random masking of pretraining."""

    ratio: MaskRatio = _setting(0.75, "Share of the patches that is removed.", only="pretrain")


@_errors_in_words("train.")
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
        "auto", "auto: fp32 on CPU, bf16 on GPU.", free=True
    )
    compile: Flag | Auto = _setting("auto", "auto: where there is a GPU.", free=True)
    cuda_graph: Flag = _setting(False, "Replay forward and backward; bf16 on GPUs.", free=True)
    parallel: Parallel = _setting(
        "fsdp", "fsdp shards the weights; replicas repeat them.", free=True
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


@_errors_in_words("optim.")
@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class OptimConfig:
    """AdamW; the learning rate is base_lr x batch_size / 256."""

    base_lr: Positive = _setting(
        1.5e-4, "Learning rate for 256 records per update.", only="pretrain"
    )
    beta1: Fraction = _setting(0.9, "Decay of the first moment.", only="pretrain")
    beta2: Fraction = _setting(0.95, "Decay of the second moment.", only="pretrain")
    weight_decay: NotNegative = _setting(0.05, "Decoupled, of matrices only.", only="pretrain")
    warmup_epochs: NotNegative = _setting(40, "Epochs of linear warmup.", only="pretrain")
    min_lr: NotNegative = _setting(0.0, "Learning rate at the end of the cosine.", only="pretrain")
    one_pass: Flag = _setting(
        False, "Our AdamW kernel; replayed too with train.cuda_graph.", free=True, only="pretrain"
    )


@_errors_in_words("data.")
@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class DataConfig:
    """How records reach the model."""

    engine: EngineName = _setting("auto", "Who decodes the records, and where.", free=True)
    normalise: Normalise = _setting("record_lead", "What mean and variance are taken over.")
    resident_budget_gib: Memory | Auto = _setting("auto", "GPU memory for the store.", free=True)
    num_threads: Count | Auto = _setting("auto", "Threads that read and decode.", free=True)


@_errors_in_words("finetune.")
@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class FinetuneConfig:
    """Supervised training: every learning rate is tried, the lowest validation loss is kept."""

    learning_rates: Rates = _setting((1e-4, 3e-5, 1e-5), "A training for each.", only="finetune")
    epochs: Count = _setting(30, "Passes over the training records.", only="finetune")
    batch_size: Count = _setting(64, "Records per update.", only="finetune")
    patience: Count = _setting(5, "Epochs without a lower validation loss.", only="finetune")


@_errors_in_words("")
@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Config:
    """Everything that a run depends on; written into its folder."""

    preset: Text = _setting("vit_large", "Name of the preset or of its file.", free=True)
    kernels: Kernels = _setting("auto", "Triton kernels or PyTorch's operators.", free=True)
    attention: AttentionKernel = _setting("auto", "Attention kernel; auto: the fastest.", free=True)
    fused: Fused = _setting("off", "What runs between a block's matrix products.", free=True)
    model: ModelConfig = ModelConfig()
    mask: MaskConfig = MaskConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    data: DataConfig = DataConfig()
    finetune: FinetuneConfig = FinetuneConfig()


SECTIONS: dict[str, Any] = {f.name: f.type for f in fields(Config) if is_dataclass(f.type)}


def free_on_resume(kind: RunKind | None = None) -> frozenset[str]:
    """Flat names, such as "train.log_every", of the settings that a resumed run may change.

    Args:
        kind: of the run, which may also change what only the other kind uses; None: neither.
    """
    places = [("", Config), *((f"{name}.", cls) for name, cls in SECTIONS.items())]
    return frozenset(
        prefix + field.name
        for prefix, cls in places
        for field in fields(cls)
        if field.metadata.get("free") or (kind and field.metadata.get("only") not in (None, kind))
    )


def _in_words(cls: type, error: ValidationError, values: Mapping[str, Any], prefix: str) -> str:
    """The first of pydantic's errors as a line of ours; wrong names and types before bounds."""
    errors = error.errors(include_url=False)
    causes = {e["loc"][:1]: e["ctx"]["error"] for e in errors if e["type"] == "value_error"}
    if () in causes:  # of several settings together
        return str(causes[()])
    place = list(values).index
    first = min(errors, key=lambda e: (e["type"] == "value_error", place(str(e["loc"][0]))))
    name = str(first["loc"][0])
    key, value, hints = prefix + name, values[name], typing.get_type_hints(cls)
    if name not in hints:
        allowed = ", ".join(prefix + other for other in hints)
        return f"unknown setting {key}{nearest(name, hints)}; allowed: {allowed}"
    if is_dataclass(hints[name]):
        return f"{key} is a section, got the value {value!r}; set {key}.name=value"
    # A value that may be of several types has an error for each of them.
    cause = causes.get((name,))
    return f"{key} must be {cause or f'{_describe(hints[name])}, got {value!r}'}"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return the nearest of `allowed` as the end of a message, "" where none is near."""
    match = difflib.get_close_matches(name, list(allowed), n=1)
    return f", did you mean {match[0]!r}?" if match else ""


def _describe(hint: object) -> str:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if float in options:  # which takes integers too
            options = tuple(option for option in options if option is not int)
        return " or ".join(_describe(option) for option in options)
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in options)
    if origin is tuple:
        return "a list of numbers"
    assert isinstance(hint, type)
    words = {float: "a number", int: "an integer", str: "a text", type(None): "unset"}
    return words.get(hint, hint.__name__)
