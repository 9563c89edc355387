"""Who runs the ops, and with which block sizes."""

import subprocess
import sys

import pytest
import torch
from ecgfast_kernels.ops import library
from ecgfast_kernels.ops.library import BackendError, resolve


def test_auto_is_the_reference_on_a_cpu() -> None:
    assert resolve("auto", "cpu") == "reference"
    assert resolve("reference", torch.device("cuda", 1)) == "reference"


def test_auto_is_triton_on_a_gpu() -> None:
    assert resolve("auto", "cuda:0") == "triton"


def test_without_triton_a_gpu_gets_the_reference_and_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "HAS_TRITON", False)
    assert resolve("auto", "cuda") == "reference"
    assert "pip install" in caplog.text
    with pytest.raises(BackendError, match="needs Triton"):
        resolve("triton", "cuda")


def test_triton_needs_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "INTERPRETED", False)
    with pytest.raises(BackendError, match="needs a CUDA device, got cpu"):
        resolve("triton", "cpu")


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="auto, triton or reference, got 'fast'"):
        resolve("fast", "cpu")


def test_importing_the_package_and_philox_needs_neither_torch_nor_triton() -> None:
    check = (
        "import sys, ecgfast_kernels, ecgfast_kernels.codec.philox;"
        "sys.exit(bool({'torch', 'triton'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_importing_the_ops_does_not_need_triton() -> None:
    check = (
        "import sys;"
        "from ecgfast_kernels.ops import adamw, attention, fused_block, masked_loss, masking;"
        "sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_a_newer_gpu_takes_the_newest_known_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"interpreter": {"BLOCK": 1}, "sm80-16bit": {"BLOCK": 8}, "sm90-16bit": {"BLOCK": 9}}
    monkeypatch.setitem(library.table(), "some_op", rows)
    found = {arch: library.config_for("some_op", arch=arch, bits=16) for arch in (80, 86, 90, 120)}
    assert {arch: config["BLOCK"] for arch, config in found.items()} == {
        80: 8,
        86: 8,
        90: 9,
        120: 9,
    }
    with pytest.raises(ValueError, match="no 16-bit block sizes of some_op for sm_75"):
        library.config_for("some_op", arch=75, bits=16)
    with pytest.raises(ValueError, match="no 64-bit"):  # fp64 weights on a GPU
        library.config_for("some_op", arch=90, bits=64)


def test_settings_belong_to_the_caller() -> None:
    first = library.config_for("patch_embed_backward", arch=90, bits=16)
    first.pop("PROGRAMS")
    assert "PROGRAMS" in library.config_for("patch_embed_backward", arch=90, bits=16)
    tensor = torch.zeros(1)
    library.block_config("patch_embed_backward", tensor).pop("PROGRAMS")
    assert "PROGRAMS" in library.block_config("patch_embed_backward", tensor)
