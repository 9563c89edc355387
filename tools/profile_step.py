"""Profile the pretraining step on random patches: PyTorch's table of kernels, and a trace.

    python tools/profile_step.py --out profile [--preset vit_large] [--variant ecgfast]

Writes step-profile.txt and step-trace.json.gz (for chrome://tracing or Perfetto). The table is of
operators and kernels by their own time; above it stand the time of a step and the share of it in
which no kernel ran. On a CPU, operators take the place of kernels.
"""

import argparse
import gzip
import json
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.profiler import profile

from ecgfast import log
from ecgfast.bench.measuring import device_name
from ecgfast.bench.step import VARIANTS, Step, build_step
from ecgfast.train.distributed import join

NUM_STEPS, NUM_WARMUP, NUM_KERNELS = 3, 4, 40


def idle_us(intervals: Iterable[tuple[float, float]]) -> float:
    """Time between the first start and the last end that no interval covers, in their unit."""
    idle, until = 0.0, float("inf")
    for start, end in sorted(intervals):
        idle += max(0.0, start - until)
        until = end if until == float("inf") else max(until, end)
    return idle


def trace(step: Step, device: str, path: Path) -> str:
    """Run a few steps under the profiler, write its trace, and return its table."""
    for _ in range(NUM_WARMUP):
        step()
    with profile() as profiler:
        began = time.perf_counter()
        for _ in range(NUM_STEPS):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        wall_us = 1e6 * (time.perf_counter() - began)
    profiler.export_chrome_trace(str(path))
    kinds = ("kernel", "gpu_memcpy", "gpu_memset") if device == "cuda" else ("cpu_op",)
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    spans = ((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") in kinds)
    head = (
        f"{wall_us / 1e3 / NUM_STEPS:.2f} ms per step, {100 * idle_us(spans) / wall_us:.1f} % idle"
    )
    order = {"sort_by": f"self_{device}_time_total", "row_limit": NUM_KERNELS}
    return f"{head}\n\n{profiler.key_averages().table(**order, max_name_column_width=80)}"


def main() -> None:
    """Parse the command line, profile, write and print."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    preset, records = ("vit_large", 256) if device == "cuda" else ("demo", 8)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("profile"))
    parser.add_argument("--preset", default=preset)
    parser.add_argument("--microbatch", type=int, default=records, help="records")
    parser.add_argument("--variant", choices=VARIANTS, default="ecgfast")
    args = parser.parse_args()
    log.setup()
    args.out.mkdir(parents=True, exist_ok=True)
    with join(device, mesh_of_one=True) as ranks:
        step = build_step(VARIANTS[args.variant], args.preset, ranks, microbatch=args.microbatch)
        table = trace(step, device, args.out / "step-trace.json.gz")
    what = f"{args.preset}, {args.microbatch} records, {args.variant}, {device_name(device)}"
    text = f"{what}, torch {torch.__version__}: {table}\n"
    (args.out / "step-profile.txt").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
