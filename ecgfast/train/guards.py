"""What watches a run: rates, non-finite steps, memory, starving loaders, and signals to stop."""

import gc
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from ecgfast import log
from ecgfast.errors import EcgfastError
from ecgfast.store.durable import RESUME, explained
from ecgfast.train.distributed import Ranks

ROLLBACK_AFTER = 10  # skipped steps in a row
MAX_ROLLBACKS = 3
STARVING_PCT = 5.0
STARVING_READINGS = 3  # in a row: one alone is a cold disk, or a save
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


class NonFiniteGuard:
    """Counts skipped steps on the device, and decides at log steps what to do.

    Policy: the optimizer skips a step whose loss or gradient is not finite. Ten in a row mean that
    the weights themselves are lost: they and the moments go back to the last checkpoint, while
    records and schedule continue, so that the same records do not come again. The fourth time
    ends the run.

    Args:
        device: of the training.
        is_trial: whether patience ends it instead of the fourth time.
    """

    def __init__(self, device: torch.device, *, is_trial: bool = False) -> None:
        self._is_trial = is_trial
        self.skipped = torch.zeros((), device=device)
        self.in_a_row = torch.zeros((), device=device)
        self._said = 0
        self._rollbacks = 0

    def count(self, skipped: Tensor) -> None:
        """Add a step's flag (fp32 scalar, 1 = skipped) without waiting for the device."""
        self.skipped += skipped
        self.in_a_row.add_(1).mul_(skipped)

    def resumed(self) -> None:
        """Count the skipped steps of a checkpoint as logged already."""
        self._said = int(self.skipped.item())

    def wants_rollback(self, skipped: float, in_a_row: float, *, step: int) -> bool:
        """Judge the counters' values, read at a log step.

        Raises:
            EcgfastError: rolling back did not help.
        """
        if skipped > self._said:
            new = int(skipped) - self._said
            log.warning(f"step {step}: {new} steps skipped, their loss or gradient was not finite")
            self._said = int(skipped)
        if in_a_row < ROLLBACK_AFTER:
            return False
        self._rollbacks += 1
        if self._rollbacks > MAX_ROLLBACKS and not self._is_trial:
            raise EcgfastError(
                f"step {step}: loss or gradient not finite for {int(in_a_row)} steps, after "
                f"{MAX_ROLLBACKS} returns to the last checkpoint; lower optim.base_lr, set "
                "train.clip_norm=1.0, or look for damaged records with `ecgfast verify`"
            )
        self.in_a_row.zero_()
        return True


@contextmanager
def clear_errors(run: Path, ranks: Ranks, *, microbatch: int) -> Iterator[None]:
    """Say in one line what a full GPU or a full disk means for a run, and what to change.

    Args:
        run: its folder.
        ranks: this process among them.
        microbatch: records per forward pass.
    """
    try:
        with explained(run, again=RESUME):
            yield
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(ranks, microbatch) from error


def _out_of_memory(ranks: Ranks, microbatch: int) -> EcgfastError:
    allocated = torch.cuda.max_memory_allocated(ranks.device) / 2**30
    free, total = (value / 2**30 for value in torch.cuda.mem_get_info(ranks.device))
    smaller = max(1, microbatch // 2)
    return EcgfastError(
        f"GPU memory ran out with train.microbatch={microbatch}: {allocated:.1f} GiB allocated at "
        f"most, {free:.1f} of {total:.1f} GiB free now; use --set train.microbatch={smaller} (same "
        "result, smaller pieces), more GPUs, or --set data.engine=cpu if the store is resident"
    )


class StarvationGuard:
    """Warns once when the model keeps waiting for the loader."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def check(self, data_wait_pct: float, *, engine: str) -> None:
        """Look at the share of time spent waiting for records, in percent."""
        if self._in_a_row >= STARVING_READINGS:
            return
        self._in_a_row = self._in_a_row + 1 if data_wait_pct > STARVING_PCT else 0
        if self._in_a_row == STARVING_READINGS:
            log.warning(
                f"the model waits {data_wait_pct:.0f} % of the time for records "
                f"(data.engine={engine}); give it more data.num_threads, a faster disk, or on a "
                "GPU data.engine=resident"
            )


STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """While entered, SIGTERM, SIGUSR1 and SIGINT ask for a stop instead of ending the process.

    When the body has saved and left, the signal does what it did before: it ends the process, so
    that SLURM and shells see why, or is a KeyboardInterrupt. A second signal does so at once.

    Args:
        ranks: they agree on the step after which to stop, one step late, so that nobody waits.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._received = 0
        self._agreed = 0
        self._group = ranks.side_group() if ranks.world_size > 1 else None
        self._vote: tuple[torch.Tensor, Any] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python's rule for handlers
            self._before = {s: signal.signal(s, self._receive) for s in STOPPING}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._vote is not None:
            self._vote[1].wait()
            self._vote = None

    def agreed(self) -> bool:
        """Whether every rank shall stop now; call it once per step on every rank."""
        if self._ranks.world_size == 1:
            self._agreed = self._received
            return self._agreed != 0
        if self._vote is not None:
            numbers, work = self._vote
            work.wait()  # begun a step ago
            self._agreed = int(numbers.numpy()[0])
        numbers = torch.tensor([self._received])
        work = dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._vote = (numbers, work)
        return self._agreed != 0

    def pass_on(self) -> None:
        """Let the agreed signal, if there is one, take its usual way, when all is saved.

        Raises:
            KeyboardInterrupt: it was Ctrl-C, or a notebook's interrupt.
            EcgfastError: the process goes on in spite of it.
        """
        if self._agreed:
            signal.raise_signal(self._agreed)
            name = signal.Signals(self._agreed).name
            raise EcgfastError(f"{name} stopped the run before its end; resume it (--resume)")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            alone = self._ranks.world_size == 1  # else other ranks would wait for this one
            signal.signal(number, self._before[signal.Signals(number)] if alone else signal.SIG_DFL)
            signal.raise_signal(number)
        self._received = number
        log.warning(
            f"{signal.Signals(number).name}: stopping after this step; --resume continues the run"
        )


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
        ("probe_auroc", "probe AUROC {:.3f}"),
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


@contextmanager
def frozen_garbage_collector() -> Iterator[None]:
    """No collection in a step: a full one over a compiled model's objects takes 0.1 s and more."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
