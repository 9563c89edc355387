"""Linear probes: a regression on a frozen encoder's features, written as a fine-tuned run.

Encoder and linear layer are a classifier, so that a probe is tested, exported and used as one.
Shapes: R records, K outputs, D features.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ecgfast import log
from ecgfast.config import Config, Overrides, load_config
from ecgfast.errors import ConfigError
from ecgfast.model.build import build_classifier
from ecgfast.model.classifier import Classifier
from ecgfast.runs.digests import Facts, export_safetensors
from ecgfast.runs.export import MODEL_CARD as CARD
from ecgfast.runs.features import Features, read, weights_digest
from ecgfast.runs.inference import check_weights, choose_device, patches_of
from ecgfast.runs.initial import apply_initial
from ecgfast.runs.loading import WEIGHTS
from ecgfast.runs.register import FILE as REGISTER
from ecgfast.store.durable import exclusive, explained
from ecgfast.store.format import refuse_inside_store
from ecgfast.store.reader import StoreReader
from ecgfast.train.classify import Asked, Start, begin, write_result
from ecgfast.train.dataset import open_matching_store
from ecgfast.train.distributed import Ranks
from ecgfast.train.finetune import settings_of
from ecgfast.train.linear import chosen_layer
from ecgfast.train.run_folder import LOCK, write_settings
from ecgfast.vocabulary import Pool

# What makes settings those of a probe: standardisation takes the place of the head's own norm.
_PROBE = {
    "finetune.frozen": True,
    "finetune.probe_epochs": 0,
    "finetune.number_loss": "squared",  # of ridge regression
    "model.head_norm": False,
}
# Of what else fine-tuning has.
_USED = ("finetune.probe_c", "finetune.label_fraction", "finetune.labels_per_class")
_UNFINISHED = {LOCK, "config.toml", "versions.json", WEIGHTS, REGISTER, CARD}


def probe(
    run: str | Path,
    store: str | Path,
    out: str | Path,
    *,
    target: str | Sequence[str] = "ejection_fraction<40",
    classes: Sequence[str] = (),
    pool: Pool | None = None,
    features: str | Path | None = None,
    preset: str | Path | Config | None = None,
    settings: Overrides = (),
    select: str | None = None,
    fold: int | None = None,
    device: str | None = None,
) -> Path:
    """Fit a linear layer on the features of a frozen encoder; the result is a fine-tuned run.

    Each yes or no has a logistic regression of its own, exclusive classes have a multinomial one, a
    number has ridge regression (scikit-learn, L2), on features that are standardised over the
    training records, with the C of `finetune.probe_c` that has the lowest loss on validation
    records: the log loss, or the mean squared error.

    Args:
        run: a pretraining run, a weights file, "imagenet-mae" or "random", as `init` of `finetune`.
        store: a finished store with splits.
        out: the probe's folder, created.
        target: what a case is; of several targets one model answers all. The name of a column, as
            for `finetune`: its number, or one of its classes.
        classes: of such a column, those to learn; none takes all.
        pool: sets ``model.pool``, what is read of the tokens; None keeps the preset's, or that of
            `features`.
        features: of the store's records, as `embed` wrote them (.zarr or .parquet) with the same
            run: then no record is read but those of validation. None computes them.
        preset: as for `finetune`.
        settings: changes of these, such as ``{"finetune.label_fraction": 0.1}``.
        select: an expression such as ``site=1``; splits apply within it.
        fold: as for `finetune`.
        device: "cpu" or "cuda"; by default a GPU where there is one.
    Returns:
        `out`, with what `finetune` writes, but metrics.jsonl and checkpoints.
    Raises:
        ConfigError: `out` holds something; settings, labels, weights or features do not fit each
            other.
        EcgfastError: another process writes to `out`, or the disk ran out.
    """
    out, given = Path(out), None if features is None else read(Path(features))
    if given is not None and pool is None:
        pool = given.facts.get("pool")  # type: ignore[assignment]  # settings refuse other words
    config = _config(str(run), preset, settings, pool, device)
    refuse_inside_store(out, "--out")
    asked = Asked(
        init=str(run), init_option="RUN", target=target, classes=classes, select=select, fold=fold
    )
    chosen_device = choose_device(device)
    opened = open_matching_store(store, config, Ranks(device=chosen_device))
    with exclusive(out / LOCK, out), explained(out):
        if not {each.name for each in out.iterdir()} <= _UNFINISHED:
            raise ConfigError(f"--out {out} must be a new or empty folder; name another one")
        start = begin(asked, config, opened)
        taught = start.lesson.records
        if why := start.lesson.task.lacking(taught.truth[taught.train], "train"):
            raise ConfigError(f"the labels that teach are too few: {why}; take more of them")
        identity = {**start.meta.identity, "probe": True}
        start = replace(start, meta=replace(start.meta, identity=identity))
        known = None if given is None else _of_labelled(given, config, opened, start)
        model, chosen = _fitted(config, opened, start, chosen_device, known)
        write_settings(out, config, {name: identity[name] for name in ("model", "init")})
        export_safetensors(model.state_dict(), out / WEIGHTS, config)
        write_result(out, config, opened, start, chosen)
    return out


def _config(
    run: str,
    preset: str | Path | Config | None,
    settings: Overrides,
    pool: Pool | None,
    device: str | None,
) -> Config:
    """The settings of a probe; those that have no meaning for it are named."""
    config = settings_of(run, preset, None, None, settings, device)
    if config.model.kind != "vit":
        raise ConfigError(
            f"a probe is of a ViT, got model.kind={config.model.kind}; fine-tune that with --set "
            "finetune.frozen=true"
        )
    if config.finetune.class_weights != "none":
        raise ConfigError(
            "finetune.class_weights must be none for a probe, got balanced; fine-tune with --set "
            "finetune.frozen=true"
        )
    keys = dict.fromkeys(override.partition("=")[0].strip() for override in settings)
    ignored = [k for k in keys if k.split(".")[0] in ("finetune", "augment") and k not in _USED]
    if ignored:
        log.warning(f"--set: a probe ignores {', '.join(ignored)}")
    return load_config(config, {**_PROBE, "model.pool": pool or config.model.pool})


def _fitted(
    config: Config,
    store: StoreReader,
    start: Start,
    device: torch.device,
    known_RD: NDArray[np.float32] | None,
) -> tuple[Classifier, Facts]:
    """The classifier on the CPU, and how its linear layer was chosen."""
    task, records = start.lesson.task, start.lesson.records
    model = build_classifier(config, num_outputs=len(task.outputs)).eval()
    apply_initial(model, start.initial, source=start.meta.identity["init"])
    check_weights(model, Path(start.meta.identity["init"]))
    features_RD = known_RD
    if features_RD is None:
        features_RD = _features(model.to(device), store, start, device)
    taught, valid = np.split(features_RD, [len(records.train)])
    truth = records.truth[records.valid]
    layer = chosen_layer(
        task, (taught, records.truth[records.train]), (valid, truth), config.finetune.probe_c
    )
    logits = layer.logits(valid).reshape(-1 if task.is_single else truth.shape)
    facts = {
        "c": layer.c,
        "tried": [{"c": c, "val_loss": losses} for c, losses in layer.tried.items()],
        "val_loss": task.validation_loss(logits, truth, np.ones_like(truth)),
        "val_auroc": task.area(logits, truth),
    }
    fits = task.outputs if len(layer.c) == len(task.outputs) else [task.name]
    for name, c in zip(fits, layer.c, strict=True):
        end = " at the end of finetune.probe_c" if c in (min(layer.tried), max(layer.tried)) else ""
        log.info(f"{name}: C {c:g}{end}")
    area = facts["val_auroc"]
    shown = "" if area is None else f", AUROC {area:.4g}"
    log.info(f"validation loss {facts['val_loss']:.4g}{shown}")
    last = model.head[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(layer.weight))
        last.bias.copy_(torch.from_numpy(layer.bias))
    return model.cpu(), facts


@torch.no_grad()
def _features(
    model: Classifier, store: StoreReader, start: Start, device: torch.device
) -> NDArray[np.float32]:
    """(R, D) of the training records, then of those of validation."""
    records, normalisation = start.lesson.records, start.meta.preprocessing.normalisation
    rows = np.concatenate([records.train, records.valid])
    batches = patches_of(store, rows, normalisation, what="features", device=device)
    return np.concatenate([model.features(patches).cpu().numpy() for patches in batches])


def _of_labelled(
    given: Features, config: Config, store: StoreReader, start: Start
) -> NDArray[np.float32]:
    """(R, D) as of `_features`, from a file.

    Raises:
        ConfigError: they are not what this probe would compute, or some are missing.
    """
    pool, encoder = config.model.pool, start.initial.encoder
    needed = {
        "weights": "none" if encoder is None else weights_digest(encoder),
        "preprocessing": json.dumps(start.meta.preprocessing.as_facts(), sort_keys=True),
        "store": store.identity,
        "pool": pool,
        "layer": "last",
    }
    cure = f"make them with ecgfast embed RUN STORE --pool {pool} --out FILE.zarr"
    for name, value in needed.items():
        if (found := given.facts.get(name)) != value:
            raise ConfigError(f"--features have {name} {found!r:.60}, not {value!r:.60}; {cure}")
    place = np.full(len(store), -1)
    place[given.names["row"].to_numpy()] = np.arange(len(given.names))
    taken = place[np.concatenate([start.lesson.records.train, start.lesson.records.valid])]
    if missing := int((taken < 0).sum()):
        raise ConfigError(f"--features lack {missing} of {len(taken)} labelled records; {cure}")
    values: NDArray[np.float32] = given.values[taken]
    return values
