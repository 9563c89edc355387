"""Spawned workers that give results in order, in bounded memory, and die with their parent."""

import contextlib
import ctypes
import fcntl
import gc
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from multiprocessing.connection import Connection
from multiprocessing.resource_tracker import ensure_running
from queue import SimpleQueue
from typing import Any, Generic, Self, TypeVar

import numpy as np

from ecgfast.errors import EcgfastError

Task = TypeVar("Task")
Result = TypeVar("Result")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 32 << 20  # the most that glibc takes as a threshold
_PIPE_BYTES = 1 << 20  # a batch's result fits; the most that Linux gives without privileges
_PENDING = 4  # tasks for each worker that are sent and not yet taken: batches of about a megabyte
_HIRED_AT_ONCE = 4


class Crew(Generic[Task, Result]):
    """Spawned processes that work on tasks for this one; a context manager.

    A few are hired at once, because their imports take a third of a second in which this process
    may find out what there is to do; each further one when all the others are busy.

    Args:
        function: picklable; it runs in the workers.
        size: the most workers; 1 hires nobody, and the function runs here.
    """

    def __init__(self, function: Callable[[Task], Result], size: int) -> None:
        self._function, self._size = function, size
        self._workers: list[_Worker[Task, Result]] = []

    def __enter__(self) -> Self:
        if self._size > 1:
            try:
                for _ in range(min(self._size, _HIRED_AT_ONCE)):
                    self._hire()
            except BaseException:  # Ctrl-C too: who was hired would keep this process from ending
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def map(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield `function(task)` for every task, in the order of the tasks.

        Args:
            tasks: read only as far ahead as work is in flight.
        Raises:
            EcgfastError: a worker was killed, or cannot be started.
        """
        if self._size == 1:
            yield from map(self._function, tasks)
            return
        pending: deque[_Worker[Task, Result]] = deque()
        for task in tasks:
            worker = self._least_busy()
            worker.send(task)
            pending.append(worker)
            while len(pending) >= _PENDING * self._size:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _least_busy(self) -> "_Worker[Task, Result]":
        worker = min(self._workers, key=lambda each: each.unanswered)
        if worker.unanswered and len(self._workers) < self._size:
            return self._hire()
        return worker

    def _hire(self) -> "_Worker[Task, Result]":
        try:
            worker = _Worker(self._function)
        except (OSError, RuntimeError) as error:  # RuntimeError: of threads
            raise EcgfastError(
                f"worker {len(self._workers) + 1} of {self._size} cannot be started: {error}; "
                "give fewer --workers, or raise the limits of `ulimit -n` and `ulimit -u`"
            ) from error
        self._workers.append(worker)
        return worker


def available_cores() -> int:
    """Cores that this process may use; containers and batch systems allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
        with _one_blas_thread(), _no_interrupts():
            self._process.start()
        tasks.close()
        answers.close()
        self._sent, self._received = 0, 0
        self._results: SimpleQueue[Result | Exception] = SimpleQueue()
        self._thread = threading.Thread(target=self._take_results)
        try:
            self._thread.start()
        except RuntimeError:
            self._process.terminate()
            raise

    @property
    def unanswered(self) -> int:
        return self._sent - self._received

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

    def _take_results(self) -> None:
        try:
            while True:
                self._results.put(_receive(self._answers))
                self._received += 1
        except (EOFError, OSError):  # OSError: in the middle of a result
            self._results.put(EcgfastError(self._end_of_process()))
        except Exception as error:  # who asks for the result raises it
            self._results.put(error)

    def _end_of_process(self) -> str:
        self._process.join()
        code = self._process.exitcode
        if code is None or code < 0:  # a signal; None: somebody else has waited for it
            return (
                "a worker process was killed, most often for want of memory; run the same command "
                "again with fewer --workers, it goes on where it stopped"
            )
        return (
            f"a worker process ended with exit code {code}, its reason stands above; a script that "
            'converts with more than one worker needs `if __name__ == "__main__":` around its calls'
        )


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """For processes started here, from the first instruction: Ctrl-C is the parent's to handle."""
    ensure_running()  # or the first start would, and lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """For processes started here: NumPy's library would start a thread per core in each of them."""
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


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
    _write(answers.fileno(), b"".join(buffers))


def _receive(answers: "Connection[Any, Any]") -> Any:  # noqa: ANN401 (a result or an exception)
    head, lengths = answers.recv()
    ends = list(accumulate(lengths, initial=0))
    body = np.empty(ends[-1], np.uint8).data
    got = 0
    while got < len(body):
        count = os.readv(answers.fileno(), [body[got:]])
        if count == 0:
            raise EOFError
        got += count
    return pickle.loads(head, buffers=[body[start:end] for start, end in pairwise(ends)])


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _work(
    tasks: "Connection[Any, Any]",
    answers: "Connection[Any, Any]",
    function: Callable[[Any], Any],
) -> None:
    """Answer tasks until the parent ends this process, or dies."""
    _keep_freed_memory()
    gc.freeze()  # what the imports have left is no garbage: no collection looks at it again
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
