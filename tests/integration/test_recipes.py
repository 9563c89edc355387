"""Every setting of a fine-tuning does something, and a run with all of them resumes exactly."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ecgfast_kernels.codec.philox import epoch_order
from safetensors.torch import load_file
from tolerances import RANKS_LOSS
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from training_runs import finish, loss_trace, start

from ecgfast.config import load_config
from ecgfast.data.batch import Batch
from ecgfast.data.loader import build_loader
from ecgfast.errors import ConfigError
from ecgfast.labels.selection import labelled
from ecgfast.log import read_metrics
from ecgfast.model.build import build_classifier
from ecgfast.runs.checkpoint_reader import newest
from ecgfast.runs.digests import sealed
from ecgfast.runs.loading import load_model
from ecgfast.store.reader import open_store
from ecgfast.train import sweep
from ecgfast.train.finetune import finetune
from ecgfast.train.pretrain import pretrain
from ecgfast.vocabulary import ModelKind

TARGET = "ejection_fraction<40"
SHORT = ("finetune.learning_rates=[1e-3]", "finetune.epochs=2")
EVERYTHING = (
    *("finetune.learning_rates=[1e-2, 1e-3]", "finetune.epochs=2", "finetune.probe_epochs=2"),
    *("finetune.drop_path=0.3", "finetune.layer_decay=0.7", "finetune.weight_decay=0.1"),
    *("finetune.schedule=cosine", "finetune.warmup_epochs=0.5", "finetune.head_init=prior"),
    *("model.pool=lead_mean_max", "model.dense_norm=true", "model.dense_dropout=0.3"),
    *("augment.shift_timesteps=50", "augment.lead_dropout=0.2", "augment.noise=0.1"),
)


@pytest.fixture
def tune(store: Path, tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    def tune(
        *settings: str, name: str = "run", model: ModelKind = "vit", init: str = "random",
        resume: bool = False,
    ) -> Path:  # fmt: skip
        return finetune(
            store, tmp_path / name, preset=tiny, model=model, settings=settings,
            init=init, target=TARGET, resume=resume, device="cpu",
        )  # fmt: skip

    return tune


def best(run: Path) -> dict[str, Tensor]:
    return load_file(run / "best.safetensors")


def metrics(run: Path) -> list[dict[str, Any]]:
    return list(read_metrics(run))


def test_the_defaults_are_plain_adam_at_a_constant_rate(
    store: Path, tiny: Path, tune: Callable[..., Path]
) -> None:
    """The oracle is PyTorch's Adam in fp64, with batches cut by hand."""
    config = load_config(str(tiny), SHORT)
    opened = open_store(store)
    records = labelled(opened.records, np.arange(len(opened)), TARGET, None)
    everything = next(iter(build_loader(opened, batch_size=len(opened), shuffle=False)))
    patches, is_case = everything.patches.double(), torch.from_numpy(records.is_case).double()
    model = build_classifier(config).double()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    expected = []
    for epoch in range(2):
        order = records.train[epoch_order(len(records.train), seed=0, epoch=epoch)]
        losses = []
        for first in range(0, len(order) - 7, 8):
            rows = order[first : first + 8]
            loss = binary_cross_entropy_with_logits(model(patches[rows]), is_case[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        with torch.no_grad():
            logits = model(patches[records.valid])
        scored = binary_cross_entropy_with_logits(logits, is_case[records.valid]).item()
        expected.append((np.mean(losses), scored))
    found = [(row["loss"], row["val_loss"]) for row in metrics(tune(*SHORT))]
    # fp32, and moments that begin at a gradient near 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def plain(store: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    def run(model: ModelKind) -> Path:
        return finetune(
            store, tmp_path_factory.mktemp("plain") / model, init="random", target=TARGET,
            preset=tiny, model=model, settings=SHORT, device="cpu",
        )  # fmt: skip

    return {"vit": run("vit"), "cnn": run("cnn")}


@pytest.mark.parametrize(
    ("setting", "model"),
    [
        ("finetune.schedule=cosine", "vit"),
        ("finetune.warmup_epochs=1.5", "vit"),
        ("finetune.layer_decay=0.5", "vit"),
        ("finetune.weight_decay=5.0", "vit"),
        ("finetune.drop_path=0.3", "vit"),
        ("finetune.head_init=prior", "vit"),
        ("finetune.frozen=true", "vit"),
        ("finetune.probe_epochs=1", "vit"),
        ("model.pool=lead_mean_max", "vit"),
        ("model.pool=mean", "vit"),
        ("augment.shift_timesteps=50", "vit"),
        ("augment.lead_dropout=0.2", "vit"),
        ("augment.noise=0.1", "vit"),
        ("model.dense_norm=true", "cnn"),
        ("model.dense_dropout=0.3", "cnn"),
    ],
)
def test_a_setting_changes_what_is_learned(
    setting: str, model: ModelKind, plain: dict[str, Path], tune: Callable[..., Path]
) -> None:
    before, now = metrics(plain[model]), metrics(tune(*SHORT, setting, model=model))
    assert before[0]["val_loss"] != now[0]["val_loss"]


def test_a_probe_moves_the_head_alone(pretrained: Path, tune: Callable[..., Path]) -> None:
    first = {f"encoder.{n}": t for n, t in load_file(pretrained / "model.safetensors").items()}
    run = tune(*SHORT, "finetune.frozen=true", init=str(pretrained))
    last = best(run)
    assert all(torch.equal(t, first[n]) for n, t in last.items() if n.startswith("encoder."))
    assert last["head.1.weight"].abs().sum() > 0
    assert not torch.equal(
        last["head.1.weight"], best(tune(*SHORT, init=str(pretrained), name="all"))["head.1.weight"]
    )


def test_all_weights_learn_after_the_probe_from_where_it_ended(
    pretrained: Path, tune: Callable[..., Path]
) -> None:
    probe = ("finetune.probe_epochs=2", "finetune.probe_lr=1e-2")
    alone = ("finetune.frozen=true", "finetune.learning_rates=[1e-2]", "finetune.epochs=2")
    both = metrics(tune(*SHORT, *probe, init=str(pretrained)))
    head_alone = metrics(tune(*alone, init=str(pretrained), name="alone"))
    assert [row["lr"] for row in both] == [1e-2, 1e-2, 1e-3, 1e-3]
    assert both[:2] == head_alone
    assert both[2]["val_loss"] != both[1]["val_loss"]


def test_each_trial_falls_as_half_a_cosine_of_its_own(tune: Callable[..., Path]) -> None:
    """The rate that is written is that of the epoch's last step."""
    rows = metrics(
        tune("finetune.learning_rates=[1e-3, 1e-4]", SHORT[1], "finetune.schedule=cosine")
    )
    steps = rows[0]["step"]
    shares = [0.5 + 0.5 * np.cos(np.pi * (step - 1) / (2 * steps)) for step in (steps, 2 * steps)]
    expected = [rate * share for rate in (1e-3, 1e-4) for share in shares]
    assert [row["lr"] for row in rows] == pytest.approx(expected)
    assert [(row["trial"], row["step"]) for row in rows] == [
        (0, steps), (0, 2 * steps), (1, 3 * steps), (1, 4 * steps),
    ]  # fmt: skip


@pytest.mark.parametrize("patience", [1, 2])
def test_a_trial_that_gets_no_better_ends_and_the_next_begins(
    patience: int, tune: Callable[..., Path]
) -> None:
    """Rates too small to change a number: the first epoch is the best of each trial."""
    settings = ("finetune.learning_rates=[1e-30, 1e-29]", "finetune.epochs=5")
    run = tune(*settings, f"finetune.patience={patience}")
    epochs = [(row["trial"], row["epoch"]) for row in metrics(run)]
    assert epochs == [(trial, 1 + epoch) for trial in (0, 1) for epoch in range(1 + patience)]
    result = json.loads((run / "result.json").read_text())
    assert (result["learning_rate"], result["epoch"]) == (1e-30, 1)


def test_the_head_begins_at_the_training_prevalence(store: Path, tune: Callable[..., Path]) -> None:
    run = tune("finetune.learning_rates=[1e-9]", "finetune.epochs=1", "finetune.head_init=prior")
    counts = json.loads((run / "result.json").read_text())["counts"]
    share = counts["train_cases"] / (counts["train_cases"] + counts["train_controls"])
    cases, controls = counts["valid_cases"], counts["valid_controls"]
    expected = -(cases * np.log(share) + controls * np.log(1 - share)) / (cases + controls)
    assert metrics(run)[0]["val_loss"] == pytest.approx(expected, abs=1e-5)


def test_drop_path_and_fused_blocks_are_refused_together(tune: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"drop_path must be 0 with fused=separate, got 0\.1"):
        tune("fused=separate", "finetune.drop_path=0.1")


@pytest.mark.parametrize(
    ("model", "settings"), [("cnn", ["model.dense_norm=true"]), ("resnet1d_wang", [])]
)
def test_batch_norm_of_features_needs_two_records(
    model: ModelKind, settings: list[str], tune: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=r"train\.microbatch must be at least 2 .* got 1; "):
        tune("train.microbatch=1", *settings, model=model)


class CrashError(Exception):
    """A power cut."""


@pytest.fixture
def crash_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Let training end at the loss after so many."""
    whole = sweep.classification_loss

    def crash_after(num_losses: int) -> None:
        left = num_losses

        def failing(*arguments: Any) -> Callable[[Batch], Tensor]:
            loss_of = whole(*arguments)

            def with_fault(batch: Batch) -> Tensor:
                nonlocal left
                if left == 0:
                    raise CrashError
                left -= 1
                return loss_of(batch)

            return with_fault

        monkeypatch.setattr(sweep, "classification_loss", failing)

    yield crash_after
    monkeypatch.undo()


@pytest.mark.parametrize(
    "model", ["vit", *(pytest.param(m, marks=pytest.mark.slow) for m in ("cnn", "resnet1d_wang"))]
)
def test_a_run_with_every_setting_resumes_in_the_same_bits(
    model: ModelKind, pretrained: Path, tune: Callable[..., Path],
    crash_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Crashes in the probe, at its end, after it, and in the second trial."""
    init = str(pretrained) if model == "vit" else "random"
    whole = tune(*EVERYTHING, model=model, init=init, name="whole")
    steps = [row["step"] for row in metrics(whole)]
    assert len(steps) == 8
    per_epoch = steps[0] * 4  # microbatches of a step
    for losses in (per_epoch + 1, per_epoch, per_epoch + 1, 2 * per_epoch + 1):
        crash_after(losses)  # in epochs 2, 3, 4 and 6 of 8
        with pytest.raises(CrashError):
            tune(*EVERYTHING, model=model, init=init, resume=True)
        monkeypatch.undo()
    resumed = tune(*EVERYTHING, model=model, init=init, resume=True)
    assert metrics(resumed) == metrics(whole)
    ours, theirs = best(resumed), best(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_of_an_earlier_version_resumes(store: Path, tiny: Path, tmp_path: Path) -> None:
    """Its checkpoint knows none of the settings that came later."""
    run, steps = tmp_path / "run", ["train.max_steps=7"]
    pretrain(store, run, preset=load_config(str(tiny), steps), device="cpu")
    checkpoint = newest(run)
    assert checkpoint is not None
    path = checkpoint.path / "meta.json"
    facts = json.loads(path.read_text())
    facts.pop("digest")
    later = ("augment.", "mask.norm", "model.dense", "recipe")
    later += ("finetune.layer", "finetune.drop", "finetune.head", "finetune.probe", "finetune.froz")
    known = {n: v for n, v in facts["identity"].items() if not n.startswith(later)}
    assert len(known) < len(facts["identity"]) - 8
    path.write_bytes(sealed({**facts, "identity": known}))
    config = load_config(str(tiny), ["train.max_steps=14"])
    resumed = pretrain(store, run, preset=config, resume=True, device="cpu")
    whole = pretrain(store, tmp_path / "whole", preset=config, device="cpu")
    assert loss_trace(resumed) == loss_trace(whole)
    assert load_model(resumed)[1].augment == config.augment


def test_patches_may_be_predicted_as_they_are(store: Path, tiny: Path, tmp_path: Path) -> None:
    traces = []
    for value in ("true", "false"):
        settings = ["train.max_steps=2", f"mask.norm_patch_loss={value}"]
        run = pretrain(
            store, tmp_path / value, preset=load_config(str(tiny), settings), device="cpu"
        )
        assert load_model(run)[0].norm_patch_loss is (value == "true")
        traces.append(loss_trace(run))
    assert traces[0][1] != traces[1][1]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["fsdp", "replicas"])
def test_two_ranks_learn_what_one_learns(
    parallel: str, store: Path, tiny: Path, tune: Callable[..., Path], tmp_path: Path
) -> None:
    """What is drawn depends on the record, not on the rank; frozen encoders are sharded too."""
    settings = (*EVERYTHING, "finetune.learning_rates=[1e-3]", f"train.parallel={parallel}")
    out = tmp_path / "two"
    command = [
        *("finetune", str(store), "--out", str(out), "--preset", str(tiny), "--device", "cpu"),
        *("--init", "random", "--target", TARGET),
        *(word for setting in settings for word in ("--set", setting)),
    ]
    finish(start(command, ranks=2))
    two, one = metrics(out), metrics(tune(*settings, name="one"))
    assert len(two) == len(one) == 4
    for ours, theirs in zip(two, one, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=RANKS_LOSS)
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], abs=RANKS_LOSS)
