"""Profile the pretraining step on random patches: PyTorch's table of kernels, and a trace.

    python tools/profile_step.py --out profile [--variant ecgfast]

ViT-Large on a GPU, the demo's model on a CPU. Writes a trace for Perfetto, and a table that begins
with the time of all steps: what it is above the last line, "Self CUDA time total", was idle.
"""

import time
from pathlib import Path

import torch
import typer
from torch.profiler import profile

from ecgfast.bench.step import VARIANTS, build_step
from ecgfast.train.distributed import join


def main(out: Path = Path("profile"), variant: str = "ecgfast") -> None:
    """Profile, write and print."""
    if variant not in VARIANTS:
        raise SystemExit(f"error: unknown variant {variant!r}; allowed: {', '.join(VARIANTS)}")
    on_gpu = torch.cuda.is_available()
    device, preset, records = ("cuda", "vit_large", 256) if on_gpu else ("cpu", "demo", 8)
    out.mkdir(parents=True, exist_ok=True)
    with join(device, mesh_of_one=True) as ranks:
        step = build_step(VARIANTS[variant], preset, ranks, microbatch=records)
        _ = [step().item() for _ in range(4)]  # compiled, allocated, and done
        with profile() as profiler:
            began = time.perf_counter()
            _ = [step() for _ in range(3)]
            torch.get_device_module(device).synchronize()
            wall_ms = 1e3 * (time.perf_counter() - began)
    profiler.export_chrome_trace(str(out / "step-trace.json.gz"))
    text = f"{preset}, {records} records, {variant}: 3 steps in {wall_ms:.2f} ms\n\n"
    text += profiler.key_averages().table(f"self_{device}_time_total", row_limit=40)
    (out / "step-profile.txt").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    typer.run(main)
