"""Models that can be passed on: a folder of weights, config.json and a model card; cards of runs.

A card says what a model is, learned from and must not be used for. Nothing of a patient is in it
or in the folder: no register, no pseudonym, no path, no selection of records.
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ecgfast.config import Config, config_to_toml
from ecgfast.errors import ConfigError
from ecgfast.records import LEADS, NUM_TIMESTEPS, SAMPLING_RATE_HZ
from ecgfast.runs.checkpoint_reader import newest
from ecgfast.runs.digests import RUN_FILES, Facts, entries, export_safetensors, read_facts, sealed
from ecgfast.runs.loading import (
    EXPORTED,
    EXPORTED_WEIGHTS,
    LIBRARY,
    RESULT,
    is_exported,
    load_model,
)
from ecgfast.runs.located import CARD, SETTINGS, located
from ecgfast.runs.meta import RunMeta, flat
from ecgfast.runs.register import read_register
from ecgfast.store.durable import explained, write_durably

MODEL_CARD = "MODEL_CARD.md"
_ARCHITECTURES = {
    "vit": "Vision transformer on 1 x 250 patches",
    "cnn": "Convolutional network",
    "resnet1d_wang": "Residual network `resnet1d_wang`",
}
_THRESHOLDS = {"youden": "highest Youden index", "sensitivity_90": "sensitivity of 90 %"}
_OF_CLASSIFIER = ("fold", "model")
_KEPT = "a selection that is not passed on"


def export(run: Path, out: Path) -> Path:
    """Write what a run has learned to a folder that can be passed on.

    Args:
        run: of a pretraining, finished or not, or of a finished fine-tuning; as `located` names it.
        out: folder, created; must be empty.
    Returns:
        `out`, with model.safetensors, config.json, config.toml (a preset to fine-tune with) and
        README.md.
    Raises:
        ConfigError: `run` is itself an exported model, or `out` is not empty.
        ResumeError: no run, or a damaged one.
        EcgfastError: the disk is full.
    """
    run = located(run)
    if is_exported(run):
        raise ConfigError(f"{run} is an exported model already; copy the folder")
    unfinished = {EXPORTED_WEIGHTS, CARD, SETTINGS}  # of an export that the disk was too small for
    if out.exists() and not (out.is_dir() and {each.name for each in out.iterdir()} <= unfinished):
        raise ConfigError(f"--out {out} must be a new or empty folder; name another one")
    model, config, meta = load_model(run)
    shared = _shared(meta, config)
    facts: Facts = {
        LIBRARY: "ecgfast",
        "ecgfast_version": version("ecgfast"),
        **shared.as_facts(),
        "thresholds": dict(meta.thresholds),
        "counts": dict(meta.counts),
        "outputs": dict(meta.outputs),
        "leads": list(meta.preprocessing.normalisation.leads or LEADS),
        "num_timesteps": NUM_TIMESTEPS,
        "sampling_rate_hz": SAMPLING_RATE_HZ,
    }
    num_parameters = sum(each.numel() for each in model.parameters())
    card = exported_card(shared, _learned(run, meta), num_parameters)
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
    export_safetensors(model.state_dict(), out / EXPORTED_WEIGHTS, config)
    write_durably(out / CARD, [card.encode()])
    write_durably(out / SETTINGS, [config_to_toml(config).encode()])
    facts[RUN_FILES] = entries(out, (EXPORTED_WEIGHTS,))
    write_durably(out / EXPORTED, [sealed(facts)])  # last: without it the folder is no model
    return out


def _shared(meta: RunMeta, config: Config) -> RunMeta:
    """What may be passed on of what a run says about itself."""
    identity = {**flat(config), "store": meta.identity["store"], "select": meta.select and _KEPT}
    if meta.kind == "finetune":
        identity |= {name: meta.identity.get(name) for name in _OF_CLASSIFIER}
        identity |= meta.task.identity()
        identity |= {"probe": True} if meta.identity.get("probe") else {}
        known = meta.init in ("random", "imagenet-mae")
        identity["init"] = meta.init if known else "pretrained"  # the name of a folder, else
    return replace(meta, identity=identity, microbatch=None, run_files={})


def _learned(run: Path, meta: RunMeta) -> Facts:
    """What a card says of the training: of a classifier its result, else updates and records."""
    if meta.kind == "finetune":
        return {"initial_tensors": {}, **read_facts(run / RESULT)}  # older ones have no such key
    checkpoint, register = newest(run), read_register(run)
    assert checkpoint is not None  # its model was loaded
    num_records = None if register is None else len(register.select("pretrain"))
    return {"step": checkpoint.step, "num_records": num_records}


def model_card(meta: RunMeta, result: Facts, num_parameters: int) -> str:
    """Fill the card of a finished fine-tuning (Mitchell et al. 2019), in Markdown.

    It repeats nothing that the run's other files do not hold: no record, no patient, no path.

    Args:
        meta: of the run.
        result: content of its result.json.
        num_parameters: of the classifier.
    """
    return _filled(meta, result, num_parameters, weights="best.safetensors", settings="config.toml")


def exported_card(meta: RunMeta, learned: Facts, num_parameters: int) -> str:
    """Fill the card of an exported model, with the front matter that the hub reads.

    Args:
        meta: as it is passed on.
        learned: of a classifier the content of its result.json; of a pretraining its `step`, and
            `num_records`, None where the run does not say.
        num_parameters: of the model.
    """
    tags = ["ecg", "electrocardiography", "medical"]
    front = ["---", "library_name: ecgfast", "tags:", *(f"- {tag}" for tag in tags), "---", ""]
    card = _filled(
        meta, learned, num_parameters, weights="model.safetensors", settings="config.json"
    )
    return "\n".join(front) + "\n" + card


def _filled(
    meta: RunMeta, learned: Facts, num_parameters: int, *, weights: str, settings: str
) -> str:
    identity: Mapping[str, Any] = meta.identity
    template = files("ecgfast.runs").joinpath("model_card.md.j2").read_text("utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["number"] = lambda value: "none" if value is None else f"{value:.3g}"
    is_classifier = meta.kind == "finetune"
    return environment.from_string(template).render(
        learned=learned,
        is_classifier=is_classifier,
        weights=weights,
        settings=settings,
        **{name: identity.get(name) for name in ("preset", "store", "fold")},
        **{name: meta.preprocessing.store[name] for name in ("window", "short")},
        name=meta.name,
        target=meta.target,
        version=version("ecgfast"),
        architecture=_ARCHITECTURES[meta.model if is_classifier else "vit"],
        num_parameters=num_parameters,
        recipe=identity.get("recipe") or "none",
        init=meta.init,
        leads=meta.preprocessing.normalisation.leads or LEADS,
        num_timesteps=NUM_TIMESTEPS,
        rate_hz=SAMPLING_RATE_HZ,
        normalise=meta.preprocessing.normalisation.mode,
        select=meta.select or "all",
        seed=identity["train.seed"],
        pool=identity["model.pool"],
        label_fraction=identity["finetune.label_fraction"],
        labels_per_class=identity.get("finetune.labels_per_class"),
        loss_name=meta.task.loss_name if is_classifier else "",
        scale=identity.get("scale"),
        classes=identity.get("classes"),
        balanced=identity.get("finetune.class_weights") == "balanced",
        mask_ratio=identity["mask.ratio"],
        batch_size=identity["train.batch_size"],
        outputs=[{"name": name, **facts} for name, facts in learned.get("outputs", {}).items()],
        thresholds=[
            (_THRESHOLDS[name], value) for name, value in learned.get("thresholds", {}).items()
        ],
    )
