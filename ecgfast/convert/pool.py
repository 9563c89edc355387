"""Spawned workers that give results in order, in bounded memory, and die with their parent."""

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Generic, Self, TypeVar

from ecgfast.errors import EcgfastError

Task = TypeVar("Task")
Result = TypeVar("Result")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 32 << 20  # the most that glibc takes as a threshold
_PIPE_BYTES = 1 << 20  # a batch's result fits; the most that Linux gives without privileges
# Batches of under a megabyte, for each worker: unanswered ones, and all that are not yet written.
_QUEUED, _PENDING = 3, 12


class Crew(Generic[Task, Result]):
    """Processes that work on tasks together: this one and spawned ones; a context manager.

    The first worker is hired at once, because its imports take a third of a second; each further
    one when all the others have something to do.

    Args:
        function: picklable; it runs in the workers, and here whenever they have enough to do: who
            writes the results has time left until there are many workers.
        size: processes, this one included.
    """

    def __init__(self, function: Callable[[Task], Result], size: int) -> None:
        self._function, self._size = function, size
        self._workers: list[_Worker[Task, Result]] = []

    def __enter__(self) -> Self:
        if self._size > 1:
            self._hire()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def map(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield `function(task)` for every task, in the order of the tasks.

        Args:
            tasks: read only as far ahead as work is in flight.
        Raises:
            EcgfastError: a worker was killed.
        """
        pending: deque[_Worker[Task, Result] | _Own[Result]] = deque()
        for task in tasks:
            worker = self._free()
            if worker is None:
                pending.append(_Own(self._function(task)))
            else:
                worker.send(task)
                pending.append(worker)
            while pending and (pending[0].has_result or len(pending) > _PENDING * self._size):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _free(self) -> "_Worker[Task, Result] | None":
        """A worker to send a task to."""
        if self._size == 1:
            return None
        least = min(self._workers, key=lambda worker: worker.unanswered)
        if least.unanswered and len(self._workers) < self._size - 1:
            return self._hire()
        return least if least.unanswered < _QUEUED else None

    def _hire(self) -> "_Worker[Task, Result]":
        worker = _Worker(self._function)
        self._workers.append(worker)
        return worker


def available_cores() -> int:
    """Cores that this process may use; containers and batch systems allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class _Own(Generic[Result]):
    """A result of this process."""

    value: Result
    has_result = True

    def result(self) -> Result:
        return self.value


class _Worker(Generic[Task, Result]):
    """A spawned process, and a thread that takes its results, so that it never waits for ours.

    Not a ProcessPoolExecutor: when a worker is killed while it sends a result, that one waits for
    ever, because it holds the other end of the pipe open itself.
    """

    def __init__(self, function: Callable[[Task], Result]) -> None:
        # Spawned, not forked: the parent has threads (Arrow, progress bars) whose locks a fork
        # copies, and a forked worker would hold the ends of the others' pipes.
        context = multiprocessing.get_context("spawn")
        tasks, self._tasks = context.Pipe(duplex=False)
        self._answers, answers = context.Pipe(duplex=False)
        _widen(answers)
        self._process = context.Process(target=_work, args=(tasks, answers, function), daemon=True)
        self._process.start()
        tasks.close()
        answers.close()
        self._sent, self._received = 0, 0
        self._results: SimpleQueue[Result | Exception] = SimpleQueue()
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    @property
    def unanswered(self) -> int:
        return self._sent - self._received

    @property
    def has_result(self) -> bool:
        return not self._results.empty()

    def send(self, task: Task) -> None:
        self._sent += 1
        with contextlib.suppress(OSError):  # it was killed: `result` says so
            self._tasks.send(task)

    def result(self) -> Result:
        """The result of the first task that has none yet."""
        result = self._results.get()
        if isinstance(result, Exception):
            raise result
        return result

    def end(self) -> None:
        self._process.terminate()  # after an error it may be in the middle of a task
        self._thread.join()
        self._process.join()
        self._tasks.close()
        self._answers.close()

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, OSError):  # OSError: in the middle of a result
            while True:
                self._results.put(_receive(self._answers))
                self._received += 1
        self._results.put(
            EcgfastError(
                "a worker process was killed, most often for want of memory; run the same command "
                "again with fewer --workers, it goes on where it stopped"
            )
        )


def _widen(pipe: "Connection[Any, Any]") -> None:
    """Let a worker put a whole result down and go on, where the system allows it."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux
        with contextlib.suppress(OSError):  # the user's pipes have had their share
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _send(result: object, answers: "Connection[Any, Any]") -> None:
    """Send a pickle, and apart from it, in one piece, what the pickle only points to."""
    buffers: list[memoryview] = []
    head = pickle.dumps(result, 5, buffer_callback=lambda each: buffers.append(each.raw()))
    answers.send((head, [len(buffer) for buffer in buffers]))
    answers.send_bytes(b"".join(buffers))


def _receive(answers: "Connection[Any, Any]") -> Any:  # noqa: ANN401 (a result or an exception)
    head, lengths = answers.recv()
    body = memoryview(answers.recv_bytes())
    ends = list(accumulate(lengths, initial=0))
    return pickle.loads(head, buffers=[body[start:end] for start, end in pairwise(ends)])


def _work(
    tasks: "Connection[Any, Any]",
    answers: "Connection[Any, Any]",
    function: Callable[[Any], Any],
) -> None:
    """Answer tasks until the parent ends this process, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _keep_freed_memory()
    with contextlib.suppress(EOFError, OSError):
        while True:
            task = tasks.recv()
            try:
                result = function(task)
            except Exception as error:  # the parent raises it
                result = error
            _send(result, answers)


def _keep_freed_memory() -> None:
    """Stop glibc from giving a batch's memory back to the kernel after each batch.

    Every page comes back by a page fault: 47 for each record, counted on 5,000 of them.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # other C libraries have no such habit
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
