"""The workers of convert: order, errors, and a death in the worst moment."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ecgfast.convert.pool import Crew
from ecgfast.errors import EcgfastError, FormatError
from ecgfast.store.writer import EncodedRecord


def _square(task: int) -> int:
    return task * task


def _refuse(task: int) -> int:
    if task == 20:
        raise FormatError("task 20")
    return task


def _large(task: int) -> bytes:
    """A quarter of a gigabyte from a worker; this process works too, on nothing."""
    return b"" if multiprocessing.parent_process() is None else bytes(1 << 28)


def _kill_workers_after(num_bytes: int) -> None:
    while _bytes_read() < num_bytes:
        time.sleep(0.0005)
    for worker in multiprocessing.active_children():
        worker.kill()


def _bytes_read() -> int:
    """By this process, through pipes and sockets as well."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    with Crew(_square, workers) as crew:
        assert list(crew.map(range(200))) == [n * n for n in range(200)]


def test_tasks_are_read_as_they_are_needed() -> None:
    tasks = iter(range(10_000))
    with Crew(_square, 2) as crew:
        results = crew.map(tasks)
        assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
        assert next(tasks) < 100
        assert len(list(results)) > 9_000


def test_an_error_of_a_worker_is_raised_here() -> None:
    with pytest.raises(FormatError, match="task 20"), Crew(_refuse, 2) as crew:
        list(crew.map(range(40)))


class _OneWayError(ValueError):
    """Cannot be unpickled: its argument is not among `args`."""

    def __init__(self, *, number: int) -> None:
        super().__init__(f"number {number}")


def _refuse_one_way(task: int) -> int:
    raise _OneWayError(number=task)


def test_an_error_that_cannot_travel_is_an_error_and_no_hang() -> None:
    with pytest.raises(TypeError, match="positional argument"), Crew(_refuse_one_way, 2) as crew:
        list(crew.map(range(4)))


def _parts(task: int) -> list[EncodedRecord]:
    """Chunks of every size, the empty one and one beyond the pipe's room too."""
    leads_4C = np.full((4, 12), task, np.float32)
    sizes = [0, 1, 4096, 3 << 20]
    return [
        EncodedRecord(chunk=bytes([task]) * size, leads=leads_4C, row={"task": task}, source="s")
        for size in sizes
    ]


def test_records_arrive_as_they_were_sent() -> None:
    with Crew(_parts, 2) as crew:
        for task, records in enumerate(crew.map(range(8))):
            for got, sent in zip(records, _parts(task), strict=True):
                assert bytes(got.chunk) == sent.chunk
                np.testing.assert_array_equal(got.leads, sent.leads, strict=True)
                assert (got.row, got.source, got.recorded) == (sent.row, sent.source, "")


def test_workers_are_hired_as_they_are_needed() -> None:
    with Crew(_square, 64) as crew:
        assert list(crew.map(range(3))) == [0, 1, 4]
        assert len(multiprocessing.active_children()) <= 4
    assert not multiprocessing.active_children()


def _blocks_interrupts(task: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_ctrl_c_is_the_callers_alone() -> None:
    with Crew(_blocks_interrupts, 2) as crew:
        assert list(crew.map(range(4))) == [True] * 4
    assert not _blocks_interrupts(0)


def _leave(task: int) -> int:
    if multiprocessing.parent_process() is not None:
        sys.exit(3)
    return task


def test_a_worker_that_ends_by_itself_is_not_called_killed() -> None:
    with pytest.raises(EcgfastError, match=r"exit code 3.*__main__"), Crew(_leave, 2) as crew:
        list(crew.map(range(4)))


def test_a_worker_that_cannot_be_started_is_one_error() -> None:
    resource = pytest.importorskip("resource", reason="this system has no limits to lower")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 2, hard))
    try:
        with pytest.raises(EcgfastError, match=r"cannot be started.*--workers"), Crew(_square, 9):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="no /proc/PID/io")
def test_a_worker_killed_while_it_sends_is_an_error_and_no_hang() -> None:
    killer = threading.Thread(target=_kill_workers_after, args=(_bytes_read() + (8 << 20),))
    killer.start()
    killed = pytest.raises(EcgfastError, match="a worker process was killed")
    with killed, Crew(_large, 2) as crew:
        list(crew.map(range(40)))
    killer.join()
