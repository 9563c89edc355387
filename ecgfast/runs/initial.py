"""Where a classifier's weights come from: a run, a file, ImageNet, or random numbers."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ecgfast import log
from ecgfast.config import Config
from ecgfast.errors import ConfigError, FormatError
from ecgfast.model.build import lead_numbers
from ecgfast.model.classifier import Classifier, encoder_state
from ecgfast.model.vit import Encoder
from ecgfast.records import LEADS
from ecgfast.runs.digests import read_weights
from ecgfast.runs.loading import load_model
from ecgfast.runs.located import located
from ecgfast.runs.meta import Preprocessing
from ecgfast.runs.public_encoders import LEFT_OUT, LOADED, NEW, adopt, is_public, report
from ecgfast.runs.register import Origin, Register, read_register

WORDS = ("random", "imagenet-mae")  # of --init, beside paths
IMAGENET_FILES = {768: "mae_pretrain_vit_base.pth", 1024: "mae_pretrain_vit_large.pth"}
IMAGENET_URL = "https://dl.fbaipublicfiles.com/mae/pretrain/"
IMAGENET_VARIABLE = "ECGFAST_IMAGENET_MAE"
# Another patch shape and another grid of positions: these start as our own model has them.
NOT_FROM_IMAGENET = ("patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed")


@dataclass(frozen=True, kw_only=True)
class Initial:
    """Weights to start from.

    Attributes:
        encoder: state dict under the reference names; None leaves the random weights.
        preprocessing: how their records were prepared, None where nobody knows.
        register: whose records they were trained on, None where there were none or nobody knows.
        origin: which of the two, for the run's own register.
        tensors: of weights of others: what became of a tensor -> how many.
        new: names of tensors that the weights may lack: they begin as our own.
    """

    encoder: dict[str, Tensor] | None = None
    preprocessing: Preprocessing | None = None
    register: Register | None = None
    origin: Origin = "none"
    tensors: Mapping[str, int] = field(default_factory=dict)
    new: frozenset[str] = frozenset({"pos_embed"})


def read_initial(init: str, config: Config, *, option: str = "--init") -> Initial:
    """Read the weights that an option names.

    Args:
        init: a pretraining run, exported or not, as `located` names it; a .safetensors or .pth
            file with the reference names, or of a public ECG encoder; "imagenet-mae", or "random".
        config: of the classifier; convolutional baselines start at random only.
        option: what errors call it.
    Raises:
        ConfigError: no such run or file, or the weights do not fit what is asked for.
        FormatError: the file cannot be read.
    """
    if init == "random":
        return Initial()
    if config.model.kind != "vit":
        raise ConfigError(f"{option} of a {config.model.kind} must be 'random', got {init!r}")
    if init == "imagenet-mae":
        return _from_imagenet(read_weights(imagenet_file(config)), config)
    path = located(init)
    if path.is_dir():
        pretrained, _, meta = load_model(path)
        if meta.kind != "pretrain":
            raise ConfigError(f"{option} {init} must be a pretraining run, got a {meta.kind} run")
        state = encoder_state(pretrained.state_dict())
        register = read_register(path)
        if register is None:
            log.warning(
                f"{path} does not say whose ECGs it read: it was exported, or an earlier version "
                "trained it"
            )
        return Initial(
            encoder=state,
            preprocessing=meta.preprocessing,
            register=register,
            origin="unknown" if register is None else "run",
        )
    if not path.is_file():
        raise ConfigError(
            f"{option} must be a run, a .safetensors or .pth file, hf://OWNER/NAME, imagenet-mae "
            f"or random, got {init!r}, which does not exist"
        )
    state = read_weights(path)
    if not is_public(state):
        return Initial(encoder=encoder_state(state), origin="unknown")
    found = adopt(state, _own(config), config.model, path)
    return Initial(encoder=found.encoder, origin="unknown", tensors=found.counts, new=found.new)


def _own(config: Config) -> dict[str, Tensor]:
    """The state of an encoder of these settings, of shapes alone."""
    with torch.device("meta"):
        return Encoder(config.model, leads=lead_numbers(config)).state_dict()


def _from_imagenet(state: dict[str, Tensor], config: Config) -> Initial:
    """Take the encoder's tensors of the public file, and log what becomes of each tensor."""
    own = _own(config)
    taken = {n: t for n, t in encoder_state(state).items() if n not in NOT_FROM_IMAGENET}
    counts = report(
        "ImageNet weights",
        (
            (name, LOADED if name in taken else NEW if name in own else LEFT_OUT, *both)
            for name in {**own, **state}
            for both in [(state.get(name), own.get(name))]
        ),
    )
    return Initial(encoder=taken, origin="imagenet", tensors=counts)


