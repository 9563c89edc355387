"""A short run of tests/fuzz/codec.py; by hand it decodes two million chunks."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).with_name("codec.py")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler for the sanitizers")
def test_mutated_chunks_under_sanitizers() -> None:
    command = [sys.executable, str(TOOL), "--chunks", "10000", "--seed", "11"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("10000 chunks")
    counts = done.stdout.split("by code:")[1].split()[1::2]
    assert all(int(count) > 0 for count in counts), done.stdout  # every rule was reached
