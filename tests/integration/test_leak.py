"""A run of a million steps must not grow: one object per step is already too many."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = 5000


@pytest.mark.slow
def test_many_steps_on_two_ranks_hold_nothing() -> None:
    script = Path(__file__).parents[1] / "helpers" / "leak_steps.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", str(script), str(STEPS)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("HELD"))
    (early_objects, early_mib), (late_objects, late_mib) = json.loads(line.removeprefix("HELD"))
    # 4,000 steps lie between: a leak of one object per step would show 4,000
    assert late_objects - early_objects < 200
    assert late_mib - early_mib < 4  # the allocator's slack; 1 KiB per step would show
