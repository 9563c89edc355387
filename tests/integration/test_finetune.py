"""Fine-tuning: the sweep keeps the lowest loss, resumes exactly, and refuses what does not fit."""

import csv
import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_curve
from tolerances import RANKS_LOSS
from torch.nn.functional import binary_cross_entropy_with_logits
from training_runs import finish, kill, start, wait_for_step

from ecgfast.config import Config, load_config
from ecgfast.data.loader import build_loader
from ecgfast.errors import ConfigError, FormatError, ResumeError
from ecgfast.evaluate.report import evaluate
from ecgfast.evaluate.runs import load_run
from ecgfast.evaluate.scores import plan_tests
from ecgfast.evaluate.sections import to_reconstruct
from ecgfast.labels import label_store
from ecgfast.labels.published import draw_again
from ecgfast.log import read_metrics
from ecgfast.runs.register import read_register
from ecgfast.store.reader import open_store
from ecgfast.train.finetune import finetune
from ecgfast.train.loading import load_model
from ecgfast.train.pretrain import pretrain

TARGET = "ejection_fraction<40"


@pytest.fixture(scope="module")
def config(tiny: Path) -> Config:
    return load_config(str(tiny), ["train.max_steps=4"])


@pytest.fixture(scope="module")
def pretrained(store: Path, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(config, store, tmp_path_factory.mktemp("pretrained"), device="cpu")


@pytest.fixture(scope="module")
def tuned(
    store: Path, config: Config, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("tuned")
    return finetune(
        config, store, out, init=str(pretrained), model="vit", target=TARGET, device="cpu"
    )


def _best(run: Path) -> dict[str, bytes]:
    return {n: t.numpy().tobytes() for n, t in load_file(run / "best.safetensors").items()}


def test_the_lowest_validation_loss_is_kept(tuned: Path) -> None:
    rows = read_metrics(tuned)
    result = json.loads((tuned / "result.json").read_text())
    assert len(rows) == 6  # two learning rates of three epochs
    best = min(rows, key=lambda row: row["val_loss"])
    assert result["val_loss"] == best["val_loss"]
    assert result["learning_rate"] == best["lr"]
    assert result["epoch"] == best["epoch"]


def _validation_loss(run: Path, store: Path) -> float:
    """Of the weights that a run kept, over all validation records at once."""
    model, _, _ = load_model(run)
    records = open_store(store)
    splits = np.array(records.records.column("split").to_pylist())
    fraction = np.array(records.records.column("ejection_fraction").to_pylist(), dtype=float)
    rows = np.flatnonzero((splits == "valid") & ~np.isnan(fraction))
    loader = build_loader(records, batch_size=len(rows), select=rows, shuffle=False)
    is_case = torch.from_numpy(fraction[rows] < 40).double()
    with torch.no_grad():
        logits = model(next(iter(loader)).patches).double()
    return binary_cross_entropy_with_logits(logits, is_case).item()


def test_saved_weights_give_the_loss_that_was_written(tuned: Path, store: Path) -> None:
    written = json.loads((tuned / "result.json").read_text())["val_loss"]
    # batches of another size, in fp32
    assert _validation_loss(tuned, store) == pytest.approx(written, abs=1e-6)


def test_unknown_targets_are_dropped_and_counted(tuned: Path, store: Path) -> None:
    counts = json.loads((tuned / "result.json").read_text())["counts"]
    table = open_store(store).records
    assert counts["unknown"] == table.column("ejection_fraction").null_count > 0
    fraction = np.array(table.column("ejection_fraction").to_pylist(), dtype=float)
    train = np.array(table.column("split").to_pylist()) == "train"
    assert counts["train_cases"] == int((train & (fraction < 40)).sum())
    assert counts["train_controls"] == int((train & (fraction >= 40)).sum())


def test_every_trial_starts_from_the_pretrained_encoder(
    pretrained: Path, store: Path, config: Config, tmp_path: Path
) -> None:
    """A run and its exported file are the same weights; random ones give another trace."""
    losses = {}
    for name, init in {
        "run": str(pretrained),
        "file": str(pretrained / "model.safetensors"),
        "random": "random",
    }.items():
        out = tmp_path / name
        finetune(config, store, out, init=init, model="vit", target=TARGET, device="cpu")
        losses[name] = [row["loss"] for row in read_metrics(out)]
    assert losses["run"] == losses["file"]
    assert losses["run"] != losses["random"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_resumed_fine_tuning_ends_in_the_same_bits(
    number: signal.Signals, store: Path, tiny: Path, tmp_path: Path
) -> None:
    def command(run: Path) -> list[str]:
        return [
            *("finetune", str(store), "--out", str(run), "--preset", str(tiny)),
            *("--init", "random", "--target", TARGET, "--device", "cpu", "--resume"),
        ]

    finish(start(command(tmp_path / "unbroken")))
    for step in (4, 16):
        process = start(command(tmp_path / "broken"))
        wait_for_step(tmp_path / "broken", step, process)
        kill(process, number)
    finish(start(command(tmp_path / "broken")))
    assert read_metrics(tmp_path / "broken") == read_metrics(tmp_path / "unbroken")
    assert _best(tmp_path / "broken") == _best(tmp_path / "unbroken")


def test_weights_lost_between_checkpoint_and_export_come_back(
    store: Path, tiny: Path, tmp_path: Path
) -> None:
    """A power cut after the checkpoint of the best epoch: its weights are in there."""
    one_epoch = ("finetune.epochs=1", "finetune.learning_rates=[1e-3]")
    run, config = tmp_path / "run", load_config(str(tiny), one_epoch)

    def tune(*, resume: bool) -> dict[str, bytes]:
        finetune(
            config, store, run, init="random", model="vit", target=TARGET, resume=resume,
            device="cpu",
        )  # fmt: skip
        return _best(run)

    whole = tune(resume=False)
    (run / "result.json").unlink()
    older = {n: torch.zeros(1) for n in whole}
    save_file(older, run / "best.safetensors")
    assert tune(resume=True) == whole


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vit", "cnn"])
def test_two_ranks_score_every_validation_record(
    model: str, pretrained: Path, store: Path, tiny: Path, tmp_path: Path
) -> None:
    """The ViT starts from a file with the reference's names, which both ranks read."""
    init = str(pretrained / "model.safetensors") if model == "vit" else "random"

    def command(run: Path) -> list[str]:
        return [
            *("finetune", str(store), "--out", str(run), "--preset", str(tiny)),
            *("--init", init, "--model", model, "--target", TARGET, "--device", "cpu"),
            *("--set", "finetune.learning_rates=[1e-3]", "--set", "finetune.epochs=1"),
        ]

    finish(start(command(tmp_path / "two"), ranks=2))
    two = read_metrics(tmp_path / "two")
    # one process scores the kept weights, all records at once
    assert abs(two[0]["val_loss"] - _validation_loss(tmp_path / "two", store)) < RANKS_LOSS
    if model == "cnn":  # batch normalisation sees another batch, so that one rank trains otherwise
        return
    finish(start(command(tmp_path / "one")))
    one = read_metrics(tmp_path / "one")
    assert abs(one[0]["loss"] - two[0]["loss"]) < RANKS_LOSS
    assert abs(one[0]["val_loss"] - two[0]["val_loss"]) < RANKS_LOSS


def test_weights_of_another_width_are_refused(
    pretrained: Path, store: Path, tiny: Path, tmp_path: Path
) -> None:
    other = load_config(str(tiny), ["model.encoder_width=32"])
    with pytest.raises(FormatError, match=r"cls_token is \(1, 1, 16\), the model has \(1, 1, 32\)"):
        finetune(
            other, store, tmp_path, init=str(pretrained), model="vit", target=TARGET, device="cpu"
        )


def test_a_file_without_a_tensor_is_refused(
    pretrained: Path, store: Path, config: Config, tmp_path: Path
) -> None:
    state = load_file(pretrained / "model.safetensors")
    del state["blocks.1.mlp.fc2.bias"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(FormatError, match=r"no blocks\.1\.mlp\.fc2\.bias"):
        finetune(
            config,
            store,
            tmp_path / "run",
            init=str(tmp_path / "cut.safetensors"),
            model="vit",
            target=TARGET,
            device="cpu",
        )


def test_weights_of_another_normalisation_are_refused(
    pretrained: Path, store: Path, tiny: Path, tmp_path: Path
) -> None:
    other = load_config(str(tiny), ["data.normalise=record"])
    with pytest.raises(ConfigError, match=r"'normalise' is 'record' here, .* with 'record_lead'"):
        finetune(
            other, store, tmp_path, init=str(pretrained), model="vit", target=TARGET, device="cpu"
        )


def test_a_target_without_cases_is_refused(store: Path, config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split 'train' must hold cases and controls"):
        finetune(
            config,
            store,
            tmp_path,
            init="random",
            model="vit",
            target="ejection_fraction<1",
            device="cpu",
        )


def test_a_convolutional_baseline_starts_at_random(
    pretrained: Path, store: Path, config: Config, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="must be 'random'"):
        finetune(
            config, store, tmp_path, init=str(pretrained), model="cnn", target=TARGET, device="cpu"
        )


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
            config,
            moved,
            shutil.copytree(tuned, tmp_path / "run"),
            init=str(pretrained),
            model="vit",
            target=TARGET,
            resume=True,
            device="cpu",
        )
    tested = _relabel(store, tmp_path / "tested", {"r008": ("30", "test"), "r009": ("", "test")})
    assert evaluate([tuned], tested, tmp_path / "report").is_file()


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
    assert meta["thresholds"]["youden"] == best
    found = score >= meta["thresholds"]["sensitivity_90"]
    assert found[truth].mean() >= 0.9
    higher = score > meta["thresholds"]["sensitivity_90"]
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
    run = pretrain(config, store, tmp_path / "run", include_test=True, device="cpu")
    register = read_register(run)
    assert register is not None
    assert len(register.select("pretrain")) == len(open_store(store))
    tuned = finetune(
        config, store, tmp_path / "tuned", init=str(run), model="vit", target=TARGET, device="cpu"
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
    rows, words = to_reconstruct(load_run(run, opened), opened)
    assert (len(rows), words) == (len(opened), "all of which pretraining read")


def test_only_unread_records_are_called_unread(pretrained: Path, store: Path) -> None:
    opened = open_store(store)
    rows, words = to_reconstruct(load_run(pretrained, opened), opened)
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
            pretrain(by_cohort, store, tmp_path / "pretrained", device="cpu"),
            splits == "train",
        ),
        "tuned": (
            finetune(
                load_config(str(tiny), ["finetune.epochs=1", "data.normalise=cohort_lead"]),
                store, tmp_path / "tuned", init="random", model="vit", target=TARGET, device="cpu",
            ),
            (splits == "train") & ~np.isnan(fraction),
        ),
    }  # fmt: skip
    for run, rows in runs.values():
        kept = load_model(run)[2]["preprocessing"]["cohort"]
        np.testing.assert_allclose(
            kept["mean_uv"], signal_uv[rows].mean((0, 2)), rtol=1e-4, atol=1e-3
        )
        np.testing.assert_allclose(kept["std_uv"], signal_uv[rows].std((0, 2)), rtol=1e-4)


def test_a_fold_is_held_out(store: Path, config: Config, tmp_path: Path) -> None:
    folded = _relabel(store, tmp_path / "folded", {})
    draw_again(folded)
    run = finetune(
        config, folded, tmp_path / "run", init="random", model="vit", target=TARGET, fold=2,
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
    pretrain(config, store, run, select="ejection_fraction<40", device="cpu")
    other = _relabel(store, tmp_path / "other", {"r000": ("60", "train")})
    with pytest.raises(ResumeError, match=r"another run: records \(now '"):
        pretrain(config, other, run, select="ejection_fraction<40", device="cpu", resume=True)
