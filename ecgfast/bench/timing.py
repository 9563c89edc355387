"""Timing of variants side by side: CUDA events on a GPU, the monotonic clock on a CPU."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

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
