"""Folders of runs that nobody trained: random weights, and facts that a test can change."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecgfast.config import Config
from ecgfast.model.build import build_classifier, build_model
from ecgfast.runs.meta import flat
from ecgfast.runs.sealed import entries, sealed
from ecgfast.runs.weights import export_safetensors
from ecgfast.train.checkpoint import CheckpointWriter, training_state
from ecgfast.train.distributed import Ranks
from ecgfast.train.run_folder import write_settings


def facts_of(config: Config, kind: str = "finetune") -> dict[str, Any]:
    """What a run says of itself, of no more than it must."""
    identity = {**flat(config), "store": "0123", "select": None}
    if kind == "finetune":
        identity |= {"target": "age<40", "init": "random", "model": "vit", "fold": None}
    made = {"window": "first", "short": "skip"}
    preprocessing = {"store": made, "normalise": config.data.normalise, "cohort": None}
    return {"kind": kind, "identity": identity, "preprocessing": preprocessing}


def classifier_run(run: Path, config: Config, facts: Mapping[str, Any] | None = None) -> Path:
    """A finished fine-tuning; `facts` are sealed with the digest of its weights."""
    run.mkdir(exist_ok=True)
    facts = facts or facts_of(config)
    state = build_classifier(config, "vit").state_dict()
    export_safetensors(state, run / "best.safetensors", config)
    write_settings(run, config, {})
    write_result(run, facts)
    return run


def write_result(run: Path, facts: Mapping[str, Any]) -> None:
    """Seal facts together with the weights that lie there."""
    files = {"run_files": entries(run, ("best.safetensors",))}
    (run / "result.json").write_bytes(sealed({**files, **facts}))


def pretraining_run(run: Path, config: Config, facts: Mapping[str, Any] | None = None) -> Path:
    """A pretraining of no step, with one checkpoint."""
    run.mkdir(exist_ok=True)
    write_settings(run, config, {})
    with CheckpointWriter(run, Ranks(), keep=1) as writer:
        state = training_state(build_model(config), None)
        writer.save(state, step=3, facts=facts or facts_of(config, "pretrain"))
    return run
