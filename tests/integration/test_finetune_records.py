"""Whom a run learned from, whom it is tested on, and what its register says of both."""

import csv
import errno
import gc
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from ecgfast.config import Config, load_config
from ecgfast.data.loader import build_loader
from ecgfast.errors import ConfigError, EcgfastError, ResumeError
from ecgfast.evaluate.planning import plan_tests
from ecgfast.evaluate.reconstructions import unread_records
from ecgfast.evaluate.report import evaluate
from ecgfast.labels.commands import draw_again, label_store
from ecgfast.model.classifier import Classifier
from ecgfast.model.mae import MaskedAutoencoder
from ecgfast.runs.loading import load_model, load_run
from ecgfast.runs.register import read_register
from ecgfast.store.reader import open_store
from ecgfast.train.finetune import finetune
from ecgfast.train.pretrain import pretrain

TARGET = "ejection_fraction<40"


def _relabel(store: Path, out: Path, changes: dict[str, tuple[str, str]]) -> Path:
    """Copy a store and label the copy again, some records otherwise: (fraction, split)."""
    shutil.copytree(store, out)
    shutil.copy(f"{store}.key", f"{out}.key")
    shutil.copy(f"{store}.sources.csv", f"{out}.sources.csv")
    with (store.parent / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["record_id"] in changes:
            row["ejection_fraction"], row["split"] = changes[row["record_id"]]
    with (out.parent / f"{out.name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    label_store(out, out.parent / f"{out.name}.csv", split="column")
    return out


def test_a_run_that_does_not_say_whom_it_learned_from_is_refused(
    tuned: Path, store: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tuned, tmp_path / "run")
    (run / "register.parquet").unlink()
    with pytest.raises(ResumeError, match=r"register\.parquet cannot be read"):
        evaluate([run], store, tmp_path / "report")
    result = json.loads((run / "result.json").read_bytes())
    for key in ("format", "run_files", "digest"):  # an earlier version has none of them
        del result[key]
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(ConfigError, match=r"did not record which patients .* fine-tune again"):
        evaluate([run], store, tmp_path / "report")


def test_a_store_labelled_otherwise_tests_no_patient_of_training(
    tuned: Path, store: Path, config: Config, pretrained: Path, tmp_path: Path
) -> None:
    """Patient P0, learned from, is in the test split of the other store; he is left out."""
    moved = _relabel(store, tmp_path / "moved", {"r000": ("30", "test"), "r001": ("60", "test")})
    opened = open_store(moved)
    assert opened.records["split"].to_pylist()[:2] == ["test", "test"]
    plan = plan_tests(opened, [load_run(tuned, opened)])
    for by_run in plan.cohorts.values():
        for rows in by_run.values():
            assert not {0, 1} & set(rows.tolist())
    with pytest.raises(ResumeError, match=r"labels \(now '[0-9a-f]{16}', in the checkpoint '"):
        finetune(
            moved,
            shutil.copytree(tuned, tmp_path / "run"),
            preset=config,
            init=str(pretrained),
            target=TARGET,
            resume=True,
            device="cpu",
        )
    tested = _relabel(store, tmp_path / "tested", {"r008": ("30", "test"), "r009": ("", "test")})
    assert evaluate([tuned], tested, tmp_path / "report").is_file()


def test_a_report_lies_beside_nothing_of_an_earlier_one(
    tuned: Path, pretrained: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither probabilities that it does not show, nor, after a full disk, its own page."""
    out = tmp_path / "report"
    assert evaluate([tuned], store, out).is_file()
    before = {path.name for path in (out / "figures").iterdir()}
    evaluate([pretrained], store, out)
    assert sorted(path.name for path in out.iterdir()) == ["figures", "metrics.json", "report.html"]
    figures = {path.name for path in (out / "figures").iterdir()}
    assert any(name.startswith("roc") for name in before - figures)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EcgfastError, match="disk full"):
        evaluate([tuned], store, out)
    assert not (out / "report.html").exists()


def test_a_run_keeps_its_validation_scores_and_thresholds(tuned: Path, store: Path) -> None:
    """The scores are those of the kept weights, the threshold has the highest Youden index."""
    register = read_register(tuned)
    assert register is not None
    truth, score = register.validation
    opened = open_store(store)
    splits = np.array(opened.records.column("split").to_pylist())
    fraction = np.array(opened.records.column("ejection_fraction").to_pylist(), dtype=float)
    rows = np.flatnonzero((splits == "valid") & ~np.isnan(fraction))
    assert truth.tolist() == (fraction[rows] < 40).tolist()
    model, _, meta = load_model(tuned)
    loader = build_loader(opened, batch_size=len(rows), select=rows, shuffle=False)
    with torch.no_grad():
        expected = torch.sigmoid(model(next(iter(loader)).patches)).double().numpy()
    np.testing.assert_allclose(score, expected, atol=1e-6)  # batches of another size, in fp32
    false_rate, true_rate, candidates = roc_curve(truth, score, drop_intermediate=False)
    best = candidates[np.argmax(true_rate - false_rate)]
    assert meta.thresholds["youden"] == best
    found = score >= meta.thresholds["sensitivity_90"]
    assert found[truth].mean() >= 0.9
    higher = score > meta.thresholds["sensitivity_90"]
    assert higher[truth].mean() < 0.9


def test_a_register_holds_what_the_encoder_read(tuned: Path, pretrained: Path, store: Path) -> None:
    """Pretraining left the test patients out, so that none of them is in either register."""
    records = open_store(store).records
    patients = np.array(records["patient_id"].to_pylist())
    splits = np.array(records["split"].to_pylist())
    before, after = read_register(pretrained), read_register(tuned)
    assert before is not None
    assert after is not None
    expected = set(patients[splits != "test"])
    assert set(before.select("pretrain")["patient"].to_pylist()) == expected
    assert set(after.select("pretrain")["patient"].to_pylist()) == expected
    taught = (splits == "train") & ~np.array(records["ejection_fraction"].is_null())
    assert set(after.select("train")["patient"].to_pylist()) == set(patients[taught])
    assert after.encoder == "run"
    assert not set(patients[splits == "test"]) & set(after.rows["patient"].to_pylist())


def test_pretraining_reads_test_patients_only_when_asked(
    store: Path, config: Config, tmp_path: Path
) -> None:
    run = pretrain(store, tmp_path / "run", preset=config, include_test=True, device="cpu")
    register = read_register(run)
    assert register is not None
    assert len(register.select("pretrain")) == len(open_store(store))
    tuned = finetune(
        store, tmp_path / "tuned", preset=config, init=str(run), target=TARGET, device="cpu"
    )
    report = evaluate([tuned], store, tmp_path / "report").read_text()
    said = json.loads((tmp_path / "report/metrics.json").read_text())["disclosures"]
    assert len(said) == 1
    assert re.fullmatch(
        r"ViT, pretrained: its encoder read, without labels, ECGs of the patients of (\d+) of the "
        r"\1 tested records\.",
        said[0],
    )
    assert report.index(said[0]) < report.index("Detection of")
    opened = open_store(store)
    rows, words = unread_records(load_run(run, opened), opened)
    assert (len(rows), words) == (len(opened), "all of patients whom pretraining read")


def test_a_folder_that_holds_a_run_is_left_alone(
    pretrained: Path, tuned: Path, store: Path, config: Config
) -> None:
    with pytest.raises(ResumeError, match="is not empty; add --resume"):
        pretrain(store, pretrained, preset=config, device="cpu")
    with pytest.raises(ResumeError, match="is not empty; add --resume"):
        finetune(store, tuned, preset=config, init="random", target=TARGET, device="cpu")


def test_only_unread_records_are_called_unread(pretrained: Path, store: Path) -> None:
    opened = open_store(store)
    rows, words = unread_records(load_run(pretrained, opened), opened)
    splits = np.array(opened.records["split"].to_pylist())
    assert rows.tolist() == np.flatnonzero(splits == "test").tolist()
    assert words == "of patients whom pretraining never read"


def test_cohort_statistics_are_those_of_the_training_split(
    store: Path, config: Config, tiny: Path, tmp_path: Path
) -> None:
    """By hand from the stored leads: neither validation nor test patients enter."""
    by_cohort = load_config(str(tiny), ["train.max_steps=2", "data.normalise=cohort_lead"])
    opened = open_store(store)
    splits = np.array(opened.records.column("split").to_pylist())
    fraction = np.array(opened.records.column("ejection_fraction").to_pylist(), dtype=float)
    signal_uv = opened.read(range(len(opened))) * opened.scale_uv[:, :, None].astype(float)
    runs = {
        "pretrained": (
            pretrain(store, tmp_path / "pretrained", preset=by_cohort, device="cpu"),
            splits == "train",
        ),
        "tuned": (
            finetune(
                store, tmp_path / "tuned", init="random", target=TARGET, device="cpu", preset=tiny,
                settings={"finetune.epochs": 1, "data.normalise": "cohort_lead"},
            ),
            (splits == "train") & ~np.isnan(fraction),
        ),
    }  # fmt: skip
    for run, rows in runs.values():
        kept = load_model(run)[2].preprocessing.normalisation.cohort
        assert kept is not None
        np.testing.assert_allclose(kept.mean_uv, signal_uv[rows].mean((0, 2)), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(kept.std_uv, signal_uv[rows].std((0, 2)), rtol=1e-4)


def test_a_fold_is_held_out(store: Path, config: Config, tmp_path: Path) -> None:
    folded = _relabel(store, tmp_path / "folded", {})
    draw_again(folded)
    run = finetune(
        folded, tmp_path / "run", preset=config, init="random", target=TARGET, fold=2,
        device="cpu",
    )  # fmt: skip
    records = open_store(folded).records
    fold = np.array(records["fold"].to_pylist())
    known = ~np.array(records["ejection_fraction"].is_null())
    patients = np.array(records["patient_id"].to_pylist())
    register = read_register(run)
    assert register is not None
    assert set(register.select("valid")["patient"].to_pylist()) == set(
        patients[(fold == 3) & known]
    )
    trained = set(patients[(fold != 2) & (fold != 3) & known])
    assert set(register.select("train")["patient"].to_pylist()) == trained
    opened = open_store(folded)
    plan = plan_tests(opened, [load_run(run, opened)])
    tested = np.concatenate([rows for by_run in plan.cohorts.values() for rows in by_run.values()])
    assert set(fold[tested]) == {2}


def test_a_selection_that_labels_changed_is_not_resumed(
    store: Path, config: Config, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pretrain(store, run, preset=config, select="ejection_fraction<40", device="cpu")
    other = _relabel(store, tmp_path / "other", {"r000": ("60", "train")})
    with pytest.raises(ResumeError, match=r"another run: records \(now '"):
        pretrain(
            other, run, preset=config, select="ejection_fraction<40", device="cpu", resume=True
        )


def test_a_loaded_run_holds_no_weights(tuned: Path, pretrained: Path, store: Path) -> None:
    """A report of many runs has those of one at a time in memory."""

    def models() -> int:
        gc.collect()
        kinds = (Classifier, MaskedAutoencoder)  # isinstance would ask lazy modules too
        return sum(issubclass(type(each), kinds) for each in gc.get_objects())

    opened, before = open_store(store), models()
    runs = [load_run(run, opened) for run in (tuned, pretrained, tuned)]
    assert models() == before
    for run in (runs[0], runs[2]):
        assert len(run.probabilities(opened, np.arange(3))) == 3
        assert models() == before
    assert isinstance(runs[1].model(), MaskedAutoencoder)


@pytest.mark.parametrize(
    ("device", "error"),
    [
        ("gpu", "device must be cpu, cuda or cuda:N, got 'gpu'"),
        ("cuda:99", "device 'cuda' was asked for and .* no GPU|device cuda:99 was asked for"),
    ],
)
def test_a_report_is_made_on_a_device_that_exists(
    device: str, error: str, tuned: Path, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    with pytest.raises(EcgfastError, match=error):
        evaluate([tuned], store, out, device=device)
    assert not out.exists()
    assert evaluate([tuned], store, out, device="cpu").exists()
