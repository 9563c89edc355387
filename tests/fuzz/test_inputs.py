"""tests/fuzz/inputs.py, for some seconds: by hand it runs for hours."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).with_name("inputs.py")


@pytest.mark.parametrize("arguments", [("--cases", "80", "--seed", "0"), ("--fail-calls",)])
def test_every_case_ends_in_a_record_or_one_of_our_errors(arguments: tuple[str, ...]) -> None:
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    pytest.importorskip("h5py", reason="h5py is not installed")
    command = [sys.executable, str(TOOL), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert ", 0 came out wrong" in run.stdout
