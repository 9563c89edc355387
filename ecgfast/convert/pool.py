"""Spawned workers that give results in order, in bounded memory, and die with their parent."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import pickle
import resource
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from itertools import accumulate, cycle, pairwise
from mmap import PROT_READ, mmap
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from multiprocessing.resource_tracker import ensure_running
from tempfile import TemporaryFile
from threading import Lock
from typing import Any, Generic, Self, TypeVar

from ecgfast.errors import EcgfastError

Task = TypeVar("Task")
Result = TypeVar("Result")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 32 << 20  # the largest threshold that glibc accepts
_PENDING = 4  # tasks per worker, on average, that were sent and whose result was not yet taken
_MOST_PENDING = 2 * _PENDING  # upper limit per worker: fast workers get more tasks than slow ones
_BUFFERS = _MOST_PENDING + 1  # per worker; one more, because the last result taken is still in use
_STARTED_AT_ONCE = 4
_FILES_OF_WORKER = 2 * _BUFFERS + 4  # each buffer, and its mapping while it is in use; pipes
_OTHER_FILES = 128
_one_start_at_a_time = Lock()  # starting changes the environment
_CURE = "run the same command again with fewer --workers, it goes on where it stopped"


class WorkerPool(Generic[Task, Result]):
    """Spawned processes that work on tasks for this one; a context manager.

    A few are started at once, because their imports take a quarter of a second in which this
    process may list its inputs; each further one when all the others are busy.

    Args:
        function: picklable; it runs in the workers.
        size: the most workers; with 1 no process is started, and the function runs here.
    """

    def __init__(self, function: Callable[[Task], Result], size: int) -> None:
        self._function, self._size = function, size
        self._workers: list[_Worker[Task, Result]] = []

    def __enter__(self) -> Self:
        if self._size > 1:
            _allow_files(self._size * _FILES_OF_WORKER + _OTHER_FILES)
            try:
                for _ in range(min(self._size, _STARTED_AT_ONCE)):
                    self._start()
            except BaseException:  # KeyboardInterrupt too: workers would keep this process alive
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.close()

    def map(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield `function(task)` for every task, in the order of the tasks.

        Arrays and `PickleBuffer`s of a result lie in memory that its worker fills again: copy what
        is to stay before asking for the next result.

        Args:
            tasks: read only as far ahead as work is in flight.
        Raises:
            EcgfastError: a worker was killed, or cannot be started.
            BufferError: such memory is still in use when it is needed again.
        """
        if self._size == 1:
            yield from map(self._function, tasks)
            return
        pending: deque[_Worker[Task, Result]] = deque()
        for task in tasks:
            worker = self._least_busy()
            worker.send(task)
            pending.append(worker)
            if len(pending) == _PENDING * self._size:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _least_busy(self) -> "_Worker[Task, Result]":
        free = (worker for worker in self._workers if worker.num_pending < _MOST_PENDING)
        least = min(free, key=lambda worker: worker.num_unanswered())
        if least.num_unanswered() and len(self._workers) < self._size:
            return self._start()
        return least

    def _start(self) -> "_Worker[Task, Result]":
        try:
            worker = _Worker(self._function)
        except OSError as error:
            raise EcgfastError(
                f"worker {len(self._workers) + 1} of {self._size} cannot be started: {error}; "
                "give fewer --workers, or raise the limits of `ulimit -n` and `ulimit -u`"
            ) from error
        self._workers.append(worker)
        return worker


