"""What a stream of batches costs: records a second, cores, memory."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

Epoch = Callable[[], Iterator[int]]  # starts an epoch; yields the number of records of each batch


@dataclass(frozen=True, kw_only=True)
class Use:
    """Measured use of the machine.

    Attributes:
        records_per_s: one number per round.
        cores: processor time over wall time, workers included; NaN where /proc is missing.
        memory_gib: anonymous and shared memory of process and workers beyond what was there
            before, page cache left out; NaN where /proc is missing.
    """

    records_per_s: tuple[float, ...]
    cores: float
    memory_gib: float


def measure(
    epoch: Epoch,
    *,
    device: str = "cpu",
    seconds: float = 2.0,
    rounds: int = 5,
    before_round: Callable[[], None] | None = None,
) -> Use:
    """Drain epochs for some rounds after one untimed epoch.

    Args:
        epoch: starts an epoch.
        device: "cpu" or "cuda", synchronised at the end of a round.
        seconds: a round ends with the first epoch that ends after so long.
        rounds: number of repeats.
        before_round: called before each round, out of the clock; a cold-cache round is one epoch.
    """
    memory_before = _memory_bytes()
    if before_round is None:
        _drain(epoch, device)
    rates: list[float] = []
    cpu_s, wall_s = 0.0, 0.0
    for _ in range(rounds):
        if before_round is not None:
            before_round()
        cpu_start, start = _cpu_seconds(), time.perf_counter()
        count, elapsed = 0, 0.0
        while elapsed < seconds:
            count += _drain(epoch, device)
            elapsed = time.perf_counter() - start
            if before_round is not None:
                break
        cpu_s += _cpu_seconds() - cpu_start
        wall_s += elapsed
        rates.append(count / elapsed)
    return Use(
        records_per_s=tuple(rates),
        cores=cpu_s / wall_s,
        memory_gib=(_memory_bytes() - memory_before) / 2**30,
    )


def drop_page_cache(folder: Path) -> None:
    """Ask the kernel to forget the files below a folder, so that the next read is cold."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _drain(epoch: Epoch, device: str) -> int:
    count = sum(epoch())
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return count


def _process_ids() -> list[int]:
    """This process and its workers."""
    workers = (child.pid for child in multiprocessing.active_children())
    return [os.getpid(), *(pid for pid in workers if pid is not None)]


def _cpu_seconds() -> float:
    """Processor time so far of this process and its living workers."""
    ticks = 0
    for pid in _process_ids():
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists():
            return float("nan")
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        ticks += int(user) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK")


def _memory_bytes() -> float:
    """Proportional anonymous and shared memory; file pages are cache and can be dropped."""
    kib = 0
    for pid in _process_ids():
        rollup = Path(f"/proc/{pid}/smaps_rollup")
        if not rollup.exists():
            return float("nan")
        for line in rollup.read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                kib += int(line.split()[1])
    return kib * 1024.0
