"""Finished runs, read back: everything is checked against what the run says, nothing is run."""

import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ecgfast import log
from ecgfast.config import Config, ModelConfig, config_from_dict
from ecgfast.data.normalise import CohortStatistics
from ecgfast.errors import ConfigError, EcgfastError, FormatError, ResumeError
from ecgfast.model.build import build_classifier, build_model
from ecgfast.model.classifier import NUM_FEATURES, SPATIAL_FILTERS
from ecgfast.records import NUM_LEADS
from ecgfast.runs.register import FILE as REGISTER
from ecgfast.runs.sealed import (
    RUN_FILES,
    Facts,
    LaterFormatError,
    is_sealed,
    problem,
    read_facts,
    read_small,
)
from ecgfast.train.checkpoint import load_weights, newest
from ecgfast.train.run_folder import contradictions, flat
from ecgfast.train.weights import read_weights

Model = TypeVar("Model", bound=nn.Module)
WEIGHTS = "best.safetensors"
RESULT = "result.json"

_IDENTITY = {"store": (str,), "select": (str, type(None))}
_OF_CLASSIFIER = {
    **{"target": (str,), "init": (str,), "model": (str,)},
    "fold": (int, type(None)),
}


def load_model(run: Path) -> tuple[nn.Module, Config, dict[str, Any]]:
    """Load what a run has learned, on the CPU in fp32.

    Args:
        run: of `pretrain`, finished or not, or of a finished `finetune`.
    Returns:
        the model (`MaskedAutoencoder` or `Classifier`) in evaluation mode; the run's settings;
        meta with "kind" ("pretrain", "finetune"), "identity" (store, select, target ...) and
        "preprocessing".
    Raises:
        ResumeError: no run, one without a checkpoint, or a damaged one.
        EcgfastError: memory ran out.
    """
    try:
        return _load(run)
    except MemoryError as error:
        raise EcgfastError(
            f"memory ran out while loading {run}; close other programs, or take a larger machine"
        ) from error


def _load(run: Path) -> tuple[nn.Module, Config, dict[str, Any]]:
    if not (run / "config.toml").is_file():
        raise ResumeError(
            f"{run} is not the folder of a run: it has no config.toml; check the path"
        )
    if (run / RESULT).exists():
        facts, where = _result(run), run / RESULT
        config = _settings(run, facts, where)
        _require_written(run, facts, where, WEIGHTS)
        kind = facts["identity"]["model"]
        _require_room(config, kind, (run / WEIGHTS).stat().st_size, where)
        model = _built(lambda: build_classifier(config, kind), where)
        _fill(model, run / WEIGHTS)
        return model.eval(), config, facts
    checkpoint = newest(run)
    if checkpoint is None or checkpoint.meta["kind"] != "pretrain":
        raise ResumeError(
            f"{run} has nothing to load: no finished fine-tuning and no pretraining checkpoint; "
            "run its command again with --resume"
        )
    facts, where = checkpoint.meta, checkpoint.path / "meta.json"
    _require_facts(facts, where)
    config = _settings(run, facts, where)
    num_bytes = sum(entry["bytes"] for entry in facts["files"].values())
    _require_room(config, "autoencoder", num_bytes, where)
    _require_written(run, facts, where)
    autoencoder = _built(lambda: build_model(config), where)
    load_weights(checkpoint, autoencoder)
    return autoencoder.eval(), config, facts


def _built(build: Callable[[], Model], where: Path) -> Model:
    try:
        return build()
    except (ValueError, ArithmeticError, RuntimeError) as error:  # heads that no width holds ...
        raise ResumeError(f"{where} describes no model: {error}; restore it from a copy") from error


def _result(run: Path) -> Facts:
    """What a finished fine-tuning says about itself."""
    path = run / RESULT
    try:
        facts = read_facts(path)
    except LaterFormatError:
        raise
    except ResumeError as error:
        raise ResumeError(f"{error}; restore it from a copy, or fine-tune again") from error
    _require_facts(facts, path)
    if not is_sealed(facts):
        log.warning(
            f"{path} was written by an earlier version and has no digests: damage to the run's "
            "weights would not be noticed"
        )
    return facts


