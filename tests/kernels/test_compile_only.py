"""What the compiler makes of the kernels on each architecture; needs no GPU and no driver."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ARCHITECTURES = [80, 90, 100]
TENSOR_CORE = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
# Bytes that one program may use (CUDA C++ programming guide, technical specifications).
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
GEMMS = ["patch_embed_forward_bf16", "patch_embed_backward_bf16"]
ATTENTION = [
    f"attention_{direction}_{shape}"
    for direction in ("forward", "backward")
    for shape in ("61x64", "241x32", "241x64")
]
COPIES = ["unshuffle_forward", "unshuffle_backward"]

pytestmark = pytest.mark.parametrize("arch", ARCHITECTURES)


@cache
def reports(arch: int) -> dict[str, dict[str, Any]]:
    """Compile in a process that does not run the interpreter."""
    script = Path(__file__).parent / "compile_kernels.py"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), str(arch)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {report["name"]: report for report in json.loads(done.stdout)}


def test_no_kernel_spills(arch: int) -> None:
    assert {name: r["spill_bytes"] for name, r in reports(arch).items() if r["spill_bytes"]} == {}


def test_shared_memory_within_the_limit(arch: int) -> None:
    assert max(r["shared_bytes"] for r in reports(arch).values()) <= SHARED_LIMIT[arch]


@pytest.mark.parametrize("name", GEMMS)
def test_gemms_use_tensor_cores_and_16_byte_copies(arch: int, name: str) -> None:
    report = reports(arch)[name]
    assert report["tensor_core"] == TENSOR_CORE[arch]
    assert 16 in report["copy_bytes"]
    assert 4 not in report["copy_bytes"]  # 8 is an index; 4 would be rows that lost alignment
    assert report["wide_stores"] > 0


@pytest.mark.parametrize("name", GEMMS)
def test_gemms_compute_while_the_next_patches_are_under_way(arch: int, name: str) -> None:
    # 0 when an address depends on an index that is loaded in the same step.
    assert reports(arch)[name]["in_flight"] > 0


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_uses_tensor_cores(arch: int, name: str) -> None:
    assert reports(arch)[name]["tensor_core"] in ("mma.sync", TENSOR_CORE[arch])


@pytest.mark.parametrize("name", COPIES)
def test_unshuffle_moves_16_bytes_at_a_time(arch: int, name: str) -> None:
    assert reports(arch)[name]["wide_loads"] > 0
    assert reports(arch)[name]["wide_stores"] > 0


@pytest.mark.parametrize("passes", [1, 4])
def test_adamw_moves_16_bytes_at_a_time_through_its_table(arch: int, passes: int) -> None:
    # Weight and two moments in fp32, 8 elements a thread, are 6 loads and 6 stores; bf16 is 1 each.
    assert reports(arch)[f"adamw_{passes}"]["wide_loads"] == 6 + passes
    assert reports(arch)[f"adamw_{passes}"]["wide_stores"] == 7
    assert reports(arch)[f"squares_of_sums_{passes}"]["wide_loads"] == passes


@pytest.mark.parametrize("name", ["masked_mse_forward", "masked_mse_backward"])
def test_loss_reads_16_bytes_at_a_time(arch: int, name: str) -> None:
    # One for the prediction, one for the target; a mask at column 250 would make them 4-byte.
    assert reports(arch)[name]["wide_loads"] >= 2


@pytest.mark.parametrize("name", ["bias_gelu_forward", "bias_gelu_backward"])
def test_gelu_needs_one_exponential_an_element(arch: int, name: str) -> None:
    # A tile of 4 x 512 for 128 threads; libdevice's erf would add branches with one more each.
    assert reports(arch)[name]["exponentials"] == 16


@pytest.mark.parametrize("name", ["narrow", "wide"])
def test_norm_sums_columns_once_and_not_in_every_step(arch: int, name: str) -> None:
    # The two sums along rows take six; each sum of a tile's columns in the loop would add three.
    assert reports(arch)[f"add_layer_norm_backward_{name}"]["loop_barriers"] == 6


@pytest.mark.parametrize("name", ["linear_gelu_forward", "linear_gelu_backward"])
def test_products_with_gelu_use_the_newest_tensor_cores(arch: int, name: str) -> None:
    report = reports(arch).get(name)
    assert (report is None) == (arch < 90)  # an A100 has no TMA
    assert report is None or report["tensor_core"] == TENSOR_CORE[arch]


def test_a_mask_stays_in_one_warp(arch: int) -> None:
    assert reports(arch)["random_mask"]["registers"] <= 96