def initial_name(init: str) -> str:
    """What a run's files say of `--init`: a word as it is, of a path the last name alone."""
    if init in WORDS:
        return init
    name = Path(init).resolve().name
    return f"./{name}" if name in WORDS else name


def imagenet_file(config: Config) -> Path:
    """Find the public ImageNet-1K MAE weights on this machine.

    Raises:
        ConfigError: there are none of this width, or they are not here.
    """
    width = config.model.encoder_width
    if width not in IMAGENET_FILES:
        raise ConfigError(
            f"imagenet-mae exists for encoder widths {sorted(IMAGENET_FILES)}, got {width}; take "
            "--preset vit_base or vit_large"
        )
    name = IMAGENET_FILES[width]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(os.environ.get(IMAGENET_VARIABLE) or cache / "ecgfast" / name)
    if not path.is_file():
        raise ConfigError(
            f"imagenet-mae needs the file {path}, which does not exist; download "
            f"{IMAGENET_URL}{name} to it, or name yours in {IMAGENET_VARIABLE}"
        )
    return path


def apply_initial(model: Classifier, initial: Initial, *, source: str) -> None:
    """Write initial weights into a classifier that is not spread yet.

    Raises:
        FormatError: a tensor is missing, unknown, or has another shape.
    """
    if initial.encoder is None:
        return
    assert isinstance(model.encoder, Encoder)
    own = model.encoder.state_dict()
    may_miss = set(NOT_FROM_IMAGENET) if source == "imagenet-mae" else initial.new
    problems = [f"no {n}" for n in own if n not in initial.encoder and n not in may_miss]
    problems += [f"unknown {n}" for n in initial.encoder if n not in own]
    problems += [
        f"{n} is {tuple(t.shape)}, the model has {tuple(own[n].shape)}"
        for n, t in initial.encoder.items()
        if n in own and t.shape != own[n].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise FormatError(
            f"weights of {source} do not fit the model: {'; '.join(problems[:3])}{more}; choose "
            "the preset that they were trained with"
        )
    model.encoder.load_state_dict({**own, **initial.encoder})


def require_same_preprocessing(initial: Initial, now: Preprocessing, init: str) -> None:
    """Refuse weights whose records were prepared in another way; fewer leads are none.

    Raises:
        ConfigError: names the first difference, with both values.
    """
    if initial.preprocessing is None:
        return
    known = initial.preprocessing.normalisation.leads or LEADS
    if unknown := [lead for lead in now.normalisation.leads or LEADS if lead not in known]:
        raise ConfigError(
            f"the weights of {init} know the leads {', '.join(known)}, got {', '.join(unknown)} "
            "besides; set data.leads to some of these"
        )
    then = initial.preprocessing.as_facts()
    for name, value in now.as_facts().items():
        if name == "leads":
            continue
        before = then[name]
        if json.dumps(value, sort_keys=True) != json.dumps(before, sort_keys=True):
            raise ConfigError(
                f"preprocessing {name!r} is {value!r} here, the weights of {init} were trained "
                f"with {before!r}; convert the store, or set data.normalise, as it was then"
            )
