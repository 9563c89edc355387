"""What this machine can do at most: bf16 matrix product and copy."""

import torch

from ecgfast.bench.rows import Row, make_row
from ecgfast.bench.timing import per_second, time_interleaved

_COPY_BYTES = {"cuda": 2 << 30, "cpu": 64 << 20}
_MATMUL_SIZE = {"cuda": 8192, "cpu": 512}


def measure_peaks(device: str, *, repeats: int = 20) -> list[Row]:
    """Measure the matrix product peak and the copy bandwidth, the limits of everything else.

    Args:
        device: "cpu" or "cuda".
        repeats: timed calls of each.
    """
    size = _MATMUL_SIZE[device]
    num_bytes = _COPY_BYTES[device]
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randint(0, 255, (num_bytes,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    times = time_interleaved(
        {"matmul": lambda: a @ b, "copy": lambda: target.copy_(source)},
        device=device,
        repeats=repeats,
    )
    tflops = per_second(times["matmul"], 2 * size**3 / 1e12)
    gigabytes = per_second(times["copy"], 2 * num_bytes / 1e9)
    return [
        make_row(
            case="matmul_peak",
            provider="torch",
            values=tflops,
            metric="throughput",
            unit="TFLOP/s",
            shape=f"{size}x{size}x{size} bf16",
            device=device,
        ),
        make_row(
            case="copy_bandwidth",
            provider="torch",
            values=gigabytes,
            metric="bandwidth",
            unit="GB/s",
            shape=f"{num_bytes >> 20} MiB read + written",
            device=device,
        ),
    ]
