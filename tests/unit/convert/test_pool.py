"""The workers of convert: order, errors, and a death in the worst moment."""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pickle import PickleBuffer, PicklingError

import numpy as np
import pytest

from ecgfast.convert.pool import WorkerPool
from ecgfast.errors import EcgfastError, FormatError
from ecgfast.store.outcomes import Cursor, EncodedRecord, Outcomes, in_columns


def _square(task: int) -> int:
    return task * task


def _refuse(task: int) -> int:
    if task == 20:
        raise FormatError("task 20")
    return task


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    with WorkerPool(_square, workers) as pool:
        assert list(pool.map(range(200))) == [n * n for n in range(200)]


def test_tasks_are_read_as_they_are_needed() -> None:
    tasks = iter(range(10_000))
    with WorkerPool(_square, 2) as pool:
        results = pool.map(tasks)
        assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
        assert 10 < next(tasks) < 100  # some tasks are under way behind each result
        assert len(list(results)) > 9_000


def test_an_error_of_a_worker_is_raised_here() -> None:
    with pytest.raises(FormatError, match="task 20"), WorkerPool(_refuse, 2) as pool:
        list(pool.map(range(40)))


class _OneWayError(ValueError):
    """Cannot be unpickled: its argument is not among `args`."""

    def __init__(self, *, number: int) -> None:
        super().__init__(f"number {number}")


def _refuse_one_way(task: int) -> int:
    raise _OneWayError(number=task)


def test_an_error_that_cannot_travel_is_an_error_and_no_hang() -> None:
    with (
        pytest.raises(TypeError, match="positional argument"),
        WorkerPool(_refuse_one_way, 2) as pool,
    ):
        list(pool.map(range(4)))


def _parts(task: int) -> Outcomes:
    """Chunks of every size, the empty one and one beyond all others too."""
    sizes = [0, 1, 4096, (task % 4) << 20]
    return in_columns(
        [
            EncodedRecord(
                after=Cursor(position=task, outcome=number),
                chunk=bytes([task]) * size,
                leads=np.full((4, 12), task, np.float32),
                row={"site": f"site {task}", "labels": {"task": task}},
                source="s",
            )
            for number, size in enumerate(sizes, 1)
        ]
    )


def test_outcomes_arrive_as_they_were_sent() -> None:
    with WorkerPool(_parts, 2) as pool:
        for task, got in enumerate(pool.map(range(30))):
            sent = _parts(task)
            assert [bytes(chunk) for chunk in got.chunks] == sent.chunks
            np.testing.assert_array_equal(got.leads, sent.leads, strict=True)
            assert replace(got, leads=sent.leads, chunks=sent.chunks) == sent


def test_memory_that_is_needed_again_must_not_be_held() -> None:
    with pytest.raises(BufferError), WorkerPool(_parts, 2) as pool:
        list(pool.map(range(30)))


def test_a_result_stays_while_its_worker_is_given_the_next_task() -> None:
    """Tasks come so slowly that one worker does all of them, and is as far ahead as it may be."""

    def slow_tasks() -> Iterator[int]:
        for task in range(20):
            time.sleep(0.05)
            yield task

    with WorkerPool(_parts, 2) as pool:
        for task, got in enumerate(pool.map(slow_tasks())):
            assert [bytes(chunk) for chunk in got.chunks] == _parts(task).chunks


def _not_picklable(task: int) -> object:
    return lambda: task


def test_a_result_that_cannot_travel_is_an_error_and_no_hang() -> None:
    with pytest.raises((AttributeError, PicklingError)), WorkerPool(_not_picklable, 2) as pool:
        list(pool.map(range(4)))


def test_a_result_that_fits_nowhere_is_one_error() -> None:
    with (
        pytest.raises(EcgfastError, match=r"no room.*File too large.*--workers"),
        WorkerPool(_too_large, 2) as pool,
    ):
        list(pool.map(range(4)))


def _too_large(task: int) -> PickleBuffer:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    return PickleBuffer(bytes(2 << 20))


def test_workers_are_started_as_they_are_needed() -> None:
    with WorkerPool(_square, 64) as pool:
        assert list(pool.map(range(3))) == [0, 1, 4]
        assert len(multiprocessing.active_children()) <= 4
    assert not multiprocessing.active_children()


def _blocks_interrupts(task: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_ctrl_c_is_the_callers_alone() -> None:
    with WorkerPool(_blocks_interrupts, 2) as pool:
        assert list(pool.map(range(4))) == [True] * 4
    assert not _blocks_interrupts(0)


def _leave(task: int) -> int:
    if multiprocessing.parent_process() is not None:
        sys.exit(3)
    return task


def test_a_worker_that_ends_by_itself_is_not_called_killed() -> None:
    with pytest.raises(EcgfastError, match=r"exit code 3.*__main__"), WorkerPool(_leave, 2) as pool:
        list(pool.map(range(4)))


@pytest.fixture
def few_files() -> Iterator[None]:
    """This process may open few files, until it asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 2, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_files")
def test_a_low_limit_of_open_files_is_raised() -> None:
    with WorkerPool(_square, 9) as pool:
        assert list(pool.map(range(40))) == [n * n for n in range(40)]


@pytest.mark.usefixtures("few_files")
def test_a_worker_that_cannot_be_started_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)  # the hard limit is as low
    with pytest.raises(EcgfastError, match=r"cannot be started.*--workers"), WorkerPool(_square, 9):
        pass
    assert not multiprocessing.active_children()


def _die(task: int) -> bytes:
    if task == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return bytes(1 << 20)


def test_a_worker_that_is_killed_is_an_error_and_no_hang() -> None:
    with (
        pytest.raises(EcgfastError, match="a worker process was killed"),
        WorkerPool(_die, 2) as pool,
    ):
        list(pool.map(range(40)))


def test_workers_killed_from_outside_are_an_error_and_no_hang() -> None:
    with WorkerPool(_square, 2) as pool:
        results = pool.map(iter(int, 1))  # 0 for ever
        assert next(results) == 0
        for worker in multiprocessing.active_children():
            worker.kill()
        with pytest.raises(EcgfastError, match="a worker process was killed"):
            list(results)


def test_a_stopped_worker_does_not_hold_the_end_up() -> None:
    with WorkerPool(_square, 2) as pool:
        assert list(pool.map(range(4))) == [0, 1, 4, 9]
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGSTOP)
    assert not multiprocessing.active_children()


def test_pools_of_several_threads_leave_the_environment_as_it_was() -> None:
    def work(_: int) -> list[int]:
        with WorkerPool(_square, 2) as pool:
            return list(pool.map(range(4)))

    before = dict(os.environ)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [[0, 1, 4, 9]] * 4
    assert dict(os.environ) == before


def _as_fast_as_its_worker(task: int) -> int:
    """Every other worker takes ten times as long."""
    number = int(multiprocessing.current_process().name.rpartition("-")[2])
    time.sleep(0.05 if number % 2 else 0.005)
    return os.getpid()


def test_a_fast_worker_takes_more_than_a_slow_one() -> None:
    with WorkerPool(_as_fast_as_its_worker, 2) as pool:
        counts = Counter(pool.map(range(80))).most_common()
    assert len(counts) == 1 or counts[0][1] > 1.5 * counts[1][1]  # 40 and 40 by turns
