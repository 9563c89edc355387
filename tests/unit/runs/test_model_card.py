"""MODEL_CARD.md: what it says comes from the run, and nothing in it is left open by mistake."""

import json

import pytest
from jinja2 import UndefinedError

from ecgfast.config import load_config
from ecgfast.data.normalise import Normalisation
from ecgfast.runs.export import model_card
from ecgfast.runs.meta import Preprocessing, RunMeta, flat

RESULT = {
    "learning_rate": 3e-5,
    "epoch": 7,
    "batch_size": 64,
    "val_loss": 0.31234,
    "val_auroc": 0.87654,
    "counts": {
        **{"unknown": 11, "no_patient": 12, "train_cases": 131, "train_controls": 1400},
        **{"valid_cases": 15, "valid_controls": 160, "train_patients": 1204},
    },
    "initial_tensors": {},
    "thresholds": {"youden": 0.2345, "sensitivity_90": None},
}


def meta_of(
    *settings: str, init: str = "random", fold: int | None = None, short: str = "quarantine"
) -> RunMeta:
    config = load_config("demo", settings, recipe="paper")
    task = {"store": "f00d", "select": "site=1", "target": "LVH=1", "init": init, "fold": fold}
    return RunMeta(
        kind="finetune",
        identity={**json.loads(json.dumps(flat(config))), **task, "model": config.model.kind},
        preprocessing=Preprocessing(
            store={"window": "first", "short": short}, normalisation=Normalisation()
        ),
    )


def test_it_says_what_the_run_knows() -> None:
    card = model_card(meta_of("train.seed=41"), RESULT, 1_234_567)
    assert card.startswith("# ViT, random init for LVH=1\n")
    for words in (
        *("1,234,567 parameters", "preset demo", "First weights: random", "site=1", "Store f00d"),
        *(
            "131 cases and 1400 controls of 1204 patients taught; 11 records without this label",
            "12 without a patient",
        ),
        *("Learning rate 3e-05, the weights of epoch 7, batches of 64", "AUROC 0.877"),
        "seed 41, recipe paper",
        *("| highest Youden index | 0.234 |", "| sensitivity of 90 % | none |", "5000 timesteps"),
        *("normalisation: record_lead", "the first ten seconds are", "shorter ones are\n  refused"),
    ):
        assert words in card, words


def test_what_differs_between_runs_differs_in_it() -> None:
    fold = model_card(meta_of(fold=3, short="pad"), RESULT | {"val_auroc": None}, 1)
    assert "all folds but 3 and the next" in fold
    assert "AUROC not defined" in fold
    assert "filled up from five seconds on" in fold
    few = model_card(meta_of("finetune.label_fraction=0.03"), RESULT, 1)
    assert "1204 patients taught, a fraction of 0.03 of those with labels; 11 records" in few
    few = model_card(meta_of("finetune.labels_per_class=30"), RESULT, 1)
    assert "1204 patients taught, 30 patients of each class; 11 records" in few
    assert "Classes weighed alike" not in few
    balanced = model_card(meta_of("finetune.class_weights=balanced"), RESULT, 1)
    assert "Classes weighed alike in the loss" in balanced
    assert model_card(meta_of("model.kind=cnn"), RESULT, 1).startswith("# CNN for LVH=1\n")


def test_tensors_of_imagenet_are_counted() -> None:
    tensors = {"loaded": 147, "begun anew": 3, "of the file left out": 0}
    card = model_card(meta_of(init="imagenet-mae"), RESULT | {"initial_tensors": tensors}, 1)
    words = "147 tensors loaded, 3 tensors begun anew, 0 tensors of the file left out."
    assert f"- First weights: imagenet-mae: {words}\n" in card
    assert "- First weights: random.\n" in model_card(meta_of(), RESULT, 1)


def test_a_path_of_the_first_weights_stays_out() -> None:
    card = model_card(meta_of(init="/share/dr_smith/runs/mae"), RESULT, 1)
    assert "dr_smith" not in card
    assert "First weights: mae" in card


def test_what_the_run_does_not_know_is_an_error_and_no_gap() -> None:
    with pytest.raises(UndefinedError, match="val_loss"):
        model_card(meta_of(), {k: v for k, v in RESULT.items() if k != "val_loss"}, 1)
