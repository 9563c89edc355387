"""tools/profile_step.py: names to classes, overlapping kernels, idle time, and reading a trace."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from scripts import script

profile_step = script("tools/profile_step.py")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_bias_TNT", "GEMM"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "GEMM"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>", "GEMM"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("ecgfast::short_attention forward_kernel", "attention"),
        ("ecgfast::masked_mse forward_kernel", "ecgfast ops"),
        ("mask_kernel", "ecgfast ops"),  # in a graph's replay, where no operator is known
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("ncclDevKernel_AllGather_RING_LL", "communication"),
        ("void at::native::split_with_sizes_copy_out_contiguous_no_cast_kernel", "weight copies"),
        ("triton_per_fused_add_native_layer_norm_0", "reduce, norm"),
        ("triton_poi_fused_gelu_3", "elementwise"),
        ("Memcpy DtoD (Device -> Device)", "elementwise"),
        ("some_new_thing", "other"),
    ],
)
def test_classes(name: str, expected: str) -> None:
    assert profile_step.classify(name) == expected


def test_idle_is_what_no_kernel_covers() -> None:
    kernels = [
        ("gemm", 0.0, 1000.0),
        ("nccl", 500.0, 1500.0),  # overlaps by half
        ("gemm", 2000.0, 4000.0),
    ]
    head, _, _, *lines = profile_step.table(kernels, num_steps=2).splitlines()
    assert head == "2.00 ms per step"
    assert [line.split() for line in lines] == [
        ["GEMM", "1.500", "75.0", "1.0"],
        ["communication", "0.500", "25.0", "0.5"],
        ["idle", "0.250", "12.5", "0.0"],
    ]


def event(cat: str, name: str, ts: float, dur: float, external: int = 0) -> dict[str, Any]:
    args = {"External id": external}
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": 1, "args": args}


def test_own_kernels_carry_their_operator(tmp_path: Path) -> None:
    events = [
        {"ph": "M", "name": "process"},
        event("cpu_op", "ecgfast::unshuffle", 0, 5, external=7),
        event("cpu_op", "aten::mm", 5, 5, external=8),
        event("kernel", "forward_kernel", 10, 2, external=7),
        event("kernel", "nvjet", 12, 3, external=8),
    ]
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    kernels = profile_step.read_trace(path)
    assert kernels == [("ecgfast::unshuffle forward_kernel", 10, 12), ("nvjet", 12, 15)]
