"""Where a step's time goes, by class of kernel, from a PyTorch profiler trace."""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IDLE = "idle"
OTHER = "other"

# The first pattern that a name matches decides: "flash" comes before the "gemm" inside its name.
_CLASSES = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("communication", r"nccl|all_?gather|reduce_?scatter|all_?reduce"),
        ("weight copies", r"split_with_sizes|chunk_cat"),
        ("optimizer", r"multi_tensor|foreach|adam"),
        ("attention", r"flash|fmha|sdpa|attention|cunn_softmax|softmax_warp"),
        ("ecgfast ops", r"ecgfast::"),
        ("GEMM", r"gemm|gemv|cutlass|nvjet|xmma|cublas|splitkreduce|aten::(addmm|mm|bmm)\b"),
        ("reduce, norm", r"triton_(red|per)|reduce|layer_?norm|layernorm|aten::(sum|mean)\b"),
        ("elementwise", r"triton|elementwise|vectorized|copy|memcpy|memset|fill|cat|pad|aten::"),
    )
)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One interval of device work; `name` starts with the operator for ecgfast's own kernels."""

    name: str
    start_us: float
    duration_us: float


@dataclass(frozen=True, kw_only=True)
class Share:
    """Time of one class or kernel per step."""

    name: str
    ms_per_step: float
    percent: float
    launches_per_step: float


def classify(kernel_name: str) -> str:
    """Class of a kernel by its name; `OTHER` where no pattern fits."""
    return next((name for name, pattern in _CLASSES if pattern.search(kernel_name)), OTHER)


def read_trace(path: Path) -> list[Kernel]:
    """Kernels of a chrome trace (.json or .json.gz) that the profiler exported.

    A trace without GPU work, from a CPU, gives its operators' own times instead.
    """
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    events = [e for e in json.loads(raw)["traceEvents"] if e.get("ph") == "X"]
    operators = {
        e["args"]["External id"]: e["name"]
        for e in events
        if e.get("cat") == "cpu_op" and "External id" in e.get("args", {})
    }
    kernels = [
        _kernel(event, operators)
        for event in events
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    ]
    return kernels or _own_times(e for e in events if e.get("cat") == "cpu_op")


def shares_by_class(kernels: Sequence[Kernel], num_steps: int) -> list[Share]:
    """Split the traced time into classes, largest first; idle is time without any kernel.

    Kernels on several streams may overlap, so that the shares add up to more than 100 %.
    """
    return _shares(kernels, num_steps, [classify(k.name) for k in kernels], with_idle=True)


def shares_by_kernel(kernels: Sequence[Kernel], num_steps: int) -> list[Share]:
    """Split the traced time into kernels, largest first."""
    return _shares(kernels, num_steps, [k.name for k in kernels], with_idle=False)


def span_ms(kernels: Sequence[Kernel]) -> float:
    """Milliseconds from the first kernel's start to the last one's end."""
    return (max(map(_end_us, kernels)) - min(k.start_us for k in kernels)) / 1e3


def _shares(
    kernels: Sequence[Kernel], num_steps: int, keys: Sequence[str], *, with_idle: bool
) -> list[Share]:
    times_us: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for kernel, key in zip(kernels, keys, strict=True):
        times_us[key] += kernel.duration_us
        counts[key] += 1
    span_us = span_ms(kernels) * 1e3
    if with_idle:
        times_us[IDLE] = span_us - _busy_us(kernels)
    shares = [
        Share(
            name=key,
            ms_per_step=time_us / 1e3 / num_steps,
            percent=100 * time_us / span_us,
            launches_per_step=counts[key] / num_steps,
        )
        for key, time_us in times_us.items()
    ]
    return sorted(shares, key=lambda share: -share.ms_per_step)


def _busy_us(kernels: Iterable[Kernel]) -> float:
    """Length of the union of all intervals."""
    busy_us, until_us = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda k: k.start_us):
        busy_us += max(0.0, _end_us(kernel) - max(kernel.start_us, until_us))
        until_us = max(until_us, _end_us(kernel))
    return busy_us


def _end_us(kernel: Kernel) -> float:
    return kernel.start_us + kernel.duration_us


def _kernel(event: dict[str, Any], operators: dict[int, str]) -> Kernel:
    # Triton kernels of several operators share short names: the operator tells them apart
    operator = operators.get(event.get("args", {}).get("External id", -1), "")
    prefix = f"{operator} " if operator.startswith("ecgfast::") else ""
    return Kernel(
        name=prefix + event["name"], start_us=float(event["ts"]), duration_us=float(event["dur"])
    )


def _own_times(events: Iterable[dict[str, Any]]) -> list[Kernel]:
    """Cut nested operators, per thread, into the stretches in which each runs itself."""
    by_thread: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        by_thread[event.get("tid")].append(event)
    return [kernel for thread in by_thread.values() for kernel in _own_times_of_thread(thread)]


def _own_times_of_thread(events: list[dict[str, Any]]) -> list[Kernel]:
    """Sweep over starts and ends: whatever operator is innermost owns the stretch."""
    events = [e for e in events if e["dur"] > 0]
    edges = [(e["ts"], 1, -e["dur"], e["name"]) for e in events]
    edges += [(e["ts"] + e["dur"], 0, 0.0, e["name"]) for e in events]
    stretches: list[Kernel] = []
    stack: list[str] = []
    since = 0.0
    for time, is_start, _, name in sorted(edges):
        if stack and time > since:
            stretches.append(Kernel(name=stack[-1], start_us=since, duration_us=time - since))
        since = time
        if is_start:
            stack.append(name)
        else:
            stack.pop()
    return stretches
