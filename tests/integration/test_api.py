"""The public Python functions: as the commands do it, and nothing of the process changes."""

import csv
import json
import logging
import os
import random
import runpy
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

import ecgfast
from ecgfast.cli import main
from ecgfast.config import load_config
from ecgfast.demo_plan import DemoPlan, trainings
from ecgfast.log import read_metrics
from ecgfast.model.vit import unpatchify

ROOT = Path(__file__).parents[2]
TARGET = "ejection_fraction<40"
# Set by PyTorch's compiler and by scikit-learn when they are imported.
FOREIGN = {"TORCHINDUCTOR_CACHE_DIR", "KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK"}
SHORT: dict[str, object] = {"finetune.epochs": 1, "finetune.learning_rates": [1e-3]}


def process_state() -> dict[str, Any]:
    """What a function of a library must leave as it was."""
    root = logging.getLogger()
    return {
        "signals": {
            n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        },
        "root": (root.level, root.handlers[:], root.disabled),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "dtype": torch.get_default_dtype(),
        "random": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        "environment": {name: os.environ[name] for name in os.environ if name not in FOREIGN},
        "folder": Path.cwd(),
        "alive": threading.active_count(),
    }


def test_a_study_by_functions_equals_the_commands_and_leaves_the_process_alone(
    store: Path, tiny: Path, tmp_path: Path
) -> None:
    before = process_state()
    run = ecgfast.pretrain(
        str(store), str(tmp_path / "run"), preset=tiny, device="cpu",
        settings={"train.max_steps": 2, "train.deterministic": True},
    )  # fmt: skip
    tuned = ecgfast.finetune(store, tmp_path / "tuned", init=run, settings=SHORT, device="cpu")
    report = ecgfast.evaluate([str(tuned), run], str(store), str(tmp_path / "report"), device="cpu")
    features = ecgfast.embed(run, store, device="cpu")
    found = ecgfast.predict(str(tuned), [str(store.with_name("source"))])
    ecgfast.plot_ecg(store, 3).savefig(tmp_path / "ecg.png")
    after = process_state()
    assert {name: after[name] for name in before if after[name] != before[name]} == {}

    words = [
        ["pretrain", str(store), "--out", "run", "--preset", str(tiny), "--device", "cpu",
         "--set", "train.max_steps=2", "--set", "train.deterministic=true"],
        ["finetune", str(store), "--out", "tuned", "--init", "run", "--device", "cpu",
         "--set", "finetune.epochs=1", "--set", "finetune.learning_rates=[1e-3]"],
        ["evaluate", "tuned", "run", str(store), "--out", "report", "--device", "cpu"],
        ["embed", "run", str(store), "--out", "features.npy", "--device", "cpu"],
        ["predict", "tuned", str(store.with_name("source")), "--out", "found.csv"],
    ]  # fmt: skip
    (tmp_path / "cli").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "cli")
        logger = logging.getLogger("ecgfast")
        kept = logger.handlers[:], logger.propagate, logger.level
        try:
            assert [main(each) for each in words] == [0] * len(words)
        finally:
            logger.handlers[:], logger.propagate = kept[:2]
            logger.setLevel(kept[2])
    cli = tmp_path / "cli"
    for name in ("run/model.safetensors", "tuned/best.safetensors", "report/metrics.json"):
        assert (cli / name).read_bytes() == (tmp_path / name).read_bytes(), name
    scores = [pq.read_table(folder / "report/scores.parquet") for folder in (tmp_path, cli)]
    assert scores[0].equals(scores[1])
    np.testing.assert_array_equal(np.load(cli / "features.npy"), features.values)
    lines = (cli / "found.csv").read_text().splitlines()[1:]
    assert [line.split(",")[3] for line in lines] == [f"{p.probability:.6f}" for p in found]
    assert json.loads((report.parent / "metrics.json").read_text())["synthetic"] is False
    assert (tmp_path / "ecg.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As a notebook has it: a shell's background jobs ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_of_a_notebook_saves_and_is_a_keyboard_interrupt(
    store: Path, tiny: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def interrupt() -> None:
        while not read_metrics(run):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    handler, thread = signal.getsignal(signal.SIGINT), threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        ecgfast.pretrain(store, run, preset=tiny, settings={"train.max_steps": 1000}, device="cpu")
    thread.join()
    assert signal.getsignal(signal.SIGINT) is handler
    assert list((run / "checkpoints").glob("step-*"))


def test_batches_have_labels(store: Path) -> None:
    loader = ecgfast.build_loader(str(store), batch_size=4, labels=TARGET, drop_last=False)
    fraction = ecgfast.open_store(store).records["ejection_fraction"].to_pylist()
    seen = []
    for batch in loader:
        rows = batch.record_index.tolist()
        assert batch.labels.tolist() == [float(fraction[row] < 40) for row in rows]
        assert batch.labels.dtype == torch.float32
        seen += rows
    assert sorted(seen) == [row for row, value in enumerate(fraction) if value is not None]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_loop_of_ones_own_on_a_data_set(store: Path, workers: int) -> None:
    torch.manual_seed(0)
    dataset = ecgfast.EcgDataset(str(store), select="split=train", labels=TARGET)
    model = torch.nn.Conv1d(12, 1, 500, stride=500)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model.weight.detach().clone()
    rows: list[int] = []
    for batch in DataLoader(dataset, batch_size=4, shuffle=True, num_workers=workers):
        logits = model(batch["signal"]).mean(dim=(1, 2))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["label"].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows += batch["row"].tolist()
    assert sorted(rows) == dataset.rows.tolist()
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_each_record_once_in_a_new_order_each_epoch(
    store: Path, workers: int
) -> None:
    dataset = ecgfast.EcgDataset(store)
    orders = []
    for epoch in range(2):
        rows = []
        for rank in range(2):
            stream = ecgfast.EcgStream(dataset, rank=rank, world_size=2)
            stream.set_epoch(epoch)
            rows += [row for item in DataLoader(stream, num_workers=workers) for row in item["row"]]
        orders.append([int(row) for row in rows])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(dataset)))
    assert orders[0] != orders[1]


