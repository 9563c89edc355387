"""Profile the pretraining step on random patches: a table of kernel time by class, and a trace.

    python tools/profile_step.py --out profile [--preset vit_large] [--variant ecgfast]

Writes step-profile.txt (both tables) and step-trace.json.gz (for chrome://tracing or Perfetto).
"""

import argparse
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ecgfast import log
from ecgfast.bench.kernel_classes import (
    Share,
    read_trace,
    shares_by_class,
    shares_by_kernel,
    span_ms,
)
from ecgfast.bench.rows import device_name
from ecgfast.bench.step import VARIANTS
from ecgfast.bench.step_variants import Step, Variant, build_step
from ecgfast.config import load_config
from ecgfast.train.distributed import join

NUM_STEPS = 3
NUM_WARMUP = 4
NUM_KERNELS = 25


def trace(step: Step, path: Path) -> None:
    """Run a few steps and write the profiler's trace to `path`."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    for _ in range(NUM_WARMUP):
        step()
    with profile(activities=activities) as profiler:
        for _ in range(NUM_STEPS):
            step()
        if torch.cuda.is_available():
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
    variants = {v.name: v for v in (Variant(compiled=torch.cuda.is_available()), *VARIANTS)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("profile"))
    parser.add_argument("--preset", help="vit_large on a GPU, demo on a CPU")
    parser.add_argument("--microbatch", type=int, help="records; 256 on a GPU, 8 on a CPU")
    parser.add_argument("--variant", choices=variants, default="ecgfast")
    arguments = parser.parse_args()
    log.setup()
    on_gpu = torch.cuda.is_available()
    config = load_config(arguments.preset or ("vit_large" if on_gpu else "demo"))
    microbatch = arguments.microbatch or (256 if on_gpu else 8)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "step-trace.json.gz"
    device = "cuda" if on_gpu else "cpu"
    with join(device, mesh_of_one=True) as ranks:
        step = build_step(variants[arguments.variant], config, ranks, microbatch=microbatch)
        trace(step, path)
    kernels = read_trace(path)
    head = (
        f"{config.preset}, {microbatch} records, {arguments.variant}, {device_name(device)}, "
        f"torch {torch.__version__}: {span_ms(kernels) / NUM_STEPS:.2f} ms per step"
    )
    by_kernel = shares_by_kernel(kernels, NUM_STEPS)[:NUM_KERNELS]
    text = "\n\n".join(
        (head, table(shares_by_class(kernels, NUM_STEPS), "class"), table(by_kernel, "kernel"))
    )
    (arguments.out / "step-profile.txt").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
