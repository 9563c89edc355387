"""tools/profile_step.py: a profile of a step of the demo on a CPU."""

import gzip
import json
from pathlib import Path

import pytest
from scripts import script

profile_step = script("tools/profile_step.py")


def test_a_step_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_step.torch.cuda, "is_available", lambda: False)
    profile_step.main(tmp_path)
    text = (tmp_path / "step-profile.txt").read_text()
    assert text.startswith("demo, 8 records, ecgfast: 3 steps in ")
    assert "aten::addmm" in text or "gemm" in text
    trace = json.loads(gzip.decompress((tmp_path / "step-trace.json.gz").read_bytes()))
    assert trace["traceEvents"]
