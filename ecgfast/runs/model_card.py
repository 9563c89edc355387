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
