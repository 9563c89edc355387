"""Linear probes of a number and of exclusive classes, from the command to the report."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    confusion_matrix,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from training_runs import make_column_store

import ecgfast
from ecgfast.cli import main
from ecgfast.errors import ConfigError
from ecgfast.evaluate.report import evaluate
from ecgfast.predict import predict
from ecgfast.runs.export import export
from ecgfast.store.reader import open_store
from ecgfast.train.probe import probe

EF, COHORT = "ejection_fraction", "test splits of sites 1, 2"
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
SETTINGS = {"finetune.probe_c": list(STRENGTHS)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_column_store(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def number(store: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("number") / "run"
    return probe(pretrained, store, out, target=EF, pool="mean", settings=SETTINGS, device="cpu")


@pytest.fixture(scope="module")
def classes(store: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classes") / "run"
    return ecgfast.probe(
        pretrained, store, out, target="rhythm", pool="mean", settings=SETTINGS, device="cpu"
    )


Column = NDArray[np.object_]


def features_and(store: Path, run: Path, name: str) -> tuple[NDArray[np.float64], Column, Column]:
    """Features of the encoder, labels, and split of each labelled record, else the empty word."""
    features = ecgfast.embed(run, store, pool="mean", device="cpu").values.astype(float)
    records = open_store(store).records
    labels, split = (np.array(records[n].to_pylist(), dtype=object) for n in (name, "split"))
    split[[label is None for label in labels]] = ""
    return features, labels, split


def test_a_number_is_fitted_and_reported_as_scikit_learn_has_it(
    store: Path, pretrained: Path, number: Path, tmp_path: Path
) -> None:
    features, labels, split = features_and(store, pretrained, EF)
    train, valid, test = (np.flatnonzero(split == name) for name in ("train", "valid", "test"))
    fits = [
        make_pipeline(StandardScaler(), Ridge(alpha=1 / (2 * c))).fit(
            features[train], labels[train].astype(float)
        )
        for c in STRENGTHS
    ]
    losses = [mean_squared_error(labels[valid], fit.predict(features[valid])) for fit in fits]
    best = int(np.argmin(losses))
    result = json.loads((number / "result.json").read_text())
    assert result["c"] == [STRENGTHS[best]]
    scale = result["identity"]["scale"][1]
    assert result["val_loss"] * scale**2 == pytest.approx(losses[best], rel=1e-3)
    assert result["val_auroc"] is None
    html = evaluate([number], store, tmp_path / "report", target=f"{EF}<40", device="cpu")
    metrics = json.loads(html.with_name("metrics.json").read_text())
    found = metrics["agreement"]["cohorts"][COHORT]["ViT, pretrained, probe"]
    measured, expected = labels[test].astype(float), fits[best].predict(features[test])
    assert np.ptp(expected) > 0.1
    assert found["mae"]["value"] == pytest.approx(mean_absolute_error(measured, expected), rel=1e-3)
    assert found["r2"]["value"] == pytest.approx(r2_score(measured, expected), rel=1e-2, abs=1e-3)
    area = metrics["cohorts"][COHORT]["ViT, pretrained, probe"]["auroc"]["value"]
    assert area == pytest.approx(roc_auc_score(measured < 40, -expected))
    assert "Bland-Altman" in html.read_text()
    card = (number / "MODEL_CARD.md").read_text()
    assert "A linear probe: ridge regression on" in card
    assert "which chose C, so that a test tends to be worse" in card


def test_classes_are_fitted_and_reported_as_scikit_learn_has_them(
    store: Path, pretrained: Path, classes: Path, tmp_path: Path
) -> None:
    features, labels, split = features_and(store, pretrained, "rhythm")
    train, valid, test = (np.flatnonzero(split == name) for name in ("train", "valid", "test"))
    fits = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-8, max_iter=10_000)).fit(
            features[train], labels[train].astype(str)
        )
        for c in STRENGTHS
    ]
    losses = [log_loss(labels[valid].astype(str), f.predict_proba(features[valid])) for f in fits]
    best = int(np.argmin(losses))
    result = json.loads((classes / "result.json").read_text())
    assert result["c"] == [STRENGTHS[best]]
    assert [row["val_loss"][0] for row in result["tried"]] == pytest.approx(losses, rel=1e-3)
    html = evaluate([classes], store, tmp_path / "report", device="cpu")
    metrics = json.loads(html.with_name("metrics.json").read_text())
    chances, truth = fits[best].predict_proba(features[test]), labels[test].astype(str)
    mean = metrics["mean"][COHORT]["ViT, pretrained, probe"]["auroc"]["value"]
    assert mean == pytest.approx(roc_auc_score(truth, chances, multi_class="ovr"))
    for number, name in enumerate(("AF", "SR", "VT")):
        cohort = metrics["targets"][f"rhythm={name}"]["cohorts"][COHORT]
        area = cohort["ViT, pretrained, probe"]["auroc"]["value"]
        assert area == pytest.approx(roc_auc_score(truth == name, chances[:, number]))
    pages = sorted((tmp_path / "report" / "targets").glob("*/report.html"))
    assert all("What the answer rests on: ViT, pre" in page.read_text() for page in pages)
    assert len(pages) == 3
    counts = metrics["confusion"][COHORT]["ViT, pretrained, probe"]["counts"]
    assert counts == confusion_matrix(truth, fits[best].predict(features[test])).tolist()
    assert "A linear probe: multinomial logistic reg" in (classes / "MODEL_CARD.md").read_text()


def test_they_are_exported_and_predict(
    store: Path, number: Path, classes: Path, tmp_path: Path
) -> None:
    files = [store.with_name("source") / f"r00{n}.npy" for n in range(3)]
    for run, targets in ((number, 1), (classes, 3)):
        said = [line.probability for line in predict(run, files)]
        assert len(set(said)) == 3 * targets
        shared = export(run, tmp_path / run.parent.name)
        assert [line.probability for line in predict(shared, files)] == said


@pytest.mark.parametrize("words", [["--target", EF], ["--target", "rhythm", "--classes", "VT,AF"]])
def test_the_command_does_the_same(
    store: Path, pretrained: Path, tmp_path: Path, words: list[str]
) -> None:
    command = ["probe", str(pretrained), str(store), "--out", str(tmp_path / "cli"), *words]
    assert main([*command, "--device", "cpu", "--set", "finetune.probe_c=[0.1]"]) == 0
    options = {"classes": words[3].split(",")} if len(words) > 2 else {}
    out = probe(
        pretrained, store, tmp_path / "api", target=words[1], device="cpu",
        settings={"finetune.probe_c": [0.1]}, **options,  # type: ignore[arg-type]  # classes
    )  # fmt: skip
    for name in ("best.safetensors", "register.parquet"):
        assert (tmp_path / "cli" / name).read_bytes() == (out / name).read_bytes()
    outputs = json.loads((out / "result.json").read_text())["outputs"]
    assert list(outputs) == (["rhythm=VT", "rhythm=AF"] if options else [EF])


def test_labels_that_cannot_teach_are_refused_in_one_line(
    store: Path, pretrained: Path, tmp_path: Path
) -> None:
    def refused(**options: object) -> str:
        with pytest.raises(ConfigError) as error:
            probe(pretrained, store, tmp_path / "run", device="cpu", **options)  # type: ignore[arg-type]  # options of any kind
        assert list((tmp_path / "run").iterdir()) == []
        assert "\n" not in str(error.value)
        return str(error.value)

    assert refused(target="rhythm", classes=["SR", "BBB"]).startswith(
        "split 'train' must hold each class of rhythm, got no record of BBB (--classes names those"
    )
    assert refused(target=EF, select=f"{EF}=60").startswith(
        f"split 'train' must hold different numbers of {EF}, got "
    )
    one = {"settings": {"finetune.label_fraction": 0.04}, "select": "site=1"}
    assert refused(target=EF, **one).startswith(
        f"finetune.label_fraction=0.04: split 'train' must hold different numbers of {EF}, got 1"
    )
    two = {"settings": {"finetune.label_fraction": 0.1}, "select": "site=1"}  # and one is of VT
    assert refused(target=["rhythm=AF", "rhythm=SR"], **two).startswith(
        "the labels that teach are too few: split 'train' must hold cases and controls of 'rhythm="
    )
