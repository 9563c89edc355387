"""Frozen settings <- TOML preset <- ``--set section.name=value``; an unknown key is an error."""

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

from ecgfast.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture; the defaults are the study's ViT-Large."""

    kind: Literal["vit", "cnn"] = "vit"
    encoder_width: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    pool: Literal["cls", "mean"] = "cls"
    num_leads: int = 12
    num_timesteps: int = 5000
    patch_timesteps: int = 250

    def __post_init__(self) -> None:
        counts = ["width", "depth", "heads"]
        names = [f"{part}_{count}" for part in ("encoder", "decoder") for count in counts]
        _at_least_one("model", self, *names, "num_leads", "num_timesteps", "patch_timesteps")
        _require(
            self.num_timesteps % self.patch_timesteps == 0,
            "model.patch_timesteps",
            f"a divisor of model.num_timesteps = {self.num_timesteps}",
            self.patch_timesteps,
        )

    @property
    def num_patches(self) -> int:
        """Patches per record: leads x columns."""
        return self.num_leads * (self.num_timesteps // self.patch_timesteps)


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Random masking of pretraining."""

    ratio: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ConfigError(
                f"mask.ratio must be in [0, 1), got {self.ratio}; the study masks 0.75"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, batch and bookkeeping of a run; `batch_size` is global, over all ranks."""

    batch_size: int = 1024
    epochs: int = 1600
    max_steps: int | None = None  # cuts the run, not the schedule
    microbatch: int | Literal["auto"] = "auto"  # records per rank and forward pass
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: fp32 on CPU, bf16 on GPU
    compile: bool | Literal["auto"] = "auto"  # auto: on where there is a GPU
    cuda_graph: bool = False  # replay forward and backward; pretraining on GPUs in bf16
    parallel: Literal["fsdp", "replicas"] = "fsdp"  # several ranks: shard the weights, or repeat
    deterministic: bool = False
    seed: int = 0
    log_every: int = 50  # steps
    checkpoint_every: int = 1000  # steps
    checkpoint_keep: int = 2
    milestone_every: int | None = None  # steps; these checkpoints are never deleted
    clip_norm: float | None = None
    val_fraction: float = 0.0  # records (whole patients) held out of pretraining to watch it
    val_every: int = 500  # steps

    def __post_init__(self) -> None:
        _at_least_one("train", self, "batch_size", "epochs", "max_steps", "microbatch", "log_every")
        _at_least_one("train", self, "checkpoint_every", "checkpoint_keep", "milestone_every")
        _at_least_one("train", self, "val_every")
        _require(0 <= self.seed < 2**63, "train.seed", "in [0, 2^63)", self.seed)
        clip = self.clip_norm
        _require(clip is None or 0 < clip < math.inf, "train.clip_norm", "above 0", clip)
        _require(0 <= self.val_fraction < 1, "train.val_fraction", "in [0, 1)", self.val_fraction)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW; the learning rate is base_lr x batch_size / 256."""

    base_lr: float = 1.5e-4
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.05
    warmup_epochs: float = 40
    min_lr: float = 0.0
    one_pass: bool = False  # our own AdamW kernel; replayed too with train.cuda_graph

    def __post_init__(self) -> None:
        _require(0 < self.base_lr < math.inf, "optim.base_lr", "above 0", self.base_lr)
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"optim.{name}", "in [0, 1)", value)
        for name in ("weight_decay", "warmup_epochs", "min_lr"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"optim.{name}", "at least 0", value)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How records reach the model."""

    engine: Literal["auto", "resident", "dali", "cpu"] = "auto"
    normalise: Literal["record_lead", "record", "cohort_lead", "none"] = "record_lead"
    resident_budget_gib: float | Literal["auto"] = "auto"
    num_threads: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        _at_least_one("data", self, "num_threads")
        budget = self.resident_budget_gib
        _require(
            budget == "auto" or 0 <= budget < math.inf,
            "data.resident_budget_gib",
            "'auto' or at least 0",
            budget,
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Supervised training: every learning rate is tried, the lowest validation loss is kept."""

    learning_rates: tuple[float, ...] = (1e-4, 3e-5, 1e-5)
    epochs: int = 30
    batch_size: int = 64
    patience: int = 5  # epochs without a lower validation loss

    def __post_init__(self) -> None:
        _at_least_one("finetune", self, "epochs", "batch_size", "patience")
        rates = self.learning_rates
        valid = bool(rates) and all(0 < rate < math.inf for rate in rates)
        _require(valid, "finetune.learning_rates", "one or more numbers above 0", list(rates))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run depends on; written resolved into its folder."""

    preset: str = "vit_large"
    kernels: Literal["auto", "triton", "reference"] = "auto"
    attention: Literal[
        "auto", "triton", "xformers", "sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "math"
    ] = "auto"
    fused: Literal["off", "separate", "triton", "quack"] = "off"  # see `model.fused_block`
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)


def _require(holds: bool, key: str, allowed: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"{key} must be {allowed}, got {value!r}")


def _at_least_one(section: str, settings: object, *names: str) -> None:
    """Refuse counts below 1; "auto" and unset stay what they are."""
    for name in names:
        value = getattr(settings, name)
        _require(value in ("auto", None) or value >= 1, f"{section}.{name}", "at least 1", value)


def load_config(preset: str, overrides: Iterable[str] = ()) -> Config:
    """Resolve a preset and ``section.name=value`` overrides.

    Args:
        preset: a name from `preset_names`, or the path of a TOML file.
        overrides: values are TOML literals; a bare word is a string.
    Raises:
        ConfigError: unknown preset or key, or a value of the wrong type; names the nearest key.
    """
    tree = _read_preset(preset)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"--set needs section.name=value, got {override!r}")
        if key.strip() == "preset":
            raise ConfigError(f"--set {override}: choose a preset with --preset")
        _put(tree, key.strip(), _parse_literal(text.strip()), override)
    # Not its folder: runs are shared, and paths name people and projects.
    return config_from_dict({**tree, "preset": Path(preset).name})


