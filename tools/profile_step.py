"""Profile the pretraining step on random patches: PyTorch's table of kernels, and a trace.

    python tools/profile_step.py --out profile [--variant ecgfast]

ViT-Large on a GPU, the demo's model on a CPU. Writes a trace for Perfetto, and a table that begins
with the time of all steps: what it is above the last line, "Self CUDA time total", was idle.
"""

import argparse
import time
from pathlib import Path

import torch
from torch.profiler import profile

from ecgfast.bench.step import VARIANTS, build_step
from ecgfast.train.distributed import join


def main() -> None:
    """Parse the command line, profile, write and print."""
    on_gpu = torch.cuda.is_available()
    device, preset, records = ("cuda", "vit_large", 256) if on_gpu else ("cpu", "demo", 8)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("profile"))
    parser.add_argument("--variant", choices=VARIANTS, default="ecgfast")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with join(device, mesh_of_one=True) as ranks:
        step = build_step(VARIANTS[args.variant], preset, ranks, microbatch=records)
        _ = [step().item() for _ in range(4)]  # compiled, allocated, and done
        with profile() as profiler:
            began = time.perf_counter()
            _ = [step() for _ in range(3)]
            torch.get_device_module(device).synchronize()
            wall_ms = 1e3 * (time.perf_counter() - began)
    profiler.export_chrome_trace(str(args.out / "step-trace.json.gz"))
    text = f"{preset}, {records} records, {args.variant}: 3 steps in {wall_ms:.2f} ms\n\n"
    text += profiler.key_averages().table(f"self_{device}_time_total", row_limit=40)
    (args.out / "step-profile.txt").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
