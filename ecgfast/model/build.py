"""From a preset or a config to a model with initial weights."""

from ecgfast.config import Config, load_config
from ecgfast.errors import ConfigError
from ecgfast.model.classifier import Classifier
from ecgfast.model.cnn import EcgCnn
from ecgfast.model.initialise import initialise
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.model.vit import Encoder
from ecgfast.vocabulary import ModelKind


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
    model = MaskedAutoencoder(config.model, kernels=config.kernels, fused=config.fused)
    initialise(model, config.train.seed)
    return model


def build_classifier(preset_or_config: str | Config, kind: ModelKind | None = None) -> Classifier:
    """Build a classifier on the CPU in fp32, its weights drawn from `train.seed`.

    Args:
        preset_or_config: as in `build_model`; `model.pool` chooses the ViT's features.
        kind: "vit" or "cnn"; None takes the config's.
    """
    config = _resolve(preset_or_config)
    encoder: Encoder | EcgCnn
    if (kind or config.model.kind) == "cnn":
        encoder = EcgCnn(config.model)
    else:
        encoder = Encoder(config.model, kernels=config.kernels, fused=config.fused)
    model = Classifier(encoder, pool=config.model.pool)
    initialise(model, config.train.seed)
    return model


def _resolve(preset_or_config: str | Config) -> Config:
    return load_config(preset_or_config) if isinstance(preset_or_config, str) else preset_or_config
