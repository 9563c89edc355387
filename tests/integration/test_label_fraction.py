"""Fine-tuning with fewer labels: what it reads, what it says of that, and how it is resumed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ecgfast.config import Config, load_config
from ecgfast.errors import ConfigError, ResumeError
from ecgfast.evaluate.planning import plan_tests
from ecgfast.evaluate.report import evaluate
from ecgfast.log import read_metrics
from ecgfast.runs.loading import load_run
from ecgfast.runs.register import read_register
from ecgfast.store.reader import open_store
from ecgfast.train.finetune import finetune

TARGET = "ejection_fraction<40"


def _config(tiny: Path, *settings: str) -> Config:
    few = ["finetune.label_fraction=0.15", "finetune.epochs=1", "finetune.learning_rates=[1e-3]"]
    return load_config(str(tiny), [*few, *settings])


@pytest.fixture(scope="module")
def few(store: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With 2 of 13 case patients and 4 of 25 control patients of training, one ECG each."""
    out = tmp_path_factory.mktemp("few")
    return finetune(store, out, preset=_config(tiny), init="random", target=TARGET, device="cpu")


def test_the_run_says_what_it_learned_from(few: Path) -> None:
    result = json.loads((few / "result.json").read_text())
    taught = {"train_patients": 6, "train_cases": 2, "train_controls": 4}
    watched = {"valid_patients": 2, "valid_cases": 1, "valid_controls": 1}
    assert result["counts"] == {"unknown": 6, "no_patient": 0, **taught, **watched}
    assert result["identity"]["finetune.label_fraction"] == 0.15
    assert result["batch_size"] == 6  # the preset's 8 are more than the subset has
    assert [row["step"] for row in read_metrics(few)] == [1]
    card = (few / "MODEL_CARD.md").read_text()
    assert "2 cases and 4 controls of 6 patients taught, a fraction of 0.15 of those with" in card
    assert "batches of 6 records" in card


def test_the_register_has_those_alone_who_were_read(few: Path, store: Path) -> None:
    register = read_register(few)
    assert register is not None
    assert len(register.select("train")) == 6
    assert len(register.select("valid")) == 2
    opened = open_store(store)
    plan = plan_tests(opened, [load_run(few, opened)])
    (taught,) = plan.training.values()
    patients = np.array(opened.records["patient_id"].to_pylist())
    assert sorted(patients[taught]) == sorted(register.select("train")["patient"].to_pylist())
    split = np.array(opened.records["split"].to_pylist())
    assert set(split[plan.rows_of(None)]) == {"test"}  # who was left out of training tests nothing


