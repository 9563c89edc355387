"""Models that can be passed on: a folder of weights, config.json and a model card.

Nothing of a patient is in it: no register, no pseudonym, no path, no selection of records.
"""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

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
from ecgfast.runs.model_card import exported_card
from ecgfast.runs.register import read_register
from ecgfast.store.durable import explained, write_durably

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
