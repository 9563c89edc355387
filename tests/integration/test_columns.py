"""Runs whose target is a column, a number or classes: what they write, and what a report says."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import (
    confusion_matrix,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from torch.nn.functional import huber_loss
from training_runs import make_column_store

from ecgfast.config import load_config
from ecgfast.data.loader import build_loader
from ecgfast.errors import ConfigError, ResumeError
from ecgfast.evaluate.report import evaluate
from ecgfast.labels.commands import label_store
from ecgfast.model.vit import Encoder
from ecgfast.predict import write_predictions
from ecgfast.predictor import load_model
from ecgfast.reproduce.run import make_plan
from ecgfast.runs.export import export
from ecgfast.runs.loading import load_run
from ecgfast.store.reader import open_store
from ecgfast.train.finetune import finetune

EF = "ejection_fraction"
COHORT = "test splits of sites 1, 2"
ONCE = ("finetune.epochs=2", "finetune.learning_rates=[1e-3]")
RHYTHMS = ("AF", "SR", "VT")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_column_store(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def number(store: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, config = tmp_path_factory.mktemp("number") / "run", load_config(str(tiny), ONCE)
    return finetune(store, out, preset=config, init="random", target=EF, device="cpu")


@pytest.fixture(scope="module")
def classes(store: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, config = tmp_path_factory.mktemp("classes") / "run", load_config(str(tiny), ONCE)
    return finetune(store, out, preset=config, init="random", target="rhythm", device="cpu")


def column(store: Path, name: str) -> NDArray[np.object_]:
    return np.array(open_store(store).records[name].to_pylist(), dtype=object)


def answers(
    store: Path, run: Path, name: str, split: str = "test"
) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
    """Labels and predictions of the labelled records of a split."""
    opened, labels = open_store(store), column(store, name)
    rows = np.flatnonzero(
        (column(store, "split") == split) & np.array([x is not None for x in labels])
    )
    return labels[rows], load_run(run, opened).probabilities(opened, rows)


def test_a_run_of_a_number_keeps_the_scale_of_its_training(number: Path, store: Path) -> None:
    result = json.loads((number / "result.json").read_text())
    train = column(store, EF)[column(store, "split") == "train"]
    values = np.array([value for value in train if value is not None], dtype=float)
    assert result["identity"]["target"] == EF
    assert result["identity"]["scale"] == pytest.approx([values.mean(), values.std(ddof=1)])
    assert result["counts"]["train_records"] == len(values)
    assert result["val_auroc"] is None
    (facts,) = result["outputs"].values()
    assert facts["val_rmse"] == pytest.approx(
        result["identity"]["scale"][1] * np.sqrt(result["val_loss"]), rel=1e-4
    )
    card = (number / "MODEL_CARD.md").read_text()
    assert f"- Gives {EF} for ten seconds" in card
    assert f"mean absolute error {facts['val_mae']:.3g}, root mean squared error" in card


@pytest.fixture(scope="module")
def robust(store: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config(str(tiny), [*ONCE, "finetune.number_loss=huber"])
    out = tmp_path_factory.mktemp("robust") / "run"
    return finetune(store, out, preset=config, init="random", target=EF, device="cpu")


def test_a_huber_loss_is_that_of_validation(robust: Path, store: Path) -> None:
    result = json.loads((robust / "result.json").read_text())
    mean, sd = result["identity"]["scale"]
    labels, predicted = answers(store, robust, EF, "valid")
    value, given = (torch.tensor((x.astype(float) - mean) / sd) for x in (labels, predicted))
    assert result["val_loss"] == pytest.approx(huber_loss(given, value).item(), rel=1e-4)
    assert "worse:\nHuber loss of standardised values 0." in (robust / "MODEL_CARD.md").read_text()


def test_runs_of_a_number_are_compared_on_the_same_records(
    number: Path, robust: Path, store: Path, tmp_path: Path
) -> None:
    html = evaluate([number, robust], store, tmp_path / "report", device="cpu").read_text()
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())["agreement"]
    labels, first = answers(store, number, EF)
    _, second = answers(store, robust, EF)
    measured = labels.astype(float)
    ((name, tests),) = found["first_run_minus"][COHORT].items()
    for measure, of in (("mae", mean_absolute_error), ("rmse", root_mean_squared_error)):
        expected = of(measured, first) - of(measured, second)
        assert tests[measure]["difference"] == pytest.approx(expected)
        assert tests[measure]["low"] < expected < tests[measure]["high"]
        assert tests[measure]["p_value"] <= found["p_holm"][COHORT][name][measure] <= 1
    assert "Is the difference of the errors real?" in html
    assert f"minus {name}, mean absolute error: {tests['mae']['difference']:+.3f} (" in html
    assert "Is the difference real?" not in html


def test_a_report_of_a_number_agrees_with_scikit_learn(
    number: Path, store: Path, tmp_path: Path
) -> None:
    html = evaluate([number], store, tmp_path / "report", device="cpu").read_text()
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    labels, predicted = answers(store, number, EF)
    measured = labels.astype(float)
    (found,) = metrics["agreement"]["cohorts"][COHORT].values()
    assert found["mae"]["value"] == pytest.approx(mean_absolute_error(measured, predicted))
    assert found["rmse"]["value"] == pytest.approx(root_mean_squared_error(measured, predicted))
    assert found["r2"]["value"] == pytest.approx(r2_score(measured, predicted))
    assert found["bias"]["low"] < found["bias"]["value"] < found["bias"]["high"]
    assert "Bland-Altman" in html
    assert "<th>cases</th>" not in html
    names = {path.stem for path in (tmp_path / "report" / "figures").glob("*.svg")}
    assert {"bland-altman", "measured-predicted"} < names
    values = pq.read_table(tmp_path / "report" / "values.parquet")
    assert sorted(values["predicted"].to_pylist()) == pytest.approx(sorted(predicted))
    assert sorted(values["measured"].to_pylist()) == pytest.approx(sorted(measured))
    assert not (tmp_path / "report" / "scores.parquet").exists()


def test_a_number_is_tested_at_a_threshold_beside_a_classifier(
    number: Path, store: Path, tiny: Path, tmp_path: Path
) -> None:
    target, config = f"{EF}<40", load_config(str(tiny), ONCE)
    cnn = load_config(config, {"model.kind": "cnn"})
    other = finetune(
        store, tmp_path / "cnn", preset=cnn, init="random", target=target, device="cpu"
    )
    evaluate([number, other], store, tmp_path / "report", device="cpu")
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    labels, predicted = answers(store, number, EF)
    is_case = labels.astype(float) < 40
    found = metrics["cohorts"][COHORT]
    area = roc_auc_score(is_case, -predicted)
    assert found["ViT, random init"]["auroc"]["value"] == pytest.approx(area)
    labels, probability = answers(store, other, EF)
    assert found["CNN"]["auroc"]["value"] == pytest.approx(roc_auc_score(is_case, probability))
    assert metrics["first_run_minus"][COHORT]["CNN"]["difference"] == pytest.approx(
        area - found["CNN"]["auroc"]["value"]
    )
    assert "mae" in metrics["agreement"]["cohorts"][COHORT]["ViT, random init"]
    scores = pq.read_table(tmp_path / "report" / "scores.parquet").to_pydict()
    assert all(0 < value < 1 for value in scores["probability"])
    alone = evaluate([number], store, tmp_path / "alone", target=f"{EF}>=40", device="cpu")
    (by_run,) = json.loads((alone.parent / "metrics.json").read_text())["cohorts"][COHORT].values()
    assert by_run["auroc"]["value"] == pytest.approx(area)  # of the other class, likewise
    with pytest.raises(
        ConfigError, match=r"is tested at ejection_fraction < or > a number, got age"
    ):
        evaluate([number], store, tmp_path / "none", target="age<40", device="cpu")
    with pytest.raises(ConfigError, match=r"^--target age<40 is for runs that learned a number"):
        evaluate([other], store, tmp_path / "none", target="age<40", device="cpu")


def test_windows_of_a_recording_have_the_mean_of_their_numbers(tiny: Path, tmp_path: Path) -> None:
    long, config = make_column_store(tmp_path, num_windows=2), load_config(str(tiny), ONCE)
    run = finetune(long, tmp_path / "run", preset=config, init="random", target=EF, device="cpu")
    html = evaluate([run], long, tmp_path / "report", average=True, device="cpu")
    labels, predicted = answers(long, run, EF)
    first, second = predicted[::2], predicted[1::2]  # windows of one recording are neighbours
    np.testing.assert_array_equal(labels[::2], labels[1::2])
    mean, measured = (first + second) / 2, labels[::2].astype(float)
    found = json.loads(html.with_name("metrics.json").read_text())["agreement"]
    (by_run,) = found["cohorts"][COHORT].values()
    assert by_run["num_records"] == len(mean)
    assert by_run["mae"]["value"] == pytest.approx(mean_absolute_error(measured, mean))
    assert by_run["mae"]["value"] != pytest.approx(
        mean_absolute_error(labels.astype(float), predicted), abs=1e-6
    )
    values = pq.read_table(html.with_name("values.parquet"))
    assert sorted(values["predicted"].to_pylist()) == pytest.approx(sorted(mean))
    middle = np.median(abs(first - second) / np.sqrt(2))
    assert any(f"deviation of the number is {middle:.3f} in the" in n for n in found["notes"])
    file = long.with_name("source") / "r000.npy"
    for average in (False, True):
        write_predictions(run, [file], tmp_path / "out.csv", average=average)
        lines = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
        if not average:
            of_windows = [float(line["value"]) for line in lines]
    (line,) = lines
    assert line["windows"] == str(len(of_windows)) == "2"
    assert float(line["value"]) == pytest.approx(np.mean(of_windows), abs=1e-5)
    assert float(line["sd"]) == pytest.approx(np.std(of_windows, ddof=1), abs=1e-5)


def test_a_number_is_tested_on_fewer_leads_beside_all(
    number: Path, store: Path, tmp_path: Path
) -> None:
    html = evaluate([number], store, tmp_path / "report", leads=[["II", "I"]], device="cpu")
    found = json.loads(html.with_name("metrics.json").read_text())["agreement"]
    labels, predicted = answers(store, number, EF)
    measured, opened = labels.astype(float), open_store(store)
    rows = np.flatnonzero(
        (column(store, "split") == "test") & np.array([x is not None for x in column(store, EF)])
    )
    (batch,) = build_loader(
        opened, batch_size=len(rows), select=rows, shuffle=False, drop_last=False
    )
    model = load_model(number).model
    assert isinstance(model.encoder, Encoder)
    with torch.no_grad():  # the first 40 patches are those of I and II
        kept = torch.arange(40).repeat(len(rows), 1)
        tokens = model.encoder.encode_kept(batch.patches.float(), kept)
        logits = model.head(tokens[:, 0], None).squeeze(-1).double().numpy()
    mean, sd = json.loads((number / "result.json").read_text())["identity"]["scale"]
    both, two = found["cohorts"][COHORT].items()
    assert two[0].endswith(", leads I II")
    assert both[1]["mae"]["value"] == pytest.approx(mean_absolute_error(measured, predicted))
    expected = mean_absolute_error(measured, mean + sd * logits)
    assert two[1]["mae"]["value"] == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(both[1]["mae"]["value"], rel=1e-4)
    difference = found["first_run_minus"][COHORT][two[0]]["mae"]["difference"]
    assert difference == pytest.approx(both[1]["mae"]["value"] - expected, abs=1e-3)


def test_predict_and_export_give_the_number_in_its_unit(
    number: Path, store: Path, tmp_path: Path
) -> None:
    shared, opened = export(number, tmp_path / "shared"), open_store(store)
    row = column(store, "record_id").tolist().index(key_of(store, "r000"))
    (expected,) = load_run(number, opened).probabilities(opened, np.array([row]))
    assert 10 < expected < 90
    for run in (number, shared):
        write_predictions(run, [store.with_name("source") / "r000.npy"], tmp_path / "out.csv")
        (line,) = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
        assert list(line) == ["file", "start_s", "target", "value", "note"]
        assert (line["target"], float(line["value"])) == (EF, pytest.approx(expected, abs=1e-3))


def key_of(store: Path, record: str) -> str:
    with store.with_name("store.sources.csv").open() as file:
        (key,) = (row["record_id"] for row in csv.DictReader(file) if row["record"] == record)
    return key


def test_a_run_of_classes_gives_each_its_probability(
    classes: Path, store: Path, tmp_path: Path
) -> None:
    result = json.loads((classes / "result.json").read_text())
    assert result["identity"]["classes"] == list(RHYTHMS)
    assert list(result["outputs"]) == [f"rhythm={name}" for name in RHYTHMS]
    write_predictions(classes, [store.with_name("source") / "r000.npy"], tmp_path / "out.csv")
    lines = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [line["target"] for line in lines] == [f"rhythm={name}" for name in RHYTHMS]
    assert sum(float(line["probability"]) for line in lines) == pytest.approx(1, abs=1e-5)
    model = load_model(export(classes, tmp_path / "shared"))
    assert list(model.thresholds) == [f"rhythm={name}" for name in RHYTHMS]
    assert "a probability of each class of rhythm" in (tmp_path / "shared/README.md").read_text()


def test_a_report_of_classes_agrees_with_scikit_learn(
    classes: Path, store: Path, tmp_path: Path
) -> None:
    html = evaluate([classes], store, tmp_path / "report", device="cpu").read_text()
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    labels, probability = answers(store, classes, "rhythm")
    (mean,) = metrics["mean"][COHORT].values()
    macro = roc_auc_score(labels.astype(str), probability, multi_class="ovr", labels=RHYTHMS)
    assert mean["auroc"]["value"] == pytest.approx(macro)
    (found,) = metrics["confusion"][COHORT].values()
    said = np.array(RHYTHMS)[probability.argmax(axis=1)]
    assert found["counts"] == confusion_matrix(labels.astype(str), said, labels=RHYTHMS).tolist()
    assert found["accuracy"]["value"] == pytest.approx((labels == said).mean())
    assert "Confusion matrix" in html
    assert len(list((tmp_path / "report" / "targets").glob("*/report.html"))) == 3


def test_stated_classes_leave_the_others_out(store: Path, tiny: Path, tmp_path: Path) -> None:
    config = load_config(str(tiny), [*ONCE, "finetune.labels_per_class=3"])
    run = finetune(
        store, tmp_path / "run", preset=config, init="random", target="rhythm",
        classes=["SR", "AF"], device="cpu",
    )  # fmt: skip
    result = json.loads((run / "result.json").read_text())
    assert result["counts"]["train_patients"] == 6
    evaluate([run], store, tmp_path / "report", device="cpu")
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    labels, _ = answers(store, run, "rhythm")
    (found,) = metrics["confusion"][COHORT].values()
    assert np.sum(found["counts"], axis=1).tolist() == [
        int((labels == name).sum()) for name in ("SR", "AF")
    ]
    with pytest.raises(ResumeError, match="classes"):
        finetune(
            store, run, preset=config, init="random", target="rhythm", classes=["AF", "SR"],
            resume=True, device="cpu",
        )  # fmt: skip


def test_what_columns_cannot_have_is_refused_before_work(
    store: Path, tiny: Path, tmp_path: Path
) -> None:
    def refused(target: str, *settings: str, classes: tuple[str, ...] = ()) -> str:
        config = load_config(str(tiny), settings)
        with pytest.raises(ConfigError) as error:
            finetune(
                store, tmp_path / "r", preset=config, init="random", target=target,
                classes=classes, device="cpu",
            )  # fmt: skip
        assert not (tmp_path / "r" / "config.toml").exists()
        return str(error.value)

    balanced, few = "finetune.class_weights=balanced", "finetune.labels_per_class=3"
    assert refused(EF, balanced).startswith("finetune.class_weights must be none for ejection_fra")
    assert refused(f"{EF}<40", "finetune.number_loss=huber").startswith("finetune.number_loss is o")
    assert refused(EF, few).startswith("finetune.labels_per_class must be unset for ejection_fra")
    assert "got no record of BBB (--classes" in refused("rhythm", classes=("SR", "BBB"))
    with pytest.raises(ConfigError, match=r"'ejection_fraction', allowed COLUMN OP VALUE"):
        make_plan(store, tmp_path / "e", target=EF)
    with pytest.raises(ConfigError, match=r"'ejection_fraction', allowed COLUMN OP VALUE"):
        label_store(store, store.with_name("more.csv"), columns=["rhythm"], target=EF)
