"""tools/profile_step.py: names to classes, overlapping kernels, idle time, and reading a trace."""

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[3] / "tools" / "profile_step.py"
spec = importlib.util.spec_from_file_location("profile_step", PATH)
assert spec is not None
assert spec.loader is not None
profile_step = importlib.util.module_from_spec(spec)
sys.modules["profile_step"] = profile_step  # dataclasses look their module up
spec.loader.exec_module(profile_step)
Kernel, read_trace = profile_step.Kernel, profile_step.read_trace
shares_by_class, shares_by_kernel = profile_step.shares_by_class, profile_step.shares_by_kernel


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


def kernel(name: str, start_us: float, duration_us: float) -> Any:
    return Kernel(name=name, start_us=start_us, duration_us=duration_us)


def test_idle_is_what_no_kernel_covers() -> None:
    kernels = [
        kernel("gemm", 0, 1000),
        kernel("nccl", 500, 1000),  # overlaps by half
        kernel("gemm", 2000, 2000),
    ]
    shares = {s.name: s for s in shares_by_class(kernels, num_steps=2)}
    assert profile_step.span_ms(kernels) == 4
    assert shares["GEMM"].ms_per_step == 1.5
    assert shares["GEMM"].launches_per_step == 1
    assert shares["communication"].ms_per_step == 0.5
    assert shares["idle"].ms_per_step == 0.25
    assert shares["idle"].percent == 12.5
    assert [s.name for s in shares_by_kernel(kernels, 2)] == ["gemm", "nccl"]


def write_trace(path: Path, events: list[dict[str, Any]]) -> Path:
    text = json.dumps({"traceEvents": [{"ph": "M", "name": "process"}, *events]}).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def event(cat: str, name: str, ts: float, dur: float, external: int = 0) -> dict[str, Any]:
    args = {"External id": external}
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": 1, "args": args}


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_own_kernels_carry_their_operator(tmp_path: Path, name: str) -> None:
    events = [
        event("cpu_op", "ecgfast::unshuffle", 0, 5, external=7),
        event("cpu_op", "aten::mm", 5, 5, external=8),
        event("kernel", "forward_kernel", 10, 2, external=7),
        event("kernel", "nvjet", 12, 3, external=8),
    ]
    kernels = read_trace(write_trace(tmp_path / name, events))
    assert [k.name for k in kernels] == ["ecgfast::unshuffle forward_kernel", "nvjet"]


def test_a_cpu_trace_gives_each_operator_its_own_time(tmp_path: Path) -> None:
    events = [
        event("cpu_op", "outer", 0, 10),
        event("cpu_op", "inner", 2, 3),
        event("cpu_op", "innermost", 3, 1),
        event("cpu_op", "empty", 6, 0),
        event("cpu_op", "next", 10, 4),
    ]
    shares = shares_by_kernel(read_trace(write_trace(tmp_path / "t.json", events)), 1)
    times = {s.name: s.ms_per_step * 1e3 for s in shares}
    assert times == pytest.approx({"outer": 7, "inner": 2, "innermost": 1, "next": 4})
