"""Rates of a run between two log lines: records/s, MFU, share of waiting, memory, time left."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Dense bf16 TFLOP/s of the vendors' data sheets, by a part of the device's name.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L4": 121.0,
}


def peak_tflops(device: torch.device) -> float | None:
    """Return a device's dense bf16 peak, None where the table has none."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


class Meter:
    """Measures time and records since the last reading.

    Args:
        device: whose memory and peak count.
        world_size: ranks that share the work.
        flops_per_record: of a training step, None where no formula holds.
    """

    def __init__(
        self, device: torch.device, world_size: int, flops_per_record: float | None
    ) -> None:
        self._device = device
        peak = peak_tflops(device)
        self._records_per_s_at_peak = (
            peak * 1e12 * world_size / flops_per_record if peak and flops_per_record else None
        )
        self.restart()

    def restart(self) -> None:
        """Begin a new interval: what lay between, such as an evaluation, does not count."""
        self._start = time.perf_counter()
        self._records = 0
        self._steps = 0
        self._waited_s = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside is waiting for records: an upper bound, as a GPU may still be busy."""
        start = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start

    def count_step(self, num_records: int) -> None:
        """Add a step over `num_records` of all ranks."""
        self._records += num_records
        self._steps += 1

    def read(self, *, steps_left: int) -> dict[str, float | None]:
        """Return the interval's rates and begin a new one; the device must be idle.

        Args:
            steps_left: for the time to the end.
        """
        elapsed_s = max(time.perf_counter() - self._start, 1e-9)
        records_per_s = self._records / elapsed_s
        full = self._records_per_s_at_peak
        rates = {
            "records_per_s": records_per_s,
            "mfu_pct": 100 * records_per_s / full if full else None,
            "data_wait_pct": 100 * self._waited_s / elapsed_s,
            "mem_peak_gib": peak_memory_gib(self._device),
            "eta_s": steps_left * elapsed_s / max(self._steps, 1),
        }
        self.restart()
        return rates


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory held so far: the GPU's, or this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def console_line(metrics: dict[str, float | None], *, total_steps: int) -> str:
    """Render a metrics row for people; absent values are left out."""
    shown = [f"step {metrics['step']}/{total_steps}"]
    formats = (
        ("epoch", "epoch {:.2f}"),
        ("loss", "loss {:.4f}"),
        ("val_loss", "val_loss {:.4f}"),
        ("lr", "lr {:.2e}"),
        ("grad_norm", "grad {:.2f}"),
        ("records_per_s", "{:,.0f} records/s"),
        ("mfu_pct", "mfu {:.1f} %"),
        ("data_wait_pct", "wait {:.1f} %"),
        ("mem_peak_gib", "mem {:.1f} GiB"),
    )
    for key, pattern in formats:
        if (value := metrics.get(key)) is not None:
            shown.append(pattern.format(value))
    if (eta := metrics.get("eta_s")) is not None:
        hours, rest = divmod(int(eta), 3600)
        shown.append(f"left {hours}:{rest // 60:02d}:{rest % 60:02d}")
    return "  ".join(shown)