def _require_written(run: Path, facts: Facts, where: Path, *needed: str) -> None:
    """Refuse files of a run that are not those that it wrote.

    Args:
        run: its folder.
        facts: of the run; those of format 2 have no digests to compare.
        where: their file.
        needed: files that it must have digests of.
    """
    if not is_sealed(facts):
        return
    written = facts.get(RUN_FILES)
    if not isinstance(written, dict):
        raise ResumeError(f"{where} is damaged: it has no {RUN_FILES}; restore it from a copy")
    for name in {*needed, *({REGISTER} & written.keys())}:
        why = problem(run, name, written.get(name))
        if why is not None:
            raise ResumeError(
                f"run {run} is damaged, or holds a file of another run: {why}; restore it from a "
                "copy, or train again"
            )


def _settings(run: Path, facts: Facts, where: Path) -> Config:
    """The settings that the run was trained with; config.toml shows them and must not differ."""
    path = run / "config.toml"
    try:
        shown = config_from_dict(tomllib.loads(read_small(path).decode()))
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or no settings of ours
        raise ResumeError(f"{path} is damaged: {error}; restore it from a copy") from error
    config = _config_of(facts["identity"], where)
    differing = contradictions(flat(shown), flat(config), where=where.name)
    if differing:
        raise ResumeError(
            f"{path} is not what the run was trained with: {'; '.join(differing)}; restore it "
            "from a copy"
        )
    return config


def _config_of(identity: Facts, where: Path) -> Config:
    """Build the settings of a run from their flat names; the rest of its identity is left out."""
    tree: Facts = {}
    plain = {name for name in flat(Config()) if "." not in name}
    for name, value in identity.items():
        section, dot, key = name.partition(".")
        if dot:
            tree.setdefault(section, {})[key] = value
        elif name in plain:
            tree[name] = value
    try:
        return config_from_dict(tree)
    except ConfigError as error:
        raise ResumeError(f"{where} is damaged: {error}; restore it from a copy") from error


def _require_room(config: Config, kind: str, num_bytes: int, where: Path) -> None:
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

    def transformer(depth: int, width: int) -> int:
        return (12 * depth * width + model.num_patches) * width

    encoder = transformer(model.encoder_depth, model.encoder_width)
    if kind == "vit":
        return encoder
    return encoder + transformer(model.decoder_depth, model.decoder_width)


def _require_facts(facts: Facts, where: Path) -> None:
    """Refuse facts that lack what a loaded run needs."""
    why = _missing(facts)
    if why is not None:
        raise ResumeError(f"{where} is damaged: {why}; restore it from a copy, or train again")


def _missing(facts: Facts) -> str | None:
    identity, preprocessing = facts.get("identity"), facts.get("preprocessing")
    if not isinstance(identity, dict) or not isinstance(preprocessing, dict):
        return "it has no identity or no preprocessing"
    kind = facts.get("kind")
    if kind not in ("pretrain", "finetune"):
        return f"its kind is {kind!r:.40}"
    needed = _IDENTITY | (_OF_CLASSIFIER if kind == "finetune" else {})
    wrong = [name for name, types in needed.items() if type(identity.get(name)) not in types]
    if wrong:
        return f"its identity has no right {', '.join(wrong)}"
    if kind == "finetune" and identity["model"] not in ("vit", "cnn"):
        return f"its model is {identity['model']!r:.40}"
    store, cohort = preprocessing.get("store"), preprocessing.get("cohort", "none given")
    if not isinstance(store, dict) or not {"window", "short"} <= store.keys():
        return "its preprocessing does not say how the store was made"
    if preprocessing.get("normalise") != identity.get("data.normalise"):
        return "its preprocessing and its settings disagree about normalise"
    if cohort is not None and not _is_cohort(cohort):
        return "its preprocessing has no right cohort statistics"
    thresholds = facts.get("thresholds", {})
    if not isinstance(thresholds, dict) or not all(map(_is_threshold, thresholds.values())):
        return "its thresholds are no numbers"
    return None


def _is_threshold(value: object) -> bool:
    return value is None or type(value) in (int, float)


def _is_cohort(value: object) -> bool:
    names = {field.name for field in fields(CohortStatistics)}
    if not isinstance(value, dict) or set(value) != names:
        return False
    return all(
        isinstance(numbers, list)
        and len(numbers) == NUM_LEADS
        and all(type(number) in (int, float) for number in numbers)
        for numbers in value.values()
    )


def _fill(model: nn.Module, weights: Path) -> None:
    try:
        model.load_state_dict(read_weights(weights))
    except FormatError as error:
        raise ResumeError(str(error)) from error
    except RuntimeError as error:  # other names or shapes than the model's
        raise ResumeError(
            f"weights {weights} do not fit the model of config.toml; restore both from a copy"
        ) from error
