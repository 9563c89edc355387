"""MODEL_CARD.md: what a fine-tuned model is, learned from and must not be used for."""

from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from ecgfast.records import LEADS, NUM_TIMESTEPS, SAMPLING_RATE_HZ
from ecgfast.runs.digests import Facts
from ecgfast.runs.meta import RunMeta

FILE = "MODEL_CARD.md"
_ARCHITECTURES = {
    "vit": "Vision transformer on 1 x 250 patches",
    "cnn": "Convolutional network",
    "resnet1d_wang": "Residual network `resnet1d_wang`",
}
_THRESHOLDS = {"youden": "highest Youden index", "sensitivity_90": "sensitivity of 90 %"}


def model_card(meta: RunMeta, result: Facts, num_parameters: int) -> str:
    """Fill the card of a finished fine-tuning (Mitchell et al. 2019), in Markdown.

    It repeats nothing that the run's other files do not hold: no record, no patient, no path.

    Args:
        meta: of the run.
        result: content of its result.json.
        num_parameters: of the classifier.
    """
    identity: Mapping[str, Any] = meta.identity
    template = files("ecgfast.runs").joinpath("model_card.md.j2").read_text("utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["number"] = lambda value: "none" if value is None else f"{value:.3g}"
    return environment.from_string(template).render(
        **{name: result[name] for name in ("learning_rate", "epoch", "batch_size", "val_loss")},
        val_auroc=result["val_auroc"],
        **{name: identity.get(name) for name in ("preset", "store", "fold")},
        **{name: meta.preprocessing.store[name] for name in ("window", "short")},
        name=meta.name,
        target=meta.target,
        version=version("ecgfast"),
        architecture=_ARCHITECTURES[meta.model],
        num_parameters=num_parameters,
        recipe=identity.get("recipe") or "none",
        init=meta.init,
        leads=LEADS,
        num_timesteps=NUM_TIMESTEPS,
        rate_hz=SAMPLING_RATE_HZ,
        normalise=meta.preprocessing.normalisation.mode,
        select=meta.select or "all",
        seed=identity["train.seed"],
        label_fraction=identity["finetune.label_fraction"],
        counts=result["counts"],
        initial_tensors=result["initial_tensors"],
        outputs=[{"name": name, **facts} for name, facts in (result.get("outputs") or {}).items()],
        thresholds=[
            (_THRESHOLDS[name], value) for name, value in result.get("thresholds", {}).items()
        ],
    )
