"""Linear probes: logistic regression on a frozen encoder's features, written as a fine-tuned run.

Encoder and linear layer are a classifier, so that a probe is tested, exported and used as one.
Shapes: R records, K outputs, D features.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from ecgfast import log
from ecgfast.config import Config, Overrides, load_config
from ecgfast.errors import ConfigError
from ecgfast.model.build import build_classifier
from ecgfast.model.classifier import Classifier
from ecgfast.runs.digests import Facts, export_safetensors
from ecgfast.runs.inference import check_weights, choose_device, patches_of
from ecgfast.runs.loading import WEIGHTS
from ecgfast.runs.model_card import FILE as CARD
from ecgfast.runs.register import FILE as REGISTER
from ecgfast.runs.task import Task, task_of
from ecgfast.store.durable import exclusive, explained
from ecgfast.store.format import refuse_inside_store
from ecgfast.store.reader import StoreReader
from ecgfast.train.classify import Asked, Start, begin, write_result
from ecgfast.train.dataset import open_matching_store
from ecgfast.train.distributed import Ranks
from ecgfast.train.finetune import settings_of
from ecgfast.train.initial import apply_initial
from ecgfast.train.run_folder import LOCK, write_settings
from ecgfast.vocabulary import Pool

Floats = NDArray[np.float64]

# What makes settings those of a probe: standardisation takes the place of the head's own norm.
_PROBE = {"finetune.frozen": True, "finetune.probe_epochs": 0, "model.head_norm": False}
# Of what else fine-tuning has.
_USED = ("finetune.probe_c", "finetune.label_fraction", "finetune.labels_per_class")
_TOLERANCE, _MOST_ITERATIONS = 1e-6, 5000  # of the largest gradient; a fit takes a few hundred
_UNFINISHED = {LOCK, "config.toml", "versions.json", WEIGHTS, REGISTER, CARD}


def probe(
    run: str | Path,
    store: str | Path,
    out: str | Path,
    *,
    target: str | Sequence[str] = "ejection_fraction<40",
    pool: Pool | None = None,
    preset: str | Path | Config | None = None,
    settings: Overrides = (),
    select: str | None = None,
    fold: int | None = None,
    device: str | None = None,
) -> Path:
    """Fit a linear layer on the features of a frozen encoder; the result is a fine-tuned run.

    Each target has a logistic regression of its own (scikit-learn, L2), on features that are
    standardised over its training records, with the C of `finetune.probe_c` that has the lowest log
    loss on its validation records.

    Args:
        run: a pretraining run, a weights file, "imagenet-mae" or "random", as `init` of `finetune`.
        store: a finished store with splits.
        out: the probe's folder, created.
        target: what a case is; of several targets one model answers all.
        pool: sets ``model.pool``, what is read of the tokens; None keeps the preset's.
        preset: as for `finetune`.
        settings: changes of these, such as ``{"finetune.label_fraction": 0.1}``.
        select: an expression such as ``site=1``; splits apply within it.
        fold: as for `finetune`.
        device: "cpu" or "cuda"; by default a GPU where there is one.
    Returns:
        `out`, with what `finetune` writes, but metrics.jsonl and checkpoints.
    Raises:
        ConfigError: `out` holds something; settings, labels or weights do not fit each other.
        EcgfastError: another process writes to `out`, or the disk ran out.
    """
    out, config = Path(out), _config(str(run), preset, settings, pool, device)
    refuse_inside_store(out, "--out")
    task = task_of("binary", [target] if isinstance(target, str) else target)
    asked = Asked(init=str(run), task=task, select=select, fold=fold)
    chosen_device = choose_device(device)
    opened = open_matching_store(store, config, Ranks(device=chosen_device))
    with exclusive(out / LOCK, out), explained(out):
        if not {each.name for each in out.iterdir()} <= _UNFINISHED:
            raise ConfigError(f"--out {out} must be a new or empty folder; name another one")
        start = begin(asked, config, opened)
        identity = {**start.meta.identity, "probe": True}
        start = replace(start, meta=replace(start.meta, identity=identity))
        model, chosen = _fitted(config, opened, start, chosen_device)
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
    config: Config, store: StoreReader, start: Start, device: torch.device
) -> tuple[Classifier, Facts]:
    """The classifier on the CPU, and how its linear layer was chosen."""
    task, records = start.lesson.task, start.lesson.records
    model = build_classifier(config, num_outputs=len(task.outputs)).eval()
    apply_initial(model, start.initial, source=start.meta.identity["init"])
    check_weights(model, Path(start.meta.identity["init"]))
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
    for name, c in zip(task.outputs, layer.c, strict=True):
        end = " at the end of finetune.probe_c" if c in (min(layer.tried), max(layer.tried)) else ""
        log.info(f"{name}: C {c:g}{end}")
    log.info(f"validation loss {facts['val_loss']:.4g}, AUROC {facts['val_auroc'] or np.nan:.4g}")
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


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear layer on features as they are: their standardisation is folded in.

    Attributes:
        weight: (K, D).
        bias: (K,).
        c: of each output, that was kept.
        tried: C -> loss of each output on validation records.
    """

    weight: Floats
    bias: Floats
    c: list[float]
    tried: dict[float, list[float]]

    def logits(self, features_RD: NDArray[np.floating]) -> Floats:
        """(R, K)."""
        return _logits((self.weight, self.bias), features_RD)


