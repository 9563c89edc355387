"""Worker processes of a convert: spawned ones that die with their parent."""

import ctypes
import gc
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from multiprocessing.resource_tracker import ensure_running
from threading import Lock, Thread
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_KEPT_BYTES = 32 << 20  # the largest threshold that glibc accepts
_one_start_at_a_time = Lock()  # starting changes the environment


class Processes(ProcessPoolExecutor):
    """Spawned workers: they die with this process, leave SIGINT to it and use one BLAS thread."""

    def __init__(self, workers: int) -> None:
        # Spawned, not forked: this process has threads (Arrow, progress bars) whose locks a fork
        # would copy.
        super().__init__(workers, mp_context=get_context("spawn"), initializer=_start_worker)

    def submit(self, *args: Any, **options: Any) -> Future[Any]:  # noqa: ANN401 (as its parent)
        """Give work to a process; it may be started here."""
        with _one_start_at_a_time, _as_workers_begin():
            return super().submit(*args, **options)

    def __exit__(self, *_: object) -> None:
        # After an error, KeyboardInterrupt too, it would wait for the units that are begun. And
        # after the last unit for ever, if a worker was killed while it waited for the next one: it
        # took the lock of the queue with it, through which the others hear that they may end.
        for process in list((self._processes or {}).values()):
            process.kill()
        self.shutdown(cancel_futures=True)


@contextmanager
def _as_workers_begin() -> Iterator[None]:
    """For processes started here: SIGINT is blocked, and NumPy's library starts no threads."""
    ensure_running()  # or the first start would, and lift the block
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start_worker() -> None:
    Thread(target=_die_with_parent, daemon=True).start()
    # glibc would return the memory of each batch to the kernel after it, and every page comes back
    # by a page fault: 47 for each record, counted on 5,000 of them.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # other C libraries do not return it
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    gc.freeze()  # what the imports have left is no garbage: no collection looks at it again


def _die_with_parent() -> None:
    """A parent that is killed tells its workers nothing, and they would wait for it for ever."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
