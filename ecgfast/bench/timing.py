"""Timing of variants in turns, by CUDA events or the monotonic clock; peaks of the device."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ecgfast.bench.rows import Row, make_row

_COPY_BYTES = {"cuda": 2 << 30, "cpu": 64 << 20}
_MATMUL_SIZE = {"cuda": 8192, "cpu": 512}
_FLUSH_BYTES = 256 << 20  # more than any L2 cache sold so far (H100: 50 MB, B200: 126 MB)


def time_interleaved(
    variants: Mapping[str, Callable[[], Any]],
    *,
    device: str = "cpu",
    repeats: int = 20,
    warmup: int = 3,
    flush_cache: bool = False,
) -> dict[str, list[float]]:
    """Time each variant `repeats` times, in turns, so that drift hits all of them alike.

    Args:
        variants: name -> callable that takes nothing; its result is dropped.
        device: "cpu" or "cuda".
        repeats: timed rounds; every round calls each variant once.
        warmup: untimed rounds before (compilation, allocator, caches).
        flush_cache: overwrite the GPU's L2 cache before each call, for memory-bound kernels.

    Returns:
        name -> milliseconds of each repeat.
    """
    on_gpu = device.startswith("cuda")
    scratch = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device) if flush_cache else None
    for _ in range(warmup):
        for variant in variants.values():
            variant()
    times_ms: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, variant in variants.items():
            timed = _time_gpu_ms(variant, scratch) if on_gpu else _time_cpu_ms(variant)
            times_ms[name].append(timed)
    return times_ms


def per_second(times_ms: list[float], count: float) -> list[float]:
    """Turn milliseconds per call into `count` units per second."""
    return [count * 1e3 / ms for ms in times_ms]


def rate_rows(
    times_ms: Mapping[str, list[float]], counts: Mapping[str, float], **row: str
) -> Iterator[Row]:
    """Rows of rates: for each provider and unit, `counts` of that unit done in each call.

    Args:
        times_ms: provider -> milliseconds of each repeat.
        counts: unit, such as "records/s" -> how many a call does.
        row: the other arguments of `make_row`.
    """
    for provider, ms in times_ms.items():
        for unit, count in counts.items():
            yield make_row(provider=provider, unit=unit, values=per_second(ms, count), **row)


def measure_peaks(device: str, *, repeats: int = 20) -> list[Row]:
    """Measure bf16 matrix product and copy bandwidth, the limits of everything else.

    Args:
        device: "cpu" or "cuda".
        repeats: timed calls of each.
    """
    size, num_bytes = _MATMUL_SIZE[device], _COPY_BYTES[device]
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 255, (num_bytes,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    calls = {"matmul": lambda: a @ b, "copy": lambda: target.copy_(source)}
    times = time_interleaved(calls, device=device, repeats=repeats)
    matmul = {"case": "matmul_peak", "metric": "throughput", "shape": f"{size}x{size}x{size} bf16"}
    copy = {"case": "copy_bandwidth", "metric": "bandwidth"}
    copy["shape"] = f"{num_bytes >> 20} MiB read + written"
    flops, moved = {"TFLOP/s": 2 * size**3 / 1e12}, {"GB/s": 2 * num_bytes / 1e9}
    return [
        *rate_rows({"torch": times["matmul"]}, flops, device=device, **matmul),
        *rate_rows({"torch": times["copy"]}, moved, device=device, **copy),
    ]


def _time_cpu_ms(call: Callable[[], Any]) -> float:
    start_ns = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start_ns) / 1e6


def _time_gpu_ms(call: Callable[[], Any], scratch: Tensor | None) -> float:
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    if scratch is not None:
        scratch.fill_(1)  # keeps the GPU busy while the call is queued: no launch latency is timed
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