Part = tuple[NDArray[np.floating], Floats]  # features (R, D) and truth (R, K), NaN where unknown


def chosen_layer(task: Task, train: Part, valid: Part, strengths: Sequence[float]) -> Layer:
    """Of each output the layer whose C has the lowest loss on validation records.

    Args:
        task: of the outputs.
        train: to fit on.
        valid: to choose by.
        strengths: C to try, the inverse strength of the penalty; the first of equals is kept.
    """
    fits = [fit_layer(task, *train, c) for c in strengths]
    features_RD, truth_RK = valid
    losses_CK = np.stack(
        [np.nanmean(task.cell_losses(_logits(fit, features_RD), truth_RK), axis=0) for fit in fits]
    )
    best_K = losses_CK.argmin(axis=0).tolist()
    return Layer(
        weight=np.stack([fits[best][0][output] for output, best in enumerate(best_K)]),
        bias=np.array([fits[best][1][output] for output, best in enumerate(best_K)]),
        c=[strengths[best] for best in best_K],
        tried=dict(zip(strengths, losses_CK.tolist(), strict=True)),
    )


def fit_layer(
    task: Task, features_RD: NDArray[np.floating], truth_RK: Floats, c: float
) -> tuple[Floats, Floats]:
    """Fit a layer on the records that have a label; the other kinds of task have their fit here.

    Returns:
        weight (K, D) and bias (K,).
    """
    assert task.kind == "binary"
    layers = []
    for truth_R in truth_RK.T:
        known = ~np.isnan(truth_R)
        scaler = StandardScaler()
        standard_RD = scaler.fit_transform(features_RD[known].astype(np.float64))
        model = LogisticRegression(C=c, tol=_TOLERANCE, max_iter=_MOST_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said below, in a line of ours
            model.fit(standard_RD, truth_R[known] > 0)
        if model.n_iter_.max() >= _MOST_ITERATIONS:
            log.warning(f"C {c:g}: the fit was ended after {_MOST_ITERATIONS} iterations")
        weight_D = model.coef_[0] / scaler.scale_
        layers.append((weight_D, model.intercept_[0] - weight_D @ scaler.mean_))
    return np.stack([weight for weight, _ in layers]), np.array([bias for _, bias in layers])


def _logits(fit: tuple[Floats, Floats], features_RD: NDArray[np.floating]) -> Floats:
    weight_KD, bias_K = fit
    logits: Floats = features_RD.astype(np.float64) @ weight_KD.T + bias_K
    return logits
