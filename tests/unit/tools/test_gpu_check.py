"""tools/gpu_check.py: what a stage leaves behind when it fails, hangs, or cannot run."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT, script

check = script("tools/gpu_check.py")


def run(out: Path, code: str, *, limit_s: int = 60, left: float = 60) -> Any:
    stage = check.Stage("stage", 1, limit_s, (), [sys.executable, "-c", code])
    return check.run_stage(stage, out, left)


def test_a_stage_that_ends_well_or_fails(tmp_path: Path) -> None:
    assert run(tmp_path, "print('fine')") == ("ok", "")
    assert (tmp_path / "stage.log").read_text() == "fine\n"
    failed = run(tmp_path, "raise SystemExit(3)")
    assert failed == ("FAILED", "exit status 3")


def test_a_stage_that_hangs_keeps_its_log_and_takes_its_processes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "SHORTEST_S", 0)
    code = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    began = time.monotonic()
    result = run(tmp_path, code, limit_s=3)
    assert result == ("stopped", "limit of 3 s")
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


def test_a_stage_is_left_out_for_want_of_time_or_packages(tmp_path: Path) -> None:
    late = run(tmp_path, "print()", left=5)
    assert late == ("left out", "no time left; --only stage runs it")
    stage = check.Stage("stage", 1, 60, ("no_such_module",), ["true"])
    assert check.run_stage(stage, tmp_path, 60) == ("left out", "needs no_such_module")
    assert not (tmp_path / "stage.log").exists()


def test_without_a_gpu_its_stages_are_left_out_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(check.torch.cuda, "is_available", lambda: False)
    check.main(tmp_path, run=3, only="")
    third = [stage.name for stage in check.stages(tmp_path) if stage.run == 3]
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[2] for line in lines] == third
    assert all(line.startswith("left out") and "a GPU" in line for line in lines)


def test_the_runs_fit_their_time(tmp_path: Path) -> None:
    limits = dict.fromkeys((1, 2, 3, 4), 0)
    for stage in check.stages(tmp_path):
        limits[stage.run] += stage.limit_s
        assert not any("{" in word for word in stage.command)
    assert all(0 < limit <= check.LONGEST_S for limit in limits.values())


def test_scripts_of_the_stages_exist(tmp_path: Path) -> None:
    words = [word for stage in check.stages(tmp_path) for word in stage.command]
    scripts = [word for word in words if word.startswith(("tools/", "tests/"))]
    assert len(scripts) > 5
    assert all((ROOT / word).exists() for word in scripts)


def test_the_tests_of_ops_are_those_marked_so(tmp_path: Path) -> None:
    ops = next(stage for stage in check.stages(tmp_path) if stage.name == "ops").command
    assert ops[ops.index("-m", 3) + 1] == "op and not gpu"
    folder = ROOT / "tests" / "kernels"
    marked = [path for path in folder.glob("test_*.py") if "pytest.mark.op\n" in path.read_text()]
    taking = [path for path in folder.glob("test_*.py") if "from checks import" in path.read_text()]
    assert {path for path in taking if "_gpu" not in path.name} == set(marked) != set()