class _Worker(Generic[Task, Result]):
    """A spawned process, with buffers for the results that were not yet taken.

    Not a ProcessPoolExecutor: that one sends results through a pipe, which copies them twice, and
    waits for ever when a worker is killed meanwhile, because it holds the pipe's other end open.
    """

    def __init__(self, function: Callable[[Task], Result]) -> None:
        # Spawned, not forked: the parent has threads (Arrow, progress bars) whose locks a fork
        # copies, and a forked worker would hold the ends of the others' pipes.
        context = multiprocessing.get_context("spawn")
        with ExitStack() as opened:
            tasks, self._tasks = map(opened.enter_context, context.Pipe(duplex=False))
            self._answers, answers = map(opened.enter_context, context.Pipe(duplex=False))
            files = [opened.enter_context(_file_in_memory()) for _ in range(_BUFFERS)]
            self._buffers = [_Buffer(file) for file in files]
            args = (tasks, answers, self._buffers, function)
            self._process = context.Process(target=_work, args=args, daemon=True)
            with _one_start_at_a_time, _one_blas_thread(), _no_interrupts():
                self._process.start()
            self._opened = opened.pop_all()
        tasks.close()
        answers.close()
        self._sent, self._answered, self._taken = 0, 0, 0

    @property
    def num_pending(self) -> int:
        """Tasks whose result was not yet taken; the caller stays below `_BUFFERS`."""
        return self._sent - self._taken

    def num_unanswered(self) -> int:
        """Tasks that this worker has before it."""
        with contextlib.suppress(EOFError, OSError):  # it was killed: `result` raises that
            while self._answers.poll():
                self._receive_answer()
        return self._sent - self._answered

    def _receive_answer(self) -> None:
        self._answers.recv()
        self._answered += 1

    def send(self, task: Task) -> None:
        self._buffers[self._sent % _BUFFERS].release()
        self._sent += 1
        with contextlib.suppress(OSError):  # it was killed: `result` raises that
            self._tasks.send(task)

    def result(self) -> Result:
        """The result of the first task whose result was not yet taken."""
        try:
            if self._answered == self._taken:
                self._receive_answer()
        except (EOFError, OSError) as error:
            raise EcgfastError(self._end_of_process()) from error
        result: Result | Exception = self._buffers[self._taken % _BUFFERS].read()
        self._taken += 1
        if isinstance(result, Exception):
            raise result
        return result

    def kill(self) -> None:
        self._process.kill()  # it may be in the middle of a task, or stopped

    def close(self) -> None:
        self._process.join()
        self._opened.close()

    def _end_of_process(self) -> str:
        self._process.join()
        code = self._process.exitcode
        if code is None or code < 0:  # a signal; None: the exit code was collected elsewhere
            return f"a worker process was killed, most often for want of memory; {_CURE}"
        return (
            f"a worker process ended with exit code {code}, its reason stands above; a script that "
            'converts with more than one worker needs `if __name__ == "__main__":` around its calls'
        )


class _Buffer:
    """A file in memory that two processes share: the worker writes a result, the parent reads it.

    Layout: a pickle, then the raw buffers that it refers to (pickle protocol 5).
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._memory: mmap | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _shared_buffer, (DupFd(self._file.fileno()),)

    def write(self, result: object) -> None:
        views: list[memoryview] = []
        head = pickle.dumps(result, 5, buffer_callback=lambda each: views.append(each.raw()))
        start = pickle.dumps((head, [len(view) for view in views]))
        try:
            self._file.seek(0)
            for part in (memoryview(start), *views):
                rest = part
                while rest:
                    rest = rest[self._file.write(rest) :]
            self._file.truncate()
        except OSError as error:
            raise EcgfastError(
                f"no room for the result of a worker: {error.strerror}; it takes memory, and must "
                f"be allowed by `ulimit -f`; {_CURE}"
            ) from error

    def read(self) -> Any:  # noqa: ANN401 (a result or an exception)
        """The result; its arrays are views of this memory."""
        try:
            self._memory = mmap(self._file.fileno(), 0, prot=PROT_READ)
        except OSError as error:
            raise EcgfastError(
                f"the result of a worker cannot be seen: {error.strerror}; {_CURE}"
            ) from error
        head, lengths = pickle.load(self._memory)
        view, ends = memoryview(self._memory), accumulate(lengths, initial=self._memory.tell())
        return pickle.loads(head, buffers=[view[start:end] for start, end in pairwise(ends)])

    def release(self) -> None:
        if self._memory is not None:
            self._memory.close()


def _shared_buffer(handle: Any) -> _Buffer:  # noqa: ANN401 (of a type without a name)
    return _Buffer(FileIO(handle.detach(), "r+"))


def _file_in_memory() -> FileIO:
    if hasattr(os, "memfd_create"):  # Linux; not bound by the size of /dev/shm
        return FileIO(os.memfd_create("ecgfast"), "r+")
    return TemporaryFile(buffering=0)


def _allow_files(wanted: int) -> None:
    """Let this process open more files than its shell asked for, up to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Block SIGINT in processes started here from the first instruction: the parent handles it."""
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


def _work(
    tasks: "Connection[Any, Any]",
    answers: "Connection[Any, Any]",
    buffers: list[_Buffer],
    function: Callable[[Any], Any],
) -> None:
    """Answer tasks until the parent ends this process, or dies."""
    _keep_freed_memory()
    gc.freeze()  # what the imports have left is no garbage: no collection looks at it again
    with contextlib.suppress(EOFError, OSError):  # the parent has gone
        for buffer in cycle(buffers):
            task = tasks.recv()
            try:
                buffer.write(function(task))
            except Exception as error:  # the parent raises it
                buffer.write(error)
            answers.send(None)


def _keep_freed_memory() -> None:
    """Stop glibc from returning the memory of each batch to the kernel after it.

    Every page comes back by a page fault: 47 for each record, counted on 5,000 of them.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # other C libraries do not return it
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
