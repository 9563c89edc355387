"""Spawned workers that give results in order, in bounded memory, and die with their parent."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from ecgfast.errors import EcgfastError

Task = TypeVar("Task")
Result = TypeVar("Result")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 32 << 20  # the most that glibc takes as a threshold
# Batches of under a megabyte, for each worker: unfinished ones, and all that are not yet written.
_QUEUED, _PENDING = 3, 12
_SWITCH_INTERVAL_S = 0.0002


def in_order(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, workers: int
) -> Iterator[Result]:
    """Yield `function(task)` for every task, in the order of the tasks.

    Args:
        function: picklable; it runs in `workers` - 1 spawned processes, and here whenever there is
            no result to yield: who writes the results has time left until there are many workers.
        tasks: read only as far ahead as work is in flight.
        workers: processes, this one included.
    Raises:
        EcgfastError: a worker was killed.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    with _Crew(function, workers - 1) as crew:
        pending: deque[Future[Result]] = deque()
        for task in tasks:
            if sum(not future.done() for future in pending) < _QUEUED * (workers - 1):
                pending.append(crew.submit(task))
            else:
                pending.append(_finished(function(task)))
            while pending and (pending[0].done() or len(pending) > _PENDING * workers):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def available_cores() -> int:
    """Cores that this process may use; containers and batch systems allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Crew(Generic[Task, Result]):
    """Spawned processes, each behind a thread that sends it tasks and waits for its results.

    Not a ProcessPoolExecutor: when a worker is killed while it sends a result, that one waits for
    ever, because it holds the other end of the pipe open itself.
    """

    def __init__(self, function: Callable[[Task], Result], size: int) -> None:
        self._function = function
        self._mine = threading.local()  # the connection of a thread's worker
        self._all: list[tuple[Connection[Any, Any], multiprocessing.process.BaseProcess]] = []
        self._threads = ThreadPoolExecutor(size, initializer=self._hire)

    def __enter__(self) -> "_Crew[Task, Result]":
        # A thread whose worker has answered would wait 5 ms for this process's own work, and the
        # worker with it.
        self._interval_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setswitchinterval(self._interval_s)
        self._threads.shutdown(cancel_futures=True)
        for connection, process in self._all:
            connection.close()  # which ends the worker
            process.join()

    def submit(self, task: Task) -> "Future[Result]":
        return self._threads.submit(self._ask, task)

    def _hire(self) -> None:
        # Spawned, not forked: the parent has threads (Arrow, progress bars) whose locks a fork
        # copies, and a forked worker would hold the ends of the others' pipes.
        context = multiprocessing.get_context("spawn")
        self._mine.connection, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._function), daemon=True)
        process.start()
        theirs.close()
        self._all.append((self._mine.connection, process))

    def _ask(self, task: Task) -> Result:
        try:
            self._mine.connection.send(task)
            result: Result | Exception = self._mine.connection.recv()
        except (EOFError, OSError) as error:  # OSError: in the middle of a result
            raise EcgfastError(
                "a worker process was killed, most often for want of memory; run the same command "
                "again with fewer --workers, it goes on where it stopped"
            ) from error
        if isinstance(result, Exception):
            raise result
        return result


def _finished(result: Result) -> "Future[Result]":
    future: Future[Result] = Future()
    future.set_result(result)
    return future


def _work(connection: "Connection[Any, Any]", function: Callable[[Any], Any]) -> None:
    """Answer tasks until the parent closes the connection, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _keep_freed_memory()
    with contextlib.suppress(EOFError, OSError):
        while True:
            task = connection.recv()
            try:
                result = function(task)
            except Exception as error:  # the parent raises it
                result = error
            connection.send(result)


def _keep_freed_memory() -> None:
    """Stop glibc from giving a batch's memory back to the kernel after each batch.

    Every page comes back by a page fault: 47 for each record, counted on 5,000 of them.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # other C libraries have no such habit
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
