"""Fine-tuning: the sweep keeps the lowest loss, resumes exactly, and refuses what does not fit."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from report_pages import html_of
from safetensors.torch import load_file, save_file
from tolerances import RANKS_LOSS
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from training_runs import finish, kill, start, wait_for_step

from ecgfast.config import Config, load_config
from ecgfast.data.batch import Batch
from ecgfast.data.loader import build_loader
from ecgfast.errors import ConfigError, FormatError
from ecgfast.evaluate.views import training
from ecgfast.log import read_metrics
from ecgfast.runs.loading import load_model, load_run
from ecgfast.store.reader import open_store
from ecgfast.train import sweep
from ecgfast.train.finetune import finetune

TARGET = "ejection_fraction<40"


def _best(run: Path) -> dict[str, bytes]:
    return {n: t.numpy().tobytes() for n, t in load_file(run / "best.safetensors").items()}


def test_the_report_draws_the_losses_of_a_run(tuned: Path, store: Path) -> None:
    (run,) = training([load_run(tuned, open_store(store))])
    assert "data:image/" in html_of(training=[run])


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


def test_the_model_card_is_of_this_model(tuned: Path, store: Path) -> None:
    card = (tuned / "MODEL_CARD.md").read_text()
    result = json.loads((tuned / "result.json").read_text())
    size = sum(each.numel() for each in load_model(tuned)[0].parameters())
    assert f"{size:,} parameters" in card
    assert f"{result['counts']['train_cases']} cases and" in card
    assert (
        f"Learning rate {result['learning_rate']}, the weights of epoch {result['epoch']}" in card
    )
    assert open_store(store).identity in card
    assert str(tuned.parent) not in card


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
        finetune(store, out, preset=config, init=init, target=TARGET, device="cpu")
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
            store, run, preset=config, init="random", target=TARGET, resume=resume,
            device="cpu",
        )  # fmt: skip
        return _best(run)

    whole = tune(resume=False)
    (run / "result.json").unlink()
    older = {n: torch.zeros(1) for n in whole}
    save_file(older, run / "best.safetensors")
    assert tune(resume=True) == whole


def test_weights_that_were_lost_are_not_those_that_are_validated(
    store: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second epoch gets better, then ends in ten losses that are not finite: a rollback."""
    options = ("finetune.epochs=2", "finetune.learning_rates=[1e-3]", "finetune.batch_size=2")
    plain, num_calls = sweep.classification_loss, 0

    def failing(*arguments: Any) -> Callable[[Batch], Tensor]:
        loss_of = plain(*arguments)

        def with_fault(batch: Batch) -> Tensor:
            nonlocal num_calls
            num_calls += 1
            return loss_of(batch) * (torch.nan if num_calls > 2 * num_steps - 10 else 1.0)

        return with_fault

    once = _finetuned(store, tiny, tmp_path / "once", options)
    num_steps = int(read_metrics(once)[0]["step"])
    assert num_steps > 10
    monkeypatch.setattr(sweep, "classification_loss", failing)
    run = _finetuned(store, tiny, tmp_path / "run", options)
    result = json.loads((run / "result.json").read_text())
    assert num_calls == 2 * num_steps
    assert _validation_loss(run, store) == pytest.approx(result["val_loss"], abs=1e-6)
    first, second = read_metrics(run)
    assert second["val_loss"] == pytest.approx(first["val_loss"], abs=1e-9)  # its weights again
    assert result["epoch"] == 1


def _finetuned(store: Path, tiny: Path, run: Path, options: tuple[str, ...]) -> Path:
    config = load_config(str(tiny), options)
    return finetune(store, run, preset=config, init="random", target=TARGET, device="cpu")


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
        finetune(store, tmp_path, preset=other, init=str(pretrained), target=TARGET, device="cpu")


def test_a_file_without_a_tensor_is_refused(
    pretrained: Path, store: Path, config: Config, tmp_path: Path
) -> None:
    state = load_file(pretrained / "model.safetensors")
    del state["blocks.1.mlp.fc2.bias"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(FormatError, match=r"no blocks\.1\.mlp\.fc2\.bias"):
        finetune(
            store,
            tmp_path / "run",
            preset=config,
            init=str(tmp_path / "cut.safetensors"),
            target=TARGET,
            device="cpu",
        )


def test_weights_of_another_normalisation_are_refused(
    pretrained: Path, store: Path, tiny: Path, tmp_path: Path
) -> None:
    other = load_config(str(tiny), ["data.normalise=record"])
    with pytest.raises(ConfigError, match=r"'normalise' is 'record' here, .* with 'record_lead'"):
        finetune(store, tmp_path, preset=other, init=str(pretrained), target=TARGET, device="cpu")


def test_a_target_without_cases_is_refused(store: Path, config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split 'train' must hold cases and controls"):
        finetune(
            store,
            tmp_path,
            preset=config,
            init="random",
            target="ejection_fraction<1",
            device="cpu",
        )


def test_a_convolutional_baseline_starts_at_random(
    pretrained: Path, store: Path, config: Config, tmp_path: Path
) -> None:
    cnn = replace(config, model=replace(config.model, kind="cnn"))
    with pytest.raises(ConfigError, match="must be 'random'"):
        finetune(store, tmp_path, preset=cnn, init=str(pretrained), target=TARGET, device="cpu")
