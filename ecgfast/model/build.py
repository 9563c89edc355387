"""From a preset or a config to a model with initial weights."""

import hashlib
import math

import torch
from torch import Tensor, nn

from ecgfast.config import Config, load_config
from ecgfast.errors import ConfigError
from ecgfast.model.classifier import Classifier
from ecgfast.model.cnn import EcgCnn, ResNet1dWang
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.model.vit import Encoder
from ecgfast.records import LEADS

TOKEN_STD = 0.02


@torch.random.fork_rng(devices=[])  # PyTorch's layers draw, and `initialise` draws anew
def build_model(preset_or_config: str | Config) -> MaskedAutoencoder:
    """Build a masked autoencoder on the CPU in fp32, its weights drawn from `train.seed`.

    Its attention is PyTorch's own choice until `set_attention`: which kernel the setting
    `attention` comes to depends on the device (`attention_choice`), and a model moves between them.

    Args:
        preset_or_config: a preset's name such as "vit_large", a TOML path, or a resolved config.
    Raises:
        ConfigError: unknown preset, or one that describes a CNN.
    """
    config = _resolve(preset_or_config)
    if config.model.kind != "vit":
        raise ConfigError(
            f"preset {config.preset} must be of kind 'vit' for pretraining, got "
            f"{config.model.kind!r}; take vit_tiny ... vit_large"
        )
    model = MaskedAutoencoder(
        config.model,
        norm_patch_loss=config.mask.norm_patch_loss,
        kernels=config.kernels,
        fused=config.fused,
        leads=lead_numbers(config),
    )
    initialise(model, config.train.seed)
    return model


@torch.random.fork_rng(devices=[])  # PyTorch's layers draw, and `initialise` draws anew
def build_classifier(preset_or_config: str | Config, *, num_outputs: int = 1) -> Classifier:
    """Build a classifier on the CPU in fp32, its weights drawn from `train.seed`.

    Args:
        preset_or_config: as in `build_model`; `model.kind` chooses the architecture, `model.pool`
            the ViT's features.
        num_outputs: of the head.
    """
    config = _resolve(preset_or_config)
    encoder: Encoder | EcgCnn | ResNet1dWang
    match config.model.kind:
        case "vit":
            encoder = Encoder(
                config.model,
                kernels=config.kernels,
                fused=config.fused,
                leads=lead_numbers(config),
            )
        case "cnn":
            encoder = EcgCnn(config.model)
        case "resnet1d_wang":
            encoder = ResNet1dWang(config.model)
    model = Classifier(
        encoder,
        pool=config.model.pool,
        drop_path=config.finetune.drop_path,
        num_outputs=num_outputs,
        head_norm=config.model.head_norm,
    )
    initialise(model, config.train.seed)
    return model


def lead_numbers(config: Config) -> tuple[int, ...] | None:
    """Numbers in `LEADS` of the leads that a model takes; None: all."""
    leads = config.data.leads
    return None if leads is None else tuple(map(LEADS.index, leads))


def _resolve(preset_or_config: str | Config) -> Config:
    return load_config(preset_or_config) if isinstance(preset_or_config, str) else preset_or_config


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Write every parameter of `model` anew.

    Each parameter has a generator of its own, drawn on the CPU on the full tensor: the result is
    the same on any device and for any world size, and a new layer moves no other one. Call it
    before sharding.

    Linear and patch projections start Xavier-uniform (He et al. 2022, appendix A.1), convolutions
    Kaiming-normal, tokens normal with deviation 0.02, biases 0, norms 1 and 0.

    Args:
        model: parameters on any device, in any floating dtype.
        seed: of the run.
    """
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            generator = torch.Generator().manual_seed(_seed(seed, name))
            parameter.copy_(_initial_value(module, name, parameter.shape, generator))


def _initial_value(
    module: nn.Module, name: str, shape: torch.Size, generator: torch.Generator
) -> Tensor:
    value = torch.empty(shape, dtype=torch.float32, device="cpu")
    if name.endswith("_token"):
        return value.normal_(0.0, TOKEN_STD, generator=generator)
    if name.endswith("bias"):
        return value.zero_()
    if isinstance(module, nn.LayerNorm | nn.BatchNorm1d | nn.BatchNorm2d):
        return value.fill_(1.0)
    fan_in = math.prod(shape[1:])
    if isinstance(module, nn.Linear) or name.endswith("patch_embed.proj.weight"):
        bound = math.sqrt(6.0 / (fan_in + shape[0]))
        return value.uniform_(-bound, bound, generator=generator)
    assert isinstance(module, nn.Conv1d | nn.Conv2d), f"no rule for the parameter {name}"
    return value.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)


def _seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # torch takes 63 bits
