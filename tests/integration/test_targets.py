"""Several targets of one run: what it writes of each, what a report and predict say of them."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from ecgfast.config import load_config
from ecgfast.convert import convert
from ecgfast.convert.preprocess import read_windows
from ecgfast.data.loader import build_loader
from ecgfast.errors import ConfigError, ResumeError
from ecgfast.evaluate.report import evaluate
from ecgfast.ingest.inventory import discover
from ecgfast.labels.commands import label_store
from ecgfast.predict import predict, write_predictions
from ecgfast.predictor import load_model
from ecgfast.runs.export import export
from ecgfast.runs.loading import load_run
from ecgfast.runs.outputs import register_of_output
from ecgfast.runs.register import read_register
from ecgfast.store.reader import open_store
from ecgfast.train.finetune import finetune

TARGETS = ["ejection_fraction<40", "site=1"]
COHORT = "test splits of sites 1, 2"
ONCE = ("finetune.epochs=1", "finetune.learning_rates=[1e-3]")


@pytest.fixture(scope="module")
def both(store: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("both") / "run"
    config = load_config(str(tiny), ONCE)
    return finetune(store, out, preset=config, init="random", target=TARGETS, device="cpu")


@pytest.fixture(scope="module")
def report(both: Path, store: Path) -> Path:
    return evaluate([both], store, both.with_name("report"), device="cpu").parent


def test_the_run_names_each_target(both: Path, store: Path) -> None:
    result = json.loads((both / "result.json").read_text())
    assert result["identity"]["target"] == TARGETS
    fractions = np.array(open_store(store).records["ejection_fraction"].to_pylist(), dtype=float)
    split = np.array(open_store(store).records["split"].to_pylist())
    first, second = (result["outputs"][name] for name in TARGETS)
    assert first["train_cases"] == int((fractions[split == "train"] < 40).sum())
    assert second["train_cases"] + second["train_controls"] == int((split == "train").sum())
    assert first["thresholds"]["youden"] != second["thresholds"]["youden"]
    card = (both / "MODEL_CARD.md").read_text()
    assert all(f"| {name} | " in card for name in TARGETS)
    register = read_register(both)
    assert register is not None
    truth, probability = register_of_output(register, 0).validation
    assert roc_auc_score(truth, probability) == pytest.approx(first["val_auroc"])
    assert (
        len(truth) == first["valid_cases"] + first["valid_controls"] < len(register.select("valid"))
    )


def test_the_report_has_each_target_and_their_mean(both: Path, store: Path, report: Path) -> None:
    opened = open_store(store)
    run = load_run(both, opened)
    scores = run.probabilities(opened, np.arange(len(opened)))
    fractions = np.array(opened.records["ejection_fraction"].to_pylist(), dtype=float)
    site = np.array(opened.records["site"].to_pylist())
    in_test = np.array(opened.records["split"].to_pylist()) == "test"
    truths = {TARGETS[0]: fractions < 40, TARGETS[1]: site == "1"}
    known = {TARGETS[0]: ~np.isnan(fractions), TARGETS[1]: np.ones(len(opened), bool)}
    metrics = json.loads((report / "metrics.json").read_text())
    areas, precisions = [], []
    for number, name in enumerate(TARGETS):
        rows = in_test & known[name]
        found = metrics["targets"][name]["cohorts"][COHORT][run.name]
        areas.append(roc_auc_score(truths[name][rows], scores[rows, number]))
        precisions.append(average_precision_score(truths[name][rows], scores[rows, number]))
        assert found["auroc"]["value"] == pytest.approx(areas[-1])
        assert found["average_precision"]["value"] == pytest.approx(precisions[-1])
    mean = metrics["mean"][COHORT][run.name]
    assert mean["auroc"]["value"] == pytest.approx(np.mean(areas))
    assert mean["average_precision"]["value"] == pytest.approx(np.mean(precisions))
    assert mean["auroc"]["low"] < mean["auroc"]["value"] < mean["auroc"]["high"]
    table = pq.read_table(report / "scores.parquet")
    assert set(table["target"].to_pylist()) == set(TARGETS)
    assert len(table) == sum(int((in_test & known[name]).sum()) for name in TARGETS)
    html = (report / "report.html").read_text()
    pages = sorted((report / "targets").glob("*/report.html"))
    assert len(pages) == 2
    assert all(str(page.relative_to(report)) in html for page in pages)


def test_predict_has_a_line_of_each_target(both: Path, store: Path, tmp_path: Path) -> None:
    write_predictions(both, [store.with_name("source") / "r000.npy"], tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["target"] for line in lines] == TARGETS
    opened = open_store(store)
    with store.with_name("store.sources.csv").open() as file:
        (key,) = (row["record_id"] for row in csv.DictReader(file) if row["record"] == "r000")
    row = opened.records["record_id"].to_pylist().index(key)
    (expected,) = load_run(both, opened).probabilities(opened, np.array([row]))
    assert [float(line["probability"]) for line in lines] == pytest.approx(expected, abs=2e-5)
    outputs = json.loads((both / "result.json").read_text())["outputs"]
    youden = [outputs[name]["thresholds"]["youden"] for name in TARGETS]
    assert [float(line["threshold"]) for line in lines] == pytest.approx(youden, abs=1e-6)


def test_an_exported_model_has_each_target_bit_for_bit(
    both: Path, store: Path, tmp_path: Path
) -> None:
    shared = export(both, tmp_path / "shared")
    opened = open_store(store)
    rows = np.arange(len(opened))
    ours, theirs = (
        load_run(each, opened, for_tests=False).probabilities(opened, rows)
        for each in (both, shared)
    )
    assert ours.shape == (len(rows), 2)
    assert np.array_equal(ours, theirs)
    assert len(np.unique(ours)) > 30  # a model that tells records and targets apart
    model = load_model(shared)
    outputs = json.loads((both / "result.json").read_text())["outputs"]
    assert list(model.thresholds.items()) == [
        (name, outputs[name]["thresholds"]["youden"]) for name in TARGETS
    ]
    (first,) = build_loader(opened, batch_size=8, select=rows[:8], shuffle=False, drop_last=False)
    assert np.array_equal(model.scores(first.patches), load_model(both).scores(first.patches))
    card = (shared / "README.md").read_text()
    assert all(f"| {name} | " in card for name in TARGETS)
    files = [store.with_name("source") / f"r00{number}.npy" for number in (0, 1)]
    assert [replace(each, note="") for each in predict(shared, files)] == [
        replace(each, note="") for each in predict(both, files)
    ]  # but for the note: whom the run learned from is not known


def test_windows_are_averaged_target_by_target(both: Path, tmp_path: Path) -> None:
    at = np.arange(10_000) / 500
    waves = [1000 * (1 + at / 10) * np.sin(2 * np.pi * (1 + at / 9) * at + n) for n in range(12)]
    np.save(tmp_path / "long.npy", np.rint(waves).astype(np.int16))
    (tmp_path / "long.json").write_text('{"sampling_rate_hz": 500, "scale_uv": 1.0}')
    model, out = load_model(both), tmp_path / "out.csv"
    write_predictions(both, [tmp_path / "long.npy"], out, average=True)
    with out.open() as file:
        lines = list(csv.DictReader(file))
    (item,) = discover([tmp_path / "long.npy"])
    found = read_windows(item, window="all", short="quarantine")
    scores = model.scores(model.prepare(found.samples, found.windows))
    assert scores.shape == (2, 2)
    assert [line["target"] for line in lines] == TARGETS
    assert [line["windows"] for line in lines] == ["2", "2"]
    for number, line in enumerate(lines):
        mine = scores[:, number]
        assert float(line["probability"]) == pytest.approx(mean := mine.mean(), abs=1e-6)
        assert float(line["sd"]) == pytest.approx(mine.std(ddof=1), abs=1e-6)
        assert float(line["lowest"]) == pytest.approx(mine.min(), abs=1e-6)
        threshold = model.thresholds[TARGETS[number]]
        assert float(line["threshold"]) == pytest.approx(threshold, abs=1e-6)
        assert line["finding"] == ("yes" if mean >= threshold else "no")


def test_other_targets_are_another_run(both: Path, store: Path, tiny: Path, tmp_path: Path) -> None:
    run = shutil.copytree(both, tmp_path / "run")
    config = load_config(str(tiny), ONCE)
    with pytest.raises(ResumeError, match="target"):
        finetune(
            store,
            run,
            preset=config,
            init="random",
            target=TARGETS[::-1],
            resume=True,
            device="cpu",
        )


def test_a_target_without_cases_is_named(store: Path, tiny: Path, tmp_path: Path) -> None:
    config = load_config(str(tiny), ONCE)
    targets = [TARGETS[0], "site=7"]
    with pytest.raises(ConfigError, match="cases and controls of 'site=7', got 0 cases"):
        finetune(store, tmp_path / "r", preset=config, init="random", target=targets, device="cpu")


@pytest.mark.slow  # trains on real records
def test_two_labels_of_real_records_at_once(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "ptbxl500"
    (tmp_path / "in").symlink_to(source / "records500")
    convert([tmp_path / "in"], tmp_path / "store", workers=1)
    label_store(tmp_path / "store", source / "labels.csv", columns=["NORM", "MI"])
    config = load_config("resnet1d_small", ["finetune.epochs=1", *ONCE])
    targets = ["NORM=1", "MI=1"]
    run = finetune(
        tmp_path / "store",
        tmp_path / "run",
        preset=config,
        init="random",
        target=targets,
        device="cpu",
    )
    metrics = json.loads(
        (evaluate([run], tmp_path / "store", tmp_path / "report").parent / "metrics.json")
        .read_text()
    )  # fmt: skip
    (by_run,) = metrics["mean"].values()
    (mean,) = by_run.values()
    assert mean["num_targets"] == 2
    of_targets = [
        each["auroc"]["value"]
        for name in targets
        for by_name in metrics["targets"][name]["cohorts"].values()
        for each in by_name.values()
    ]
    assert mean["auroc"]["value"] == pytest.approx(np.mean(of_targets))
