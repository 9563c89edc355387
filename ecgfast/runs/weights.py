"""From the weights of a run to a model: built as its settings say, if the files can hold that."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn

from ecgfast.config import Config
from ecgfast.errors import FormatError, ResumeError
from ecgfast.model.build import build_classifier, build_model
from ecgfast.model.cnn import NUM_FEATURES, SPATIAL_FILTERS, WANG_STRIDES
from ecgfast.runs.checkpoint_reader import Checkpoint, load_weights
from ecgfast.runs.digests import read_weights
from ecgfast.runs.meta import RunMeta
from ecgfast.settings import ModelConfig


def weights_of_file(path: Path, meta: RunMeta, config: Config, where: Path) -> nn.Module:
    """The model whose weights a file holds.

    Args:
        path: a safetensors file.
        meta: of the run, which trained a classifier or a masked autoencoder.
        config: its settings.
        where: they stand, for messages.
    Raises:
        ResumeError: the file is damaged, or holds the weights of another model.
    """
    is_classifier = meta.kind == "finetune"
    what = config.model.kind if is_classifier else "autoencoder"
    _require_plausible_size(config, what, path.stat().st_size, where)
    build: Callable[[Config], nn.Module] = build_model
    if is_classifier:
        build = partial(build_classifier, num_outputs=len(meta.task.outputs))
    model = _built(build, config, where)
    try:
        model.load_state_dict(read_weights(path))
    except FormatError as error:
        raise ResumeError(str(error)) from error
    except RuntimeError as error:  # other names or shapes than the model's
        raise ResumeError(
            f"weights {path} do not fit the model of {where.name}; restore both from a copy"
        ) from error
    return model


def weights_of_checkpoint(checkpoint: Checkpoint, config: Config, where: Path) -> nn.Module:
    """The autoencoder of a pretraining's checkpoint; arguments as for `weights_of_file`."""
    num_bytes = sum(entry["bytes"] for entry in checkpoint.facts["files"].values())
    _require_plausible_size(config, "autoencoder", num_bytes, where)
    model = _built(build_model, config, where)
    load_weights(checkpoint, model)
    return model


def _built(build: Callable[[Config], nn.Module], config: Config, where: Path) -> nn.Module:
    try:
        return build(config)
    except (ValueError, ArithmeticError, RuntimeError) as error:  # heads that no width holds ...
        raise ResumeError(f"{where} describes no model: {error}; restore it from a copy") from error


def _require_plausible_size(config: Config, kind: str, num_bytes: int, where: Path) -> None:
    """Refuse settings whose model has more weights than the run's files could hold.

    A model is built before its weights are read: a width of a billion would take all memory.
    """
    least = 4 * _least_weights(config.model, kind)
    if least > num_bytes:
        raise ResumeError(
            f"{where} describes a model of at least {least:,} bytes, its weights have "
            f"{num_bytes:,}; restore both from a copy"
        )


def _least_weights(model: ModelConfig, kind: str) -> int:
    """Lower bound of a model's weights: its largest matrices and its positions."""
    if kind == "cnn":
        return SPATIAL_FILTERS * (NUM_FEATURES * (model.num_timesteps // 256) + model.num_leads)
    if kind == "resnet1d_wang":
        return len(WANG_STRIDES) * 8 * model.filters**2  # kernels of 5 and 3 in each block

    def transformer(depth: int, width: int) -> int:
        return (12 * depth * width + model.num_patches) * width

    encoder = transformer(model.encoder_depth, model.encoder_width)
    if kind == "vit":
        return encoder
    return encoder + transformer(model.decoder_depth, model.decoder_width)
