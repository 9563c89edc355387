"""Profile the pretraining step on random patches: a table of kernel time by class, and a trace.

    python tools/profile_step.py --out profile [--preset vit_large] [--variant ecgfast]

Writes step-profile.txt (classes of kernels on a GPU, then PyTorch's own table) and
step-trace.json.gz (for chrome://tracing or Perfetto).
"""

import argparse
import gzip
import json
import re
from collections import defaultdict
from pathlib import Path

import torch
from torch.profiler import profile

from ecgfast import log
from ecgfast.bench.measuring import device_name
from ecgfast.bench.step import VARIANTS, Step, build_step
from ecgfast.train.distributed import join

NUM_STEPS, NUM_WARMUP, NUM_KERNELS = 3, 4, 25

# The first pattern that a name matches decides: "flash" comes before the "gemm" inside its name.
CLASSES = {
    "communication": r"nccl|all_?gather|reduce_?scatter|all_?reduce",
    "weight copies": r"split_with_sizes|chunk_cat",
    "optimizer": r"multi_tensor|foreach|adam|^(step|squares)_kernel",
    "attention": r"flash|fmha|sdpa|attention|softmax_warp|^backward_(one|tiles)|halves",
    "ecgfast ops": r"ecgfast::|^[a-z_]+_kernel$",  # bare names where a graph is replayed
    "GEMM": r"gemm|gemv|cutlass|nvjet|xmma|cublas|splitkreduce|aten::(addmm|mm|bmm)\b",
    "reduce, norm": r"triton_(red|per)|reduce|layer_?norm|layernorm|aten::(sum|mean)\b",
    "elementwise": r"triton|elementwise|vectorized|copy|memcpy|memset|fill|cat|pad|aten::",
    "other": "",
}


def classify(kernel_name: str) -> str:
    """Class of a kernel by its name."""
    return next(name for name, part in CLASSES.items() if re.search(part, kernel_name, re.I))


def read_trace(path: Path) -> list[tuple[str, float, float]]:
    """Name, start and end (microseconds) of each kernel, copy and fill of a profiler's trace."""
    events = [
        e for e in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"] if "dur" in e
    ]
    operators = {e["args"].get("External id"): e["name"] for e in events if e["cat"] == "cpu_op"}
    kernels = []
    for event in events:
        if event["cat"] in ("kernel", "gpu_memcpy", "gpu_memset"):
            # Triton kernels of several operators share short names: the operator differs
            operator = operators.get(event["args"].get("External id", -1), "")
            prefix = f"{operator} " if operator.startswith("ecgfast::") else ""
            kernels.append((prefix + event["name"], event["ts"], event["ts"] + event["dur"]))
    return kernels


def table(kernels: list[tuple[str, float, float]], num_steps: int) -> str:
    """Milliseconds and launches of each class per step, largest first; idle is time without any.

    Kernels on several streams may overlap, so that the shares add up to more than 100 %.

    Args:
        kernels: name, start and end of each, microseconds.
        num_steps: that they are of.
    """
    times_us, counts = defaultdict[str, float](float), defaultdict[str, int](int)
    first = until = min(start for _, start, _ in kernels)
    for name, start, end in sorted(kernels, key=lambda kernel: kernel[1]):
        times_us["idle"] += max(0.0, start - until)
        until = max(until, end)
        times_us[classify(name)] += end - start
        counts[classify(name)] += 1
    lines = [f"{(until - first) / 1e3 / num_steps:.2f} ms per step\n"]
    lines.append(f"{'class':<16} {'ms/step':>9} {'%':>6} {'launches':>9}")
    for name, time_us in sorted(times_us.items(), key=lambda item: -item[1]):
        share, launches = 100 * time_us / (until - first), counts[name] / num_steps
        lines.append(f"{name:<16} {time_us / 1e3 / num_steps:9.3f} {share:6.1f} {launches:9.1f}")
    return "\n".join(lines)


def trace(step: Step, path: Path) -> str:
    """Run a few steps under the profiler, write its trace, and return the tables."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for _ in range(NUM_WARMUP):
        step()
    with profile() as profiler:
        for _ in range(NUM_STEPS):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(path))
    order = {"sort_by": f"self_{device}_time_total", "row_limit": NUM_KERNELS}
    classes = table(read_trace(path), NUM_STEPS) if device == "cuda" else "operators of a CPU"
    return f"{classes}\n\n{profiler.key_averages().table(**order)}"


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
        settings = VARIANTS[args.variant]
        step = build_step(settings, args.preset, ranks, microbatch=args.microbatch)
        tables = trace(step, args.out / "step-trace.json.gz")
    what = f"{args.preset}, {args.microbatch} records, {args.variant}, {device_name(device)}"
    text = f"{what}, torch {torch.__version__}: {tables}\n"
    (args.out / "step-profile.txt").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
