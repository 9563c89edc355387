"""tools/gpu_check.py: what a stage leaves behind when it fails, hangs, or cannot run."""

import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[3] / "tools" / "gpu_check.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(check: ModuleType, out: Path, code: str, *, limit_s: int = 60, left: float = 60) -> Any:
    stage = check.Stage(
        name="stage", command=(sys.executable, "-c", code), limit_s=limit_s, gpu=False
    )
    return check.run_stage(stage, out, left)


def test_a_stage_that_ends_well_or_fails(check: ModuleType, tmp_path: Path) -> None:
    assert run(check, tmp_path, "print('fine')").status == "ok"
    assert (tmp_path / "stage.log").read_text() == "fine\n"
    failed = run(check, tmp_path, "raise SystemExit(3)")
    assert (failed.status, failed.reason) == ("FAILED", "exit status 3")


def test_a_stage_that_hangs_keeps_its_log_and_takes_its_processes_with_it(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "SHORTEST_S", 0)
    code = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    began = time.monotonic()
    result = run(check, tmp_path, code, limit_s=3)
    assert result.status == "stopped"
    assert time.monotonic() - began < 30
    child = int((tmp_path / "stage.log").read_text())
    for _ in range(100):  # who adopts it may take a moment to bury it
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_stage_is_left_out_for_want_of_time_or_packages(
    check: ModuleType, tmp_path: Path
) -> None:
    late = run(check, tmp_path, "print()", left=5)
    assert late.status == "left out"
    assert "no time left" in late.reason
    stage = check.Stage(
        name="stage", command=("true",), limit_s=60, needs=("no_such_module",), gpu=False
    )
    lacking = check.run_stage(stage, tmp_path, 60)
    assert (lacking.status, lacking.reason) == ("left out", "needs no_such_module")
    assert not (tmp_path / "stage.log").exists()


def test_without_a_gpu_its_stages_are_left_out_and_say_so(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(check.torch.cuda, "is_available", lambda: False)
    command = ["gpu_check.py", "--run", "3", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert check.main() == 0
    lines = capsys.readouterr().out.strip().splitlines()[-len(check.RUNS[3]) :]
    assert [line.split()[2] for line in lines] == list(check.RUNS[3])
    assert all(line.startswith("left out") and "a GPU" in line for line in lines)


def test_the_runs_hold_every_stage_once_and_fit_their_time(check: ModuleType) -> None:
    stages = {stage.name: stage for stage in check.stages(list(check.RUN_VARIANTS))}
    listed = [name for run in check.RUNS.values() for name in run]
    assert sorted(listed) == sorted(stages)
    for run in check.RUNS.values():
        assert sum(stages[name].limit_s for name in run) <= check.LONGEST_S


def test_variants_of_the_runs_exist(check: ModuleType) -> None:
    from ecgfast.bench.step import variant_names

    def without_peer(name: str) -> str:
        return name.replace("-plain", "-timm")  # the peer's name says whether timm is installed

    assert set(check.RUN_VARIANTS) <= {without_peer(name) for name in variant_names()}


def test_the_tests_of_ops_are_those_marked_so(check: ModuleType) -> None:
    ops = next(stage for stage in check.stages([]) if stage.name == "ops").command
    assert ops[ops.index("-m", 3) + 1] == "op and not gpu"
    folder = PATH.parents[1] / "tests" / "kernels"
    marked = [path for path in folder.glob("test_*.py") if "pytest.mark.op\n" in path.read_text()]
    taking = [path for path in folder.glob("test_*.py") if "from checks import" in path.read_text()]
    assert {path for path in taking if "_gpu" not in path.name} == set(marked) != set()
