"""The tool that says whether a change kept the loss trace."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).with_name("compare_loss.py")


def _run(folder: Path, losses: dict[int, float | None]) -> Path:
    folder.mkdir()
    lines = [json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in losses.items()]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.parametrize(
    ("after", "options", "status"),
    [
        ({1: 0.5, 2: 0.4, 3: None}, [], 0),
        ({2: 0.4}, [], 0),
        ({1: 0.5, 2: 0.4001}, [], 1),
        ({1: 0.5, 2: 0.4001}, ["--tolerance", "1e-3"], 0),
        ({3: 0.1}, [], 1),  # a number where there was none
        ({9: 0.4}, [], 1),  # nothing in common
    ],
)
def test_status(
    after: dict[int, float | None], options: list[str], status: int, tmp_path: Path
) -> None:
    before = _run(tmp_path / "before", {1: 0.5, 2: 0.4, 3: None})
    command = [sys.executable, str(TOOL), str(before), str(_run(tmp_path / "after", after))]
    assert subprocess.run([*command, *options], check=False).returncode == status
