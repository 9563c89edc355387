"""Plans of a pretraining: what fits, what ends in time, and what a run without a preset gets."""

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import recordings

from ecgfast.bench import Row, device_name, make_rows
from ecgfast.cli import main
from ecgfast.config import load_config
from ecgfast.errors import ConfigError
from ecgfast.estimate import memory_gib
from ecgfast.labels.commands import draw_again
from ecgfast.planning import Machine, _fitted, plan
from ecgfast.store.reader import open_store
from ecgfast.train.finetune import settings_of

NUM = 40
H100 = Machine(gpu="NVIDIA H100 80GB HBM3", gpus=1, memory_gib=79.6)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    recordings.write_cohort(folder / "in", NUM)
    recordings.convert_quietly([folder / "in"], folder / "store", one_ecg_per_patient=True)
    return folder / "store"


@pytest.fixture(scope="module")
def learned(store: Path) -> int:
    """Records that a pretraining reads: all but those of test patients."""
    return sum(split != "test" for split in open_store(store).records["split"].to_pylist())


def measured(preset: str, rate: float, device: str) -> Row:
    numbers = {("throughput", "records/s"): [rate]}
    (row,) = make_rows(numbers, case="step", provider="ecgfast", preset=preset)
    return replace(row, device=device, date="2026-01-02")


def test_the_largest_preset_that_ends_in_time_is_taken(store: Path, learned: int) -> None:
    assert 32 <= learned < NUM  # 16 updates of 2 records
    rows = [measured(name, rate, H100.gpu or "") for name, rate in RATES.items()]
    planned = plan([store], H100, rows=rows)
    hours = 1600 * (learned // 2 * 2) / 100 / 3600
    assert planned.config.preset == "vit_large"
    assert planned.config.train.batch_size == planned.config.train.microbatch == 2
    assert planned.config.data.engine == "resident"
    assert planned.estimate.hours == pytest.approx(hours)
    assert planned.euros == pytest.approx(hours * 2.5)
    assert "measured on NVIDIA H100" in planned.to_toml()
    assert "scaled, not measured" in planned.to_toml()
    assert plan([store], H100, rows=rows, hours=hours / 2).config.preset == "vit_base"
    late = plan([store], H100, rows=rows, hours=hours / 1000)
    assert late.config.preset == "vit_tiny"
    assert "it takes longer than" in late.notes[-1]


RATES = {"vit_large": 100.0, "vit_base": 300.0, "vit_small": 500.0, "vit_tiny": 900.0}


def test_a_gpu_that_is_too_small_is_named(store: Path) -> None:
    small = replace(H100, memory_gib=4.0)
    assert plan([store], small).config.preset == "vit_base"
    with pytest.raises(ConfigError, match=r"vit_large needs more memory than a NVIDIA H100 80GB"):
        plan([store], small, preset="vit_large")


@pytest.mark.parametrize(
    ("memory", "held", "microbatch", "engine"),
    [(79.6, 0.5, 256, "resident"), (79.6, 60.0, 256, "auto"), (24.0, 0.5, 128, "resident")],
)
def test_microbatch_and_engine_follow_memory(
    memory: float, held: float, microbatch: int, engine: str
) -> None:
    config = _fitted("vit_large", 100_000, held, replace(H100, memory_gib=memory))
    assert config is not None
    assert (config.train.batch_size, config.data.engine) == (1024, engine)
    assert config.train.microbatch == microbatch
    larger = load_config(config, {"train.microbatch": 2 * microbatch})
    taken = held if engine == "resident" else 0
    assert memory_gib(config, 1) <= 0.9 * memory - taken
    assert microbatch == 256 or memory_gib(larger, 1) > 0.9 * memory - taken


def test_several_gpus_share_a_batch() -> None:
    config = _fitted("vit_base", 4_000, 0.1, replace(H100, gpus=3))
    assert config is not None
    assert config.train.batch_size == 126  # of 128, a power of two that gives 16 updates or more
    assert config.train.microbatch == 42


def test_a_cpu_gets_the_demo_preset(
    store: Path, learned: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [measured("demo", 50.0, device_name("cpu"))]
    planned = plan([store], Machine(gpu=None), rows=rows)
    assert planned.config.preset == "demo"
    assert planned.estimate.hours == pytest.approx(200 * (learned // 2 * 2) / 50 / 3600)
    out = tmp_path / "plan.toml"
    assert main(["plan", str(store), "--out", str(out), "--device", "cpu"]) == 0
    assert "no GPU here: demo" in capsys.readouterr().out
    assert load_config(str(out)) == replace(planned.config, preset="plan.toml")


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return


@pytest.mark.parametrize("preset", [[], ["--preset", "auto"]])
@pytest.mark.usefixtures("without_gpu")
def test_a_pretraining_on_a_cpu_is_small(
    store: Path, tmp_path: Path, preset: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", str(store), "--out", str(tmp_path / "run"), *preset]
    assert main([*words, "--set", "train.max_steps=1", "--set", "train.compile=false"]) == 0
    written = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert written["preset"] == "demo"
    assert written["train"]["batch_size"] == (2 if preset else 8)
    said = "no GPU here: demo" if preset else "no GPU here and no preset given: demo, not vit_large"
    assert capfd.readouterr().err.count(said) == 1


@pytest.mark.usefixtures("without_gpu")
def test_a_large_model_on_a_cpu_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert settings_of("imagenet-mae", "vit_base", None, None, (), None).preset == "vit_base"
    assert not caplog.messages
    assert settings_of("imagenet-mae", None, None, None, (), None).preset == "vit_large"
    assert caplog.messages[0].startswith("no GPU here, where vit_large takes weeks; --preset names")


def test_a_store_of_test_patients_teaches_nothing(store: Path, tmp_path: Path) -> None:
    given = tmp_path / "splits.csv"
    assert main(["splits", str(store), "--export", str(given), "--readable"]) == 0
    text = given.read_text()
    given.write_text(text.replace(",train,", ",test,").replace(",valid,", ",test,"))
    assert main(["splits", str(store), "--import", str(given)]) == 0
    with pytest.raises(ConfigError, match="no record to learn from"):
        plan([store], H100)
    draw_again(store)
