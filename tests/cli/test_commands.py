"""The commands in the order of the README, on a cohort of forty records."""

import csv
from pathlib import Path

import pytest

from ecgfast.cli import main

pytestmark = pytest.mark.slow

TINY = [
    word
    for part in ("encoder", "decoder")
    for setting in ("width=32", "depth=1", "heads=2")
    for word in ("--set", f"model.{part}_{setting}")
]


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def test_from_files_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort, store, runs = tmp_path / "cohort", tmp_path / "store", tmp_path / "runs"
    run("synth", cohort, "--records", 80, "--sites", 2, "--seed", 1)
    run("convert", cohort, "--out", store, "--workers", 1)
    assert "80 inputs = 80 converted + 0 quarantined" in capsys.readouterr().out
    labels = tmp_path / "echo.csv"
    _label_and_split(cohort / "labels.csv", labels)
    run("label", store, labels, "--columns", "ejection_fraction", "--split", "column")
    run("info", store)
    page = capsys.readouterr().out
    assert "SYNTHETIC" in page
    assert "80 of 80 records labelled with ejection_fraction" in page
    run("verify", store)
    short = ["--set", "train.batch_size=4", "--set", "train.max_steps=3", "--set"]
    run(
        "pretrain", store, "--out", runs / "pretrained", "--preset", "demo", "--select", "site=1",
        *short, "train.val_fraction=0", *TINY,
    )  # fmt: skip
    run(
        "finetune", store, "--out", runs / "vit", "--init", runs / "pretrained",
        "--select", "site=1", "--set", "finetune.epochs=1", "--set", "finetune.batch_size=8",
        "--recipe", "best_practice", "--set", "finetune.probe_epochs=1",
    )  # fmt: skip
    settings = (runs / "vit" / "config.toml").read_text()
    assert "encoder_width = 32" in settings
    assert 'recipe = "best_practice"' in settings
    assert "probe_epochs = 1" in settings
    words = ["finetune", store, "--out", runs / "cnn", "--init", runs / "pretrained", "--preset"]
    for choice in (["cnn"], ["demo", "--model", "cnn"]):  # either says the architecture
        assert main([*map(str, words), *choice]) == 2
        assert "--init of a cnn must be 'random'" in capsys.readouterr().err
    run("evaluate", runs / "vit", runs / "pretrained", store, "--out", tmp_path / "report")
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "report" / "report.html")
    run("predict", runs / "vit", next(cohort.rglob("*.hea")))
    header, line = capsys.readouterr().out.splitlines()[-2:]
    assert header == "file,start_s,target,probability,threshold,finding,note"
    assert 0 < float(line.split(",")[3]) < 1


def _label_and_split(source: Path, out: Path) -> None:
    """Labels with splits of our own, by patient, so that every split has both classes."""
    with source.open() as file:
        rows = list(csv.DictReader(file))
    splits = ("train", "train", "train", "valid", "test")
    patients: dict[tuple[bool, str], str] = {}
    for row in rows:
        is_case = float(row["ejection_fraction"]) < 40
        seen = sum(case == is_case for case, _ in patients)
        patients.setdefault((is_case, row["patient_id"]), splits[seen % 5])
    by_patient = {patient: split for (_, patient), split in reversed(patients.items())}
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("record_id", "ejection_fraction", "split"))
        for row in rows:
            split = by_patient[row["patient_id"]]
            writer.writerow((row["record_id"], row["ejection_fraction"], split))
