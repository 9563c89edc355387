"""The `loader` case: what a stream of batches costs: records/s, cores, memory, bytes read.

Every loader runs in a process of its own, in turns with the others: one epoch after its files have
left the page cache (POSIX_FADV_DONTNEED; a disk or a host below may still hold them), start of its
workers included, then rounds with all files in it. benchmarks/loader_peers.py adds loaders of
other formats, and real records.
"""

import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from ecgfast import log
from ecgfast.bench import Row, make_rows, peers_module
from ecgfast.convert import convert
from ecgfast.data.loader import Loader, build_loader
from ecgfast.errors import BackendUnavailableError
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.store import open_store
from ecgfast.vocabulary import EngineName

Epoch = Callable[[], Iterator[int]]  # starts an epoch; yields the number of records of each batch

_WARM_UP = 0.2  # of a round's seconds: workers start, buffers are allocated
OURS: dict[str, tuple[str, EngineName]] = {  # store and engine
    "ecgfast": ("store", "auto"),
    "ecgfast-none": ("store-none", "auto"),
    "ecgfast-cpu": ("store", "cpu"),
    "ecgfast-dali": ("store", "dali"),
}


class Round(NamedTuple):
    """What some seconds of loading used, workers included."""

    records: int  # that came
    wall_s: float
    cpu_s: float
    read_bytes: int  # that the disk delivered, 0 where the page cache had all

    @property
    def records_per_s(self) -> float:
        """Rate of the round."""
        return self.records / self.wall_s


class Trial(NamedTuple):
    """A loader to be measured."""

    provider: str  # in `OURS`, or a format of benchmarks/loader_peers.py
    work: Path  # folder of stores and formats
    workers: int  # threads of ours
    device: str
    batch_size: int = 256
    seconds: float = 1.0  # of a warm round


def measure_loader(device: str, *, num_records: int = 2048) -> Iterator[Row]:
    """Measure our engines on "cpu" or "cuda", on synthetic records: 2,048 are 246 MB of int16."""
    providers = [name for name in OURS if (name, device) != ("ecgfast-cpu", "cpu")]  # is `ecgfast`
    workers, size = (1, 2) if device == "cpu" else (8,), min(256, num_records)
    with tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as folder:
        work = Path(folder)
        write_cohort(work / "cohort", num_records=num_records, num_sites=1, seed=0)
        write_stores(work)
        trials = [Trial(name, work, n, device, size) for n in workers for name in providers]
        yield from measure_trials(trials, f"{num_records} synthetic")


def write_stores(work: Path) -> None:
    """Convert the folder `cohort` below `work` to the stores of `OURS`."""
    convert([work / "cohort"], work / "store")
    convert([work / "store"], work / "store-none", codec="none", workers=1)


def measure_trials(trials: Sequence[Trial], what: str, *, turns: int = 1) -> Iterator[Row]:
    """Measure loaders in turns; one that cannot run here is logged and has no rows.

    Args:
        trials: in the order in which they take turns.
        what: is loaded, for the rows.
        turns: of one cold and two warm rounds each; rows come in the last one.
    """
    found: dict[tuple[Trial, str], list[Round]] = {}
    for turn, trial in itertools.product(range(turns), trials):
        try:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # nobody's memory inherited
                (cold, *warm), memory = pool.submit(run_trial, trial).result()
        except BackendUnavailableError as error:
            log.warning(f"loader: {trial.provider} is left out: {error}")
            continue
        for cache, new in (("cold", [cold]), ("warm", warm)):
            rounds = found.setdefault((trial, cache), [])
            rounds += new
            if turn == turns - 1:
                shape = f"{trial.workers} workers, batch {trial.batch_size}, {cache}, {what}"
                yield from use_rows(trial.provider, shape, rounds, memory, trial.device)


def run_trial(trial: Trial) -> tuple[list[Round], int]:
    """Measure a loader in this process.

    Returns:
        a cold round and two warm ones; bytes of memory at their end, beyond those of before.
    """
    torch.set_num_threads(1)
    before = memory_bytes()
    name, engine = OURS.get(trial.provider, (trial.provider, None))
    if engine is None:
        epoch = peers_module("loader_peers").checked_epoch(trial)
    else:
        options: dict[str, Any] = {"device": trial.device, "num_threads": trial.workers}
        options |= {"batch_size": trial.batch_size, "engine": engine}
        epoch = epoch_of(build_loader(open_store(trial.work / name), **options))
    os.sync()
    files = [path for path in (trial.work / name).rglob("*") if path.is_file()]
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cold = measure_round(epoch(), trial.device)
    for path in files:
        path.read_bytes()  # into the page cache, where it fits
    warm = measure(epoch, device=trial.device, seconds=trial.seconds, rounds=2)
    return [cold, *warm], memory_bytes() - before


def epoch_of(loader: Loader) -> Epoch:
    """Adapt a loader to `measure`."""
    return lambda: (len(batch.record_index) for batch in loader)


def use_rows(
    provider: str, shape: str, rounds: Sequence[Round], memory: int, device: str
) -> Iterator[Row]:
    """Rows of what one provider used in all rounds; memory in bytes."""
    total = Round(*map(sum, zip(*rounds, strict=True)))
    numbers = {
        ("throughput", "records/s"): [one.records_per_s for one in rounds],
        ("cores", "cores"): [total.cpu_s / total.wall_s],
        ("throughput_of_a_core", "records/s"): [total.records / total.cpu_s],
        ("memory", "GiB"): [memory / 2**30],
        ("read", "B/record"): [total.read_bytes / total.records],
    }
    yield from make_rows(numbers, case="loader", provider=provider, shape=shape, device=device)


def measure(
    epoch: Epoch, *, device: str = "cpu", seconds: float = 2.0, rounds: int = 5
) -> list[Round]:
    """Time an endless stream of epochs in rounds, each up to the first batch after `seconds`."""
    batches = itertools.chain.from_iterable(epoch() for _ in itertools.count())
    measure_round(batches, device, _WARM_UP * seconds)
    return [measure_round(batches, device, seconds) for _ in range(rounds)]


def measure_round(batches: Iterable[int], device: str, seconds: float = math.inf) -> Round:
    """Take batches to the first one after `seconds`, or to their end; a GPU is synchronised."""
    (cpu_s, read), start, records = _used(), time.perf_counter(), 0
    for count in batches:
        records += count
        if time.perf_counter() - start >= seconds:
            break
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    wall_s, (cpu_now, read_now) = time.perf_counter() - start, _used()
    return Round(records, wall_s, cpu_now - cpu_s, read_now - read)


def _processes() -> list[psutil.Process]:
    """This process and its living workers."""
    this = psutil.Process()
    return [this, *this.children(recursive=True)]


def _used() -> tuple[float, int]:
    """Processor time in seconds, and bytes that the disk delivered, so far."""
    used = [(each.cpu_times(), each.io_counters().read_bytes) for each in _processes()]
    return sum(cpu.user + cpu.system for cpu, _ in used), sum(read for _, read in used)


def memory_bytes() -> int:
    """Anonymous and shared memory of this process and its workers, shares counted once.

    Mapped files do not count: their pages belong to the page cache.
    """
    maps = (each for process in _processes() for each in process.memory_maps())
    return sum(each.pss for each in maps if not os.path.isfile(each.path))