def test_another_fraction_is_another_run(
    few: Path, store: Path, tiny: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(few, tmp_path / "run")
    config = _config(tiny, "finetune.label_fraction=0.3")
    with pytest.raises(
        ResumeError, match=r"finetune\.label_fraction \(now 0\.3, in the checkpoint 0\.15\)"
    ):
        finetune(store, run, preset=config, init="random", target=TARGET, resume=True, device="cpu")


def test_other_seeds_learn_from_others(few: Path, store: Path, tiny: Path, tmp_path: Path) -> None:
    config = _config(tiny, "train.seed=1")
    other = finetune(
        store, tmp_path / "r", preset=config, init="random", target=TARGET, device="cpu"
    )
    registers = [read_register(run) for run in (few, other)]
    one, two = (set(r.select("train")["patient"].to_pylist()) for r in registers if r is not None)
    assert len(one) == len(two) == 6
    assert one != two


def test_a_subset_without_cases_is_refused_before_anything_is_written(
    store: Path, tiny: Path, tmp_path: Path
) -> None:
    config = _config(tiny, "finetune.label_fraction=0.01")
    with pytest.raises(ConfigError, match=r"^finetune\.label_fraction=0\.01 leaves no case patien"):
        finetune(store, tmp_path / "r", preset=config, init="random", target=TARGET, device="cpu")
    assert not (tmp_path / "r" / "config.toml").exists()


@pytest.mark.parametrize(
    ("microbatch", "batch"), [("4", 4), ("2", 6)], ids=["no multiple", "multiple"]
)
def test_a_smaller_batch_is_a_multiple_of_the_microbatch(
    store: Path, tiny: Path, tmp_path: Path, microbatch: str, batch: int
) -> None:
    config = _config(tiny, f"train.microbatch={microbatch}")
    run = finetune(store, tmp_path / "r", preset=config, init="random", target=TARGET, device="cpu")
    assert json.loads((run / "result.json").read_text())["batch_size"] == batch


def test_so_many_patients_of_each_class_teach_any_model(
    store: Path, tiny: Path, tmp_path: Path
) -> None:
    settings = ["finetune.epochs=1", "finetune.learning_rates=[1e-3]"]

    def run(name: str, number: int, *others: str) -> Path:
        few = f"finetune.labels_per_class={number}"
        config = load_config(str(tiny), [*settings, few, *others])
        out = tmp_path / name
        return finetune(store, out, preset=config, init="random", target=TARGET, device="cpu")

    runs = [run("two", 2), run("cnn", 2, "model.kind=cnn"), run("five", 5)]
    two, cnn, five = (json.loads((each / "result.json").read_text()) for each in runs)
    assert (two["counts"]["train_cases"], two["counts"]["train_controls"]) == (2, 2)
    assert two["batch_size"] == 4
    assert two["identity"]["labels"] == cnn["identity"]["labels"] != five["identity"]["labels"]
    taught = [set(found.select("train")["content"].to_pylist())
              for found in map(read_register, runs) if found is not None]  # fmt: skip
    assert taught[0] == taught[1] < taught[2]
    other = load_config(str(tiny), [*settings, "finetune.labels_per_class=3"])
    with pytest.raises(ResumeError, match=r"labels_per_class \(now 3, in the checkpoint 2\)"):
        finetune(
            store, runs[0], preset=other, init="random", target=TARGET, resume=True, device="cpu"
        )
    evaluate([runs[2], runs[0]], store, tmp_path / "report", device="cpu")
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    points = [(p["per_class"], p["train_patients"]) for p in metrics["label_efficiency"]]
    assert points == [(2, 4), (5, 10)]
    assert "2 per class" in (tmp_path / "report" / "report.html").read_text()


def test_more_of_each_class_than_there_are_is_refused_before_anything_is_written(
    store: Path, tiny: Path, tmp_path: Path
) -> None:
    config = load_config(str(tiny), ["finetune.labels_per_class=99"])
    with pytest.raises(ConfigError, match=r"^finetune.labels_per_class=99 needs .* at most 13$"):
        finetune(store, tmp_path / "r", preset=config, init="random", target=TARGET, device="cpu")
    several = [TARGET, "site=1"]
    with pytest.raises(ConfigError, match=r"^finetune.labels_per_class must be unset for several"):
        finetune(store, tmp_path / "r", preset=config, init="random", target=several, device="cpu")
    assert not (tmp_path / "r" / "config.toml").exists()


def test_balanced_classes_weigh_alike(store: Path, tiny: Path, tmp_path: Path) -> None:
    """A model that says 1/2 of everything, and hardly learns: its loss, by hand."""
    still = ["finetune.epochs=1", "finetune.learning_rates=[1e-12]", "finetune.head_init=prior"]
    config = load_config(str(tiny), [*still, "finetune.class_weights=balanced"])
    run = finetune(store, tmp_path / "r", preset=config, init="random", target=TARGET, device="cpu")
    result = json.loads((run / "result.json").read_text())
    n = result["counts"]
    both = n["train_cases"] + n["train_controls"]
    cases = n["valid_cases"] * both / (2 * n["train_cases"])
    controls = n["valid_controls"] * both / (2 * n["train_controls"])
    weight = (cases + controls) / (n["valid_cases"] + n["valid_controls"])
    assert result["val_loss"] == pytest.approx(weight * np.log(2), rel=1e-5)
    (row,) = read_metrics(run)
    assert row["loss"] != pytest.approx(np.log(2))  # the last batch is not balanced
    card = (run / "MODEL_CARD.md").read_text()
    assert "Classes weighed alike in the loss" in card


def test_runs_of_several_fractions_have_a_curve(
    few: Path, tuned: Path, store: Path, tiny: Path, tmp_path: Path
) -> None:
    config = _config(tiny, "finetune.label_fraction=1.0")
    every = finetune(
        store, tmp_path / "r", preset=config, init="random", target=TARGET, device="cpu"
    )
    evaluate([every, few, tuned], store, tmp_path / "report")
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    points = [(p["line"], p["train_patients"]) for p in metrics["label_efficiency"]]
    assert points == [  # both sites taught, so that there is no external test
        ("ViT, random init", 6),
        ("ViT, random init", 38),
        ("ViT, pretrained", 38),
    ]
    assert [p["train_cases"] for p in metrics["label_efficiency"]] == [2, 13, 13]
    assert (tmp_path / "report" / "label_efficiency.csv").exists()
    assert "Label efficiency" in (tmp_path / "report" / "report.html").read_text()
    evaluate([few], store, tmp_path / "report")
    assert not (tmp_path / "report" / "label_efficiency.csv").exists()


def test_a_warm_up_without_end_is_warned_of(
    store: Path, tiny: Path, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("ecgfast.log.logger.propagate", True)
    config = _config(tiny, "finetune.warmup_epochs=1.0")
    finetune(store, tmp_path / "r", preset=config, init="random", target=TARGET, device="cpu")
    assert "finetune.warmup_epochs 1 takes all of the 1 epochs" in caplog.text
