"""Spawned workers that give results in order, in bounded memory, and die with their parent."""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from ecgfast.errors import EcgfastError

Task = TypeVar("Task")
Result = TypeVar("Result")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 32 << 20  # the most that glibc takes as a threshold
_IN_FLIGHT_PER_WORKER = 8  # batches, 7 MB: work for the time in which a shard is synced


def in_order(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int
) -> Iterator[Result]:
    """Yield `function(task)` for every task, in the order of the tasks.

    Args:
        function: picklable; it runs in spawned processes, or here when `workers` is 1.
        tasks: read only as far ahead as work is in flight.
        workers: processes.
    Raises:
        EcgfastError: a worker was killed.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: the parent has threads (Arrow, progress bars) whose locks a fork copies.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                pending.append(pool.submit(function, task))
                if len(pending) >= _IN_FLIGHT_PER_WORKER * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise EcgfastError(
                "a worker process was killed, most often for want of memory; run the same command "
                "again with fewer --workers, it goes on where it stopped"
            ) from error
        finally:
            for future in pending:
                future.cancel()


def available_cores() -> int:
    """Cores that this process may use; containers and batch systems allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _keep_freed_memory()
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A pipe that closes with the parent, however it dies; a worker would outlive kill -9 otherwise.
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()


def _keep_freed_memory() -> None:
    """Stop glibc from giving a batch's memory back to the kernel after each batch.

    Every page comes back by a page fault: 47 for each record, counted on 5,000 of them.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # other C libraries have no such habit
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _die_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
