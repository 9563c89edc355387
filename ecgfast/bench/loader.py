"""The `loader` case: what a stream of batches costs, for every engine that runs here."""

import itertools
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ecgfast import log
from ecgfast.bench.measuring import Row, make_rows
from ecgfast.convert import convert
from ecgfast.data.dali import build as dali_build
from ecgfast.data.loader import Loader, build_loader
from ecgfast.errors import BackendUnavailableError
from ecgfast.ingest.synthetic import write_cohort
from ecgfast.store import open_store
from ecgfast.vocabulary import EngineName

Epoch = Callable[[], Iterator[int]]  # starts an epoch; yields the number of records of each batch

_WARM_UP = 0.2  # of a round's seconds: workers start, buffers are allocated


@dataclass(frozen=True, kw_only=True)
class Round:
    """What some seconds of loading used; NaN where /proc is missing.

    Attributes:
        records: that came.
        wall_s: seconds that they took.
        cpu_s: processor time, workers included.
        memory_bytes: anonymous and shared memory of process and workers at the end, without that
            of before the first round; page cache does not count.
        read_bytes: that the disk delivered, 0 where the page cache had all.
    """

    records: int
    wall_s: float
    cpu_s: float
    memory_bytes: float
    read_bytes: float

    @property
    def records_per_s(self) -> float:
        """Rate of the round."""
        return self.records / self.wall_s


def measure_loader(
    device: str, *, num_records: int = 2048, batch_size: int = 256, seconds: float = 2.0
) -> Iterator[Row]:
    """Measure our engines on a store made for the purpose, warm page cache.

    Args:
        device: "cpu" or "cuda".
        num_records: of the synthetic store; 2,048 are 246 MB of int16.
        batch_size: records.
        seconds: of each timed round.
    Yields:
        For each codec, engine and number of threads, rows of throughput, cores, memory and reads.
    """
    variants: list[tuple[EngineName, int]] = [("cpu", 1), ("cpu", 2)]  # engines, threads
    if dali_build.is_installed():
        variants += [("dali", 1), ("dali", 2)]
    if device.startswith("cuda"):
        variants += [("cpu", 8), ("resident", 1)]
    auto = "resident" if device.startswith("cuda") else "cpu"
    with tempfile.TemporaryDirectory(prefix="ecgfast-bench-") as folder:
        cohort = Path(folder) / "cohort"
        log.info(f"loader: making a store of {num_records} synthetic records")
        write_cohort(cohort, num_records=num_records, num_sites=1, seed=0)
        packed = convert([cohort], Path(folder) / "ecgpack", workers=1).store
        raw = convert([packed], Path(folder) / "none", codec="none", workers=1).store
        for store in map(open_store, (packed, raw)):
            for engine, threads in variants:
                try:
                    loader = build_loader(
                        store,
                        batch_size=batch_size,
                        engine=engine,
                        device=device,
                        num_threads=threads,
                    )
                    rounds = measure(epoch_of(loader), device=device, seconds=seconds)
                except BackendUnavailableError as error:
                    log.warning(f"loader: {engine} left out: {error}")
                    continue
                provider = "ecgfast" if engine == auto else f"ecgfast-{engine}"
                shape = f"{store.codec}, {threads} threads, batch {batch_size}, warm"
                yield from use_rows(provider, shape, rounds, device)


def epoch_of(loader: Loader) -> Epoch:
    """Adapt a loader to `measure`."""
    return lambda: (len(batch.record_index) for batch in loader)


def use_rows(provider: str, shape: str, rounds: Sequence[Round], device: str) -> Iterator[Row]:
    """Rows of what one provider used in all rounds; what could not be measured has none."""
    wall_s = sum(one.wall_s for one in rounds)
    read = sum(one.read_bytes for one in rounds) / sum(one.records for one in rounds)
    numbers = {
        ("throughput", "records/s"): [one.records_per_s for one in rounds],
        ("cores", "cores"): [sum(one.cpu_s for one in rounds) / wall_s],
        ("memory", "GiB"): [max(one.memory_bytes for one in rounds) / 2**30],
        ("read", "B/record"): [read],
    }
    known = {key: values for key, values in numbers.items() if not any(map(math.isnan, values))}
    yield from make_rows(known, case="loader", provider=provider, shape=shape, device=device)


def measure(
    epoch: Epoch,
    *,
    device: str = "cpu",
    memory_before: float | None = None,
    seconds: float = 2.0,
    rounds: int = 5,
) -> list[Round]:
    """Time an endless stream of epochs in rounds, each up to the first batch after `seconds`.

    Args:
        epoch: starts an epoch.
        device: "cpu" or "cuda", synchronised at the end of a round.
        memory_before: `memory_bytes` that do not count; by default those of now.
        seconds: of each round.
        rounds: number of repeats.
    """
    before = memory_bytes() if memory_before is None else memory_before
    batches = itertools.chain.from_iterable(epoch() for _ in itertools.count())
    measure_round(batches, device, before, _WARM_UP * seconds)
    return [measure_round(batches, device, before, seconds) for _ in range(rounds)]


def measure_round(
    batches: Iterable[int], device: str, memory_before: float = 0.0, seconds: float = math.inf
) -> Round:
    """Take batches to the first one after `seconds`, or to their end; arguments as in `measure`."""
    cpu_start, read_start, start = _cpu_seconds(), _read_bytes(), time.perf_counter()
    records = 0
    for count in batches:
        records += count
        if time.perf_counter() - start >= seconds:
            break
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return Round(
        records=records,
        wall_s=time.perf_counter() - start,
        cpu_s=_cpu_seconds() - cpu_start,
        memory_bytes=memory_bytes() - memory_before,
        read_bytes=_read_bytes() - read_start,
    )


def _texts(name: str) -> Iterator[str]:
    """A file of /proc of this process and each of its workers; nothing without /proc."""
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        path = Path(f"/proc/{pid}/{name}")
        if path.exists():
            yield path.read_text()


def _cpu_seconds() -> float:
    """Processor time so far of this process and its living workers."""
    fields = [text.rpartition(")")[2].split()[11:13] for text in _texts("stat")]
    ticks = sum(int(user) + int(system) for user, system in fields)
    return ticks / os.sysconf("SC_CLK_TCK") if fields else math.nan


def memory_bytes() -> float:
    """Anonymous and shared memory of this process and its workers, shares counted once."""
    return _sum_of_lines("smaps_rollup", ("Pss_Anon:", "Pss_Shmem:")) * 1024


def _read_bytes() -> float:
    """Bytes that the disk delivered so far."""
    return _sum_of_lines("io", ("read_bytes:",))


def _sum_of_lines(name: str, keys: tuple[str, ...]) -> float:
    lines = [line for text in _texts(name) for line in text.splitlines() if line.startswith(keys)]
    return float(sum(int(line.split()[1]) for line in lines)) if lines else math.nan
