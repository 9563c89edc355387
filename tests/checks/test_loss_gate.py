"""tests/checks/loss_gate.py on a CPU: fused blocks pass it, and it can fail."""

from pathlib import Path

import pytest
from recordings import convert_quietly, ecg_like, write_wfdb
from scripts import script

gate = script("tests/checks/loss_gate.py")
TINY = [
    f"model.{part}_{size}" for part in ("encoder", "decoder") for size in ("depth=1", "heads=2")
]
TINY += ["model.encoder_width=32", "model.decoder_width=32"]


def test_fused_blocks_pass_the_gate(tmp_path: Path) -> None:
    for number, signal in enumerate(ecg_like(6, seed=0)):
        write_wfdb(tmp_path / f"in/{number}", signal)
    convert_quietly([tmp_path / "in"], tmp_path / "store")
    words = ["--store", str(tmp_path / "store"), "--preset", "demo", "--device", "cpu"]
    words += ["--microbatch", "2", "--steps", "10", *(f"--set={setting}" for setting in TINY)]
    losses = {(fused, seed): loss for fused, seed, loss in gate.losses(gate.parse(words))}
    assert len(losses) == 4
    assert abs(losses["off", 0] - losses["off", 1]) > 1e-3
    assert abs(losses["separate", 0] - losses["off", 0]) < 1e-4
    assert gate.beyond_the_seeds(losses) == []


@pytest.mark.parametrize("value", [0.86, 0.74, float("nan")])
def test_losses_beyond_the_spread_of_the_seeds_are_said(value: float) -> None:
    losses = {("off", 0): 0.80, ("off", 1): 0.75, ("triton", 1): 0.79}
    assert gate.beyond_the_seeds({**losses, ("triton", 0): 0.84}) == []
    (wrong,) = gate.beyond_the_seeds({**losses, ("triton", 0): value})
    assert wrong.startswith("fused=triton, seed 0: loss")
    assert "0.80000 without; the seeds differ by 0.05000" in wrong