def config_from_dict(tree: Mapping[str, Any]) -> Config:
    """Build a `Config` from nested plain values, such as a parsed ``config.toml``."""
    return _build(Config, tree, prefix="")


def config_to_toml(config: Config) -> str:
    """Render a config as TOML that `config_from_dict` reads back to an equal value."""
    tree = dataclasses.asdict(config)
    lines = [_toml_line(key, value) for key, value in tree.items() if not isinstance(value, dict)]
    for section, values in tree.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]"]
            lines += [_toml_line(k, v) for k, v in values.items() if v is not None]
    return "\n".join(lines) + "\n"


def preset_names() -> list[str]:
    """Names of the presets that ship with ecgfast."""
    folder = files("ecgfast") / "presets"
    return sorted(
        p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
    )


def _read_preset(preset: str) -> dict[str, Any]:
    if preset.endswith(".toml"):
        path = Path(preset)
        if not path.is_file():
            raise ConfigError(f"no preset file {preset}; name an existing TOML file")
        text = path.read_text(encoding="utf-8", errors="replace")  # TOML itself allows only UTF-8
    else:
        names = preset_names()
        if preset not in names:
            raise ConfigError(
                f"unknown preset {preset!r}{_nearest(preset, names)}; allowed: {', '.join(names)}"
            )
        text = (files("ecgfast") / "presets" / f"{preset}.toml").read_text(encoding="utf-8")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"preset {preset} is not valid TOML: {error}") from error


def _parse_literal(text: str) -> object:
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return tree["value"] if len(tree) == 1 else text  # a line break would begin a second key


def _put(tree: dict[str, Any], key: str, value: object, override: str) -> None:
    section, dot, name = key.partition(".")
    if not dot:
        tree[section] = value
        return
    values = tree.setdefault(section, {})
    if "." in name or not isinstance(values, dict):
        raise ConfigError(f"--set {override}: keys are name or section.name, got {key!r}")
    values[name] = value


def _nearest(name: str, allowed: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, list(allowed), n=1)
    return f", did you mean {match[0]!r}?" if match else ""


def _build(cls: type[T], tree: Mapping[str, Any], *, prefix: str) -> T:
    assert is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    values: dict[str, Any] = {}
    for name, value in tree.items():
        if name not in hints:
            raise ConfigError(
                f"unknown setting {prefix}{name}{_nearest(name, names)}; "
                f"allowed: {', '.join(prefix + n for n in names)}"
            )
        values[name] = _convert(hints[name], value, key=prefix + name)
    return cls(**values)


def _convert(hint: object, value: object, *, key: str) -> object:
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} is a section, got the value {value!r}; set {key}.name=value")
        return _build(hint, value, prefix=f"{key}.")
    if _matches(hint, value):
        if isinstance(value, list | tuple):
            return tuple(float(item) for item in value)
        return float(value) if hint is float and isinstance(value, int) else value
    raise ConfigError(f"{key} must be {_describe(hint)}, got {value!r}")


def _matches(hint: object, value: object) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(option, value) for option in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint) and not isinstance(value, bool)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_matches(float, item) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    assert isinstance(hint, type)
    return isinstance(value, hint)


def _describe(hint: object) -> str:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in typing.get_args(hint))
    if origin is tuple:
        return "a list of numbers"
    assert isinstance(hint, type)
    words = {float: "a number", int: "an integer", str: "a text", type(None): "unset"}
    return words.get(hint, hint.__name__)


def _toml_line(key: str, value: object) -> str:
    """A line of TOML: JSON's literals, but for characters that TOML writes in another way."""
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    # half a UTF-16 pair stands for a byte of a file name that is no UTF-8: TOML has no form for it
    readable = text.encode("utf-8", "replace").decode("utf-8").replace("\x7f", r"\u007f")
    return f"{key} = {readable}"
