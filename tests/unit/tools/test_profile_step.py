"""tools/profile_step.py: idle time, and a profile of a step of the demo on a CPU."""

import gzip
import json
import sys
from pathlib import Path

import pytest
from scripts import script

profile_step = script("tools/profile_step.py")


def test_idle_is_what_no_interval_covers() -> None:
    assert profile_step.idle_us([(2.0, 4.0), (0.0, 1.0), (0.5, 1.5), (3.0, 3.5)]) == 0.5
    assert profile_step.idle_us([]) == 0


def test_a_step_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_step, "NUM_STEPS", 1)
    monkeypatch.setattr(profile_step, "NUM_WARMUP", 1)
    words = ["profile_step.py", "--out", str(tmp_path), "--preset", "demo", "--microbatch", "2"]
    monkeypatch.setattr(sys, "argv", words)
    profile_step.main()
    text = (tmp_path / "step-profile.txt").read_text()
    assert text.startswith("demo, 2 records, ecgfast, ")
    assert "aten::addmm" in text or "gemm" in text
    trace = json.loads(gzip.decompress((tmp_path / "step-trace.json.gz").read_bytes()))
    assert trace["traceEvents"]
