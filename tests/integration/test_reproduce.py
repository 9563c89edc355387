"""An experiment ends in the same table, however it is interrupted and divided."""

import csv
import dataclasses
import json
import random
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from training_runs import finish, kill, loss_trace, make_store, start

from ecgfast.cli import main
from ecgfast.errors import ConfigError, ResumeError
from ecgfast.log import read_metrics
from ecgfast.reproduce.plan import Finetuning, Model, Plan, Pretraining
from ecgfast.reproduce.run import Summary, make_plan, reproduce
from ecgfast.store.durable import exclusive

pytestmark = pytest.mark.slow  # every cell is a process of its own, which imports torch

TABLES = ("table3.md", "table3.csv", "table3.tex")
COLUMNS = ["ViT-random, Train1", "ViT-ImageNet, Train1", "ViT-A, Train1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("cohort"), num_sites=4)


@pytest.fixture(scope="module")
def plan(tiny: Path) -> Plan:
    """Pretraining reads site 2, which tests; at site 4 everybody is a control."""
    return Plan(
        target="ejection_fraction<40 and site!=4",
        preset=str(tiny),
        settings=("train.max_steps=30", "finetune.learning_rates=[1e-3]"),
        sites=("1", "2", "4"),
        pretraining=(Pretraining(name="A", select="site in (1, 2)"),),
        model=(
            Model(name="ViT-A", init="A"),
            Model(name="ViT-ImageNet", init="imagenet-mae"),
            Model(name="ViT-random", init="random"),
        ),
        finetuning=(
            Finetuning(
                name="Train1", select="site=1", models=("ViT-random", "ViT-ImageNet", "ViT-A")
            ),
        ),
    )


@pytest.fixture(scope="module")
def plan_file(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.toml"
    path.write_text(plan.to_toml())
    return path


def run(store: Path, out: Path, plan_file: Path, **options: object) -> Summary:
    return reproduce(store, out, make_plan(store, out, plan=plan_file), device="cpu", **options)


@pytest.fixture(scope="module")
def unbroken(store: Path, plan_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    summary = run(store, out, plan_file)
    assert summary.num_finished == 5
    assert list(summary.no_weights) == [
        "finetune/ViT-ImageNet.Train1",
        "evaluate/ViT-ImageNet.Train1",
    ]
    assert (summary.failed, summary.left) == ({}, {})
    assert summary.table == out / "table3.md"
    return out


def tables(out: Path) -> dict[str, str]:
    return {name: (out / name).read_text() for name in TABLES}


def cells_of_table(out: Path) -> dict[str, list[str]]:
    """Cohort -> its cells, in the order of the columns."""
    lines = (out / "table3.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
    assert rows[0][2:] == [f"{name}: AUROC (95 % CI)" for name in COLUMNS]
    return {row[0]: row[2:] for row in rows[2:]}


def test_the_table_names_its_data_and_marks_its_cells(unbroken: Path) -> None:
    first, *_ = (unbroken / "table3.md").read_text().splitlines()
    assert first.startswith("data: store, 64 ECGs of 4 sites, ejection_fraction<40 and site!=4")
    assert "ViT-ImageNet, Train1: no ImageNet weights" in first
    assert "\N{DAGGER} pretraining had read, without labels" in first
    rows = cells_of_table(unbroken)
    assert {"site 1, test split", "site 2, external", "site 4, external"} <= set(rows)
    assert not any(name.startswith("site 3") for name in rows)  # the plan leaves it out
    assert {row[1] for row in rows.values()} == {"no ImageNet weights"}
    assert rows["site 2, external"][2].endswith(" \N{DAGGER}")
    assert "\N{DAGGER}" not in rows["site 1, test split"][2]
    assert "\N{DAGGER}" not in rows["site 2, external"][0]
    assert rows["site 4, external"][::2] == ["not defined", "not defined"]


def test_the_numbers_are_those_of_evaluate(unbroken: Path) -> None:
    rows = cells_of_table(unbroken)
    metrics = json.loads((unbroken / "report" / "metrics.json").read_text())
    joint = metrics["cohorts"]
    # the pretrained column is the one that the others are compared with, wherever it stands
    assert list(metrics["first_run_minus"]["site 2, external"]) == ["ViT-random, Train1"]
    for number, name in ((2, "ViT-A"), (0, "ViT-random")):
        folder = unbroken / "evaluate" / f"{name}.Train1"
        alone = json.loads((folder / "metrics.json").read_text())["cohorts"]
        for cohort in ("site 1, test split", "site 2, external"):
            (result,) = alone[cohort].values()
            assert joint[cohort][f"{name}, Train1"] == result
        (result,) = alone["site 2, external"].values()
        area = result["auroc"]
        words = f"{area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})"
        assert rows["site 2, external"][number].removesuffix(" \N{DAGGER}") == words


def test_each_cell_keeps_its_files(unbroken: Path) -> None:
    pretrained = {p.name for p in (unbroken / "pretrain" / "A").iterdir()}
    assert {"config.toml", "checkpoints", "model.safetensors", "register.parquet"} <= pretrained
    tuned = {p.name for p in (unbroken / "finetune" / "ViT-A.Train1").iterdir()}
    assert {"config.toml", "best.safetensors", "result.json", "metrics.jsonl"} <= tuned
    tested = {p.name for p in (unbroken / "evaluate" / "ViT-A.Train1").iterdir()}
    assert {"scores.parquet", "metrics.json", "report.html"} <= tested
    log = (unbroken / "finetune" / "ViT-A.Train1.log").read_text()
    assert log.startswith("$ python -m ecgfast finetune --out ")
    assert "trial 1 epoch 3" in log
    page = (unbroken / "report" / "report.html").read_text()
    assert all(name in page for name in ("ViT-A, Train1", "ViT-random, Train1", "Pretraining A"))


def test_what_is_finished_is_not_done_again(
    store: Path, plan_file: Path, unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)  # another folder: what is finished is known by no path
    logs = {path: path.read_text() for path in out.rglob("*.log")}
    (out / "table3.md").unlink()
    assert run(store, out, plan_file).num_finished == 5
    assert {path: path.read_text() for path in out.rglob("*.log")} == logs
    assert tables(out) == tables(unbroken)


def test_another_plan_is_refused_before_anything_begins(
    store: Path, plan: Plan, unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    other = dataclasses.replace(plan, settings=("train.max_steps=30", "finetune.epochs=9"))
    with pytest.raises(ResumeError, match=r"finetune.epochs \(now 9, in the cell .* 3\)"):
        reproduce(store, out, other, device="cpu")
    shutil.rmtree(out / "pretrain" / "A")
    with pytest.raises(ResumeError, match=r"weights that .*pretrain/A does not hold now"):
        reproduce(store, out, plan, device="cpu")


def test_files_that_a_cell_did_not_write_enter_no_table(
    store: Path, plan_file: Path, unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    scores = out / "evaluate" / "ViT-A.Train1" / "scores.parquet"
    written = scores.read_bytes()
    other = (out / "evaluate" / "ViT-random.Train1" / "scores.parquet").read_bytes()
    for damaged in (b"", written[:-9], other):
        scores.write_bytes(damaged)
        with pytest.raises(ResumeError, match=r"other files than cell evaluate/ViT-A.Train1 wrote"):
            run(store, out, plan_file)
    scores.write_bytes(written)
    (out / "finetune" / "ViT-A.Train1" / "best.safetensors").unlink()
    with pytest.raises(ResumeError, match=r"best.safetensors cannot be .*; to do it again, move"):
        run(store, out, plan_file)
    assert tables(out) == tables(unbroken)


def test_a_cell_that_fails_stops_no_other(
    store: Path, plan: Plan, unbroken: Path, tmp_path: Path
) -> None:
    """A microbatch of 3 is no part of a batch of 8, which the run finds when it begins."""
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    broken = Model(name="broken", init="random", settings=("train.microbatch=3",))
    again = Model(name="again", init="random", settings=("finetune.epochs=1",))
    names = ("broken", "ViT-A", "again")
    more = dataclasses.replace(
        plan,
        model=(broken, again, *plan.model),
        finetuning=(dataclasses.replace(plan.finetuning[0], models=names),),
    )
    path = tmp_path / "more.toml"
    path.write_text(more.to_toml())
    command = ["reproduce", str(store), "--out", str(out), "--plan", str(path), "--device", "cpu"]
    process = start(command)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    (reason,) = re.findall(r"^finetune/broken\.Train1 failed: (.*)$", output, re.MULTILINE)
    assert "train.microbatch" in reason
    assert "evaluate/broken.Train1 failed: it needs finetune/broken.Train1" in output
    header, _, *rows = [x for x in tables(out)["table3.md"].splitlines() if x[:1] == "|"]
    assert "again, Train1" in header
    assert all(row.split("|")[3].strip() == "failed" for row in rows)


def test_a_cell_that_another_process_has_is_left_to_it(
    store: Path, plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", str(store), "--out", str(tmp_path), "--plan", str(plan_file)]
    locks = [tmp_path / "pretrain" / ".A.lock", tmp_path / "finetune" / ".ViT-random.Train1.lock"]
    with exclusive(locks[0], tmp_path), exclusive(locks[1], tmp_path):
        assert main([*command, "--device", "cpu"]) == 3
    shown = capsys.readouterr().out
    assert "pretrain/A is left: another process does it" in shown
    assert "finetune/ViT-A.Train1 is left: it needs pretrain/A" in shown
    assert "run it again when the other processes have ended" in shown
    assert not (tmp_path / "table3.md").exists()


def test_killed_anywhere_and_started_again(
    store: Path, plan_file: Path, unbroken: Path, tmp_path: Path
) -> None:
    out, moments = tmp_path / "out", random.Random(0)
    command = ["reproduce", str(store), "--out", str(out), "--plan", str(plan_file)]
    step = out / "pretrain" / "A"
    for number in (signal.SIGKILL, signal.SIGTERM):  # in the pretraining
        process = start([*command, "--device", "cpu"])
        before = max(loss_trace(step), default=0) if step.exists() else 0
        _wait(process, lambda before=before: max(loss_trace(step), default=0) > before + 3)
        assert kill(process, number) == -number
    process = start([*command, "--device", "cpu"])
    tuned = out / "finetune" / "ViT-A.Train1"
    _wait(process, lambda: bool(read_metrics(tuned)))  # after its first epoch
    assert kill(process) == -signal.SIGKILL
    process = start([*command, "--device", "cpu"])
    _wait(process, lambda: (out / "evaluate" / "ViT-A.Train1.log").exists())
    time.sleep(moments.uniform(0, 5))
    assert kill(process) == -signal.SIGKILL
    assert "table3.md" in finish(start([*command, "--device", "cpu"]), timeout_s=600)
    assert tables(out) == tables(unbroken)
    assert loss_trace(step) == loss_trace(unbroken / "pretrain" / "A")


def _wait(process: "subprocess.Popen[str]", happened: object) -> None:
    """Return when something has happened."""
    assert callable(happened)
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_three_parts_at_once(store: Path, plan_file: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["reproduce", str(store), "--out", str(out), "--plan", str(plan_file)]

    def array() -> list[int]:
        parts = [start([*command, "--device", "cpu", "--part", f"{i}/3"]) for i in range(3)]
        outputs = [process.communicate(timeout=600)[0] for process in parts]
        assert all("Traceback" not in output for output in outputs), outputs
        return [process.returncode for process in parts]

    assert 3 in array()  # the second part needs the first one's pretraining
    assert set(array()) <= {0, 3}
    assert tables(out) == tables(unbroken)


def test_an_executor_does_the_cells(
    store: Path, plan_file: Path, unbroken: Path, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(2) as executor:
        summary = run(store, tmp_path, plan_file, executor=executor)
    assert summary.num_finished == 5
    assert tables(tmp_path) == tables(unbroken)


def test_a_training_on_two_ranks(store: Path, plan: Plan, tmp_path: Path) -> None:
    alone = dataclasses.replace(plan, model=(), finetuning=())
    summary = reproduce(store, tmp_path, alone, device="cpu", ranks=2)
    assert (summary.num_finished, summary.table) == (1, None)
    assert "2 x cpu" in (tmp_path / "pretrain" / "A.log").read_text()


def test_seeds_are_columns_of_their_own(store: Path, plan: Plan, tmp_path: Path) -> None:
    chosen = dataclasses.replace(plan.finetuning[0], models=("ViT-random",))
    twice = dataclasses.replace(
        plan, pretraining=(), model=plan.model[2:], finetuning=(chosen,), seeds=2
    )
    assert reproduce(store, tmp_path, twice, device="cpu").num_finished == 4
    header = next(x for x in tables(tmp_path)["table3.md"].splitlines() if x[:1] == "|")
    columns = re.findall(r"ViT-random[^:|]*", header)
    assert columns == ["ViT-random, Train1", "ViT-random, Train1, seed 1"]
    for name, seed in (("ViT-random.Train1", 0), ("ViT-random.Train1.seed1", 1)):
        settings = (tmp_path / "finetune" / name / "config.toml").read_text()
        assert f"\nseed = {seed}\n" in settings


def test_fractions_make_a_curve_and_no_column(store: Path, plan: Plan, tmp_path: Path) -> None:
    chosen = dataclasses.replace(plan.finetuning[0], models=("ViT-random",))
    less = dataclasses.replace(
        plan,
        pretraining=(),
        model=plan.model[2:],
        finetuning=(chosen,),
        settings=(*plan.settings, "finetune.epochs=1"),
        fractions=(0.05, 0.4, 1.0),
    )
    summary = reproduce(store, tmp_path, less, device="cpu")  # 5 % of its cases is nobody
    assert (summary.num_finished, summary.failed) == (4, {})
    header = next(x for x in tables(tmp_path)["table3.md"].splitlines() if x[:1] == "|")
    assert re.findall(r"ViT-random[^:|]*", header) == ["ViT-random, Train1"]
    with (tmp_path / "label_efficiency.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"ViT-random, Train1"}
    external = [row for row in rows if row["cohort"] == "external test, sites 2, 3, 4"]
    assert [row["fraction"] for row in external] == ["0.4", "1.0"]
    assert int(external[0]["train_patients"]) < int(external[1]["train_patients"])
    few = tmp_path / "evaluate" / "ViT-random.Train1.fraction0.4" / "metrics.json"
    (area,) = json.loads(few.read_text())["cohorts"]["all external sites"].values()
    assert float(external[0]["auroc_mean"]) == pytest.approx(area["auroc"]["value"], abs=5e-5)
    assert "Label efficiency" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize("name", ["gpu", "cuda:x"])
def test_a_device_that_does_not_exist_is_refused(
    name: str, store: Path, plan: Plan, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"device must be cpu, cuda or cuda:N, got '{name}'"):
        reproduce(store, tmp_path, plan, device=name)
