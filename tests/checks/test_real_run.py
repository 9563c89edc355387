"""tests/checks/real_run.py: what it says of a run's log lines, and how it ends a process."""

import importlib.util
import json
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).with_name("real_run.py")


@pytest.fixture(scope="module")
def real_run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_run", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(folder: Path, steps: list[int]) -> Path:
    """A run's metrics: the first line is slow, as the one that compiles."""
    rows = [
        {"step": step, "loss": 1 / step, "records_per_s": 10.0 if i == 0 else 100.0 + step}
        for i, step in enumerate(steps)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_rates_are_medians_without_the_first_line(
    real_run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert real_run.report(run_of(tmp_path, [1, 2, 3, 4]), killed_at=2.0) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "records_per_s: median 103 of 3 log lines",
        "loss 1.0000 at step 1",
        "loss 0.2500 at step 4",
    ]


def test_what_is_wrong_with_a_run(real_run: ModuleType, tmp_path: Path) -> None:
    run = run_of(tmp_path, [1, 2, 3])
    assert real_run.report(run, killed_at=3.0) == ["killed at step 3, and not a log line beyond"]
    (tmp_path / "metrics.jsonl").write_text("")
    (nothing,) = real_run.report(run, killed_at=0.0)
    assert "nothing was logged" in nothing


def test_a_process_is_ended_when_its_time_is_over(real_run: ModuleType) -> None:
    began = time.monotonic()
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert not real_run.train(sleep, 1, signal.SIGKILL)
    assert time.monotonic() - began < 30
    assert real_run.train([sys.executable, "-c", ""], 60, signal.SIGKILL)
    with pytest.raises(SystemExit, match="failed with exit status 3"):
        real_run.train([sys.executable, "-c", "raise SystemExit(3)"], 60, signal.SIGKILL)
