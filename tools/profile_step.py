"""Profile the pretraining step on random patches: a table of kernel time by class, and a trace.

    python tools/profile_step.py --out profile [--preset vit_large] [--variant ecgfast]

Writes step-profile.txt (both tables) and step-trace.json.gz (for chrome://tracing or Perfetto).
"""

import argparse
import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ecgfast import log
from ecgfast.bench.rows import device_name
from ecgfast.bench.step import VARIANTS, Step, build_step
from ecgfast.config import load_config
from ecgfast.train.distributed import join

NUM_STEPS, NUM_WARMUP, NUM_KERNELS = 3, 4, 25

# The first pattern that a name matches decides: "flash" comes before the "gemm" inside its name.
CLASSES = {
    "communication": r"nccl|all_?gather|reduce_?scatter|all_?reduce",
    "weight copies": r"split_with_sizes|chunk_cat",
    "optimizer": r"multi_tensor|foreach|adam",
    "attention": r"flash|fmha|sdpa|attention|cunn_softmax|softmax_warp",
    "ecgfast ops": r"ecgfast::",
    "GEMM": r"gemm|gemv|cutlass|nvjet|xmma|cublas|splitkreduce|aten::(addmm|mm|bmm)\b",
    "reduce, norm": r"triton_(red|per)|reduce|layer_?norm|layernorm|aten::(sum|mean)\b",
    "elementwise": r"triton|elementwise|vectorized|copy|memcpy|memset|fill|cat|pad|aten::",
    "other": "",
}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One interval of device work; `name` starts with the operator for ecgfast's own kernels."""

    name: str
    start_us: float
    duration_us: float

    @property
    def end_us(self) -> float:
        """When it ended."""
        return self.start_us + self.duration_us


@dataclass(frozen=True, kw_only=True)
class Share:
    """Time of one class or kernel per step."""

    name: str
    ms_per_step: float
    percent: float
    launches_per_step: float


def classify(kernel_name: str) -> str:
    """Class of a kernel by its name."""
    return next(name for name, part in CLASSES.items() if re.search(part, kernel_name, re.I))


def read_trace(path: Path) -> list[Kernel]:
    """Kernels of a chrome trace (.json or .json.gz) that the profiler exported.

    A trace without GPU work, from a CPU, gives its operators' own times instead.
    """
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    events = [e for e in json.loads(raw)["traceEvents"] if e.get("ph") == "X"]
    calls = [e for e in events if e.get("cat") == "cpu_op"]
    operators = {e.get("args", {}).get("External id"): e["name"] for e in calls}
    kernels = []
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            # Triton kernels of several operators share short names: the operator differs
            operator = operators.get(event.get("args", {}).get("External id", -1), "")
            prefix = f"{operator} " if operator.startswith("ecgfast::") else ""
            kernels.append(
                Kernel(
                    name=prefix + event["name"],
                    start_us=float(event["ts"]),
                    duration_us=float(event["dur"]),
                )
            )
    by_thread: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for event in calls:
        by_thread[event.get("tid")].append(event)
    return kernels or [kernel for thread in by_thread.values() for kernel in _own_times(thread)]


def _own_times(events: list[dict[str, Any]]) -> list[Kernel]:
    """Cut nested operators of a thread into stretches: the innermost one owns each."""
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


def span_ms(kernels: Sequence[Kernel]) -> float:
    """Milliseconds from the first kernel's start to the last one's end."""
    return (max(k.end_us for k in kernels) - min(k.start_us for k in kernels)) / 1e3


def shares_by_class(kernels: Sequence[Kernel], num_steps: int) -> list[Share]:
    """Split the traced time into classes, largest first; idle is time without any kernel.

    Kernels on several streams may overlap, so that the shares add up to more than 100 %.
    """
    busy_us, until_us = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda k: k.start_us):
        busy_us += max(0.0, kernel.end_us - max(kernel.start_us, until_us))
        until_us = max(until_us, kernel.end_us)
    idle_us = span_ms(kernels) * 1e3 - busy_us
    return _shares(kernels, num_steps, [classify(k.name) for k in kernels], {"idle": idle_us})


def shares_by_kernel(kernels: Sequence[Kernel], num_steps: int) -> list[Share]:
    """Split the traced time into kernels, largest first."""
    return _shares(kernels, num_steps, [k.name for k in kernels], {})


def _shares(
    kernels: Sequence[Kernel], num_steps: int, keys: Iterable[str], others_us: dict[str, float]
) -> list[Share]:
    times_us, counts = defaultdict(float, others_us), defaultdict(int)
    for kernel, key in zip(kernels, keys, strict=True):
        times_us[key] += kernel.duration_us
        counts[key] += 1
    shares = [
        Share(
            name=key,
            ms_per_step=time_us / 1e3 / num_steps,
            percent=time_us / 10 / span_ms(kernels),
            launches_per_step=counts[key] / num_steps,
        )
        for key, time_us in times_us.items()
    ]
    return sorted(shares, key=lambda share: -share.ms_per_step)


def trace(step: Step, path: Path) -> None:
    """Run a few steps and write the profiler's trace to `path`."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    for _ in range(NUM_WARMUP):
        step()
    with profile(activities=activities) as profiler:
        for _ in range(NUM_STEPS):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(path))


def table(shares: list[Share], title: str) -> str:
    """Render shares as text."""
    lines = [f"{title:<84} {'ms/step':>9} {'%':>6} {'launches':>9}"]
    lines += [
        f"{s.name[:84]:<84} {s.ms_per_step:9.3f} {s.percent:6.1f} {s.launches_per_step:9.1f}"
        for s in shares
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, profile, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("profile"))
    parser.add_argument("--preset", help="vit_large on a GPU, demo on a CPU")
    parser.add_argument("--microbatch", type=int, help="records; 256 on a GPU, 8 on a CPU")
    parser.add_argument("--variant", choices=VARIANTS, default="ecgfast")
    arguments = parser.parse_args()
    log.setup()
    on_gpu = torch.cuda.is_available()
    config = load_config(arguments.preset or ("vit_large" if on_gpu else "demo"))
    microbatch = arguments.microbatch or (256 if on_gpu else 8)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "step-trace.json.gz"
    with join("cuda" if on_gpu else "cpu", mesh_of_one=True) as ranks:
        settings = VARIANTS[arguments.variant]
        trace(build_step(settings, config, ranks, microbatch=microbatch), path)
    kernels = read_trace(path)
    head = (
        f"{config.preset}, {microbatch} records, {arguments.variant}, "
        f"{device_name('cuda' if on_gpu else 'cpu')}, torch {torch.__version__}: "
        f"{span_ms(kernels) / NUM_STEPS:.2f} ms per step"
    )
    by_kernel = shares_by_kernel(kernels, NUM_STEPS)[:NUM_KERNELS]
    text = "\n\n".join(
        (head, table(shares_by_class(kernels, NUM_STEPS), "class"), table(by_kernel, "kernel"))
    )
    (arguments.out / "step-profile.txt").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
