"""What a synthetic cohort plants is what models find: a strong signal, or nothing."""

from pathlib import Path

import pytest
from scipy.stats import binom

from ecgfast.config import load_config
from ecgfast.convert import convert
from ecgfast.evaluate.discrimination import Auroc
from ecgfast.evaluate.planning import plan_tests
from ecgfast.evaluate.results import compute
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.ingest.synthetic_population import Design
from ecgfast.runs.loading import load_run, name_runs
from ecgfast.store.reader import open_store
from ecgfast.train.finetune import finetune

pytestmark = pytest.mark.slow

VIT = tuple(
    f"model.{part}_{what}={value}"
    for part in ("encoder", "decoder")
    for what, value in (("width", 32), ("depth", 1), ("heads", 2))
)
SETTINGS = (
    "finetune.learning_rates=[2e-3]",
    "finetune.epochs=5",
    "finetune.batch_size=8",
    "finetune.warmup_epochs=0",
    "finetune.probe_epochs=0",
)
ELSEWHERE = "all external sites"


def areas_of(folder: Path, design: Design) -> dict[str, dict[str, Auroc]]:
    """Cohort -> model -> AUROC of a ViT and a CNN that learned from hospital 1."""
    write_cohort(folder / "cohort", num_records=300, num_sites=4, seed=1, design=design)
    convert([folder / "cohort"], folder / "store", labels=folder / "cohort" / "labels.csv")
    store = open_store(folder / "store")
    runs = []
    for preset, architecture in (("demo", VIT), ("resnet1d_wang", ())):
        config = load_config(preset, (*SETTINGS, *architecture), recipe="best_practice")
        target = {"target": "ejection_fraction<40", "select": "site=1"}
        run = finetune(store.path, folder / preset, preset=config, init="random", **target)
        runs.append(load_run(run, store))
    named = name_runs(runs)
    return compute(plan_tests(store, named), named, store).each(lambda result: result.auroc)


def planted(**what: float | bool) -> Design:
    return Design(prevalence=0.4, shares=(210, 30, 30, 30), **what)


def test_a_strong_signal_is_found_by_every_model_at_every_hospital(tmp_path: Path) -> None:
    for cohort, models in areas_of(tmp_path, planted(label_signal=4.0, site_shift=0.0)).items():
        for model, area in models.items():
            assert area.value is not None
            assert area.value > 0.9, (cohort, model)


def test_shuffled_labels_are_not_found(tmp_path: Path) -> None:
    found = areas_of(tmp_path, planted(shuffled_labels=True))
    areas = [area for cohort in found if cohort != ELSEWHERE for area in found[cohort].values()]
    missed = [a for a in areas if a.low is not None and not a.low <= 0.5 <= (a.high or 0)]
    assert len(areas) == 2 * 4
    assert len(missed) <= binom.ppf(0.999, len(areas), 0.05)