@pytest.mark.parametrize("normalise", ["record_lead", "none"])
def test_items_are_what_the_loader_gives(store: Path, normalise: str) -> None:
    dataset = ecgfast.EcgDataset(store, normalise=normalise)
    (batch,) = ecgfast.build_loader(store, batch_size=len(dataset), normalise=normalise)
    signals = torch.stack([item["signal"] for item in dataset.of_rows(batch.record_index.numpy())])
    rounded = unpatchify(batch.patches, num_leads=12).float()
    torch.testing.assert_close(signals, rounded, rtol=2**-11, atol=1e-5)  # of fp16


def test_signals_open_in_xarray_and_dask(store: Path) -> None:
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    pytest.importorskip("dask.array", reason="Dask is not installed")
    reader = ecgfast.open_store(store)
    opened = xarray.open_zarr(store / "signals.zarr", consolidated=False)
    assert opened["signal"].dims == ("record", "lead", "timestep")
    rows = reader.records["row"].to_numpy() if "row" in reader.records.column_names else slice(3)
    np.testing.assert_array_equal(opened["signal"][rows][:3].values, reader.read([0, 1, 2]))


STUDY = ROOT / "examples/python/study.py"


def test_the_example_study_has_the_plan_of_the_demo() -> None:
    study, plan = runpy.run_path(str(STUDY)), DemoPlan()
    assert load_config("demo", study["PRETRAINING"]) == load_config(
        "demo", [*plan.vit, *plan.pretraining]
    )
    assert study["EPOCHS"] == dict(plan.labels)
    ours = {each.name: each for each in study["trainings"](800, study["EPOCHS"], plan.num_seeds)}
    theirs = {each.name: each for each in trainings(plan, 800)}
    assert set(ours) == set(theirs)
    for name, each in theirs.items():
        made = load_config(ours[name].preset, ours[name].settings, recipe="best_practice")
        assert made == load_config(each.line.preset, each.settings, recipe="best_practice")
        assert ours[name].is_pretrained == (each.line.init == "pretrained")


@pytest.mark.slow  # nine trainings
def test_the_example_study(tmp_path: Path) -> None:
    study = runpy.run_path(str(STUDY))["synthetic_study"]
    report = study(
        tmp_path, num_records=360, epochs={20: 2, 40: 1}, seeds=1, workers=1,
        settings={"train.epochs": 1, "train.log_every": 1},
    )  # fmt: skip
    assert "SYNTHETIC" in report.read_text()
    assert set(json.loads((report.parent / "metrics.json").read_text())["masked_mse"])
    with (tmp_path / "curve/label_efficiency.csv").open() as file:
        points = [*csv.DictReader(file)]
    external = [each["model"] for each in points if each["cohort"] == "external test, site 5"]
    assert sorted(external) == sorted(2 * [*set(external)])  # two numbers of labels
    assert len(set(external)) == 3


@pytest.mark.slow  # four trainings
def test_the_example_study_of_two_labels_on_real_records(tmp_path: Path) -> None:
    data = ROOT.parent / "shared/data/ptbxl500"
    if not data.exists():
        pytest.skip(f"real recordings are not at {data}")
    study = runpy.run_path(str(STUDY))["own_study"]
    report = study(
        tmp_path, data / "records500", data / "labels.csv", ("MI=1", "NORM=1"),
        columns=("MI", "NORM"), workers=1,
        settings={"train.max_steps": 2, "finetune.epochs": 1, "finetune.probe_epochs": 0},
    )  # fmt: skip
    metrics = json.loads((report.parent / "metrics.json").read_text())
    assert metrics["synthetic"] is False
    assert list(metrics["targets"]) == ["MI=1", "NORM=1"]
    (means,) = metrics["mean"].values()
    assert set(means) == {"ViT, pretrained", "ViT, random init", "resnet1d_wang"}
    assert all(0 <= each["auroc"]["value"] <= 1 for each in means.values())
