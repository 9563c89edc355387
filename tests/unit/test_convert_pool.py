"""The workers of convert: order, errors, and a death in the worst moment."""

import multiprocessing
import os
import signal
import threading

import pytest

from ecgfast.convert.pool import in_order
from ecgfast.errors import EcgfastError, FormatError


def _square(task: int) -> int:
    return task * task


def _refuse(task: int) -> int:
    if task == 20:
        raise FormatError("task 20")
    return task


def _die_while_sending(task: int) -> bytes:
    if multiprocessing.parent_process() is None:
        return b""  # in this process, which works too
    threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return bytes(1 << 28)  # takes longer to send than that


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    assert list(in_order(_square, range(200), workers=workers)) == [n * n for n in range(200)]


def test_tasks_are_read_as_they_are_needed() -> None:
    tasks = iter(range(10_000))
    results = in_order(_square, tasks, workers=2)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert next(tasks) < 100
    assert len(list(results)) > 9_000  # and the workers end


def test_an_error_of_a_worker_is_raised_here() -> None:
    with pytest.raises(FormatError, match="task 20"):
        list(in_order(_refuse, range(40), workers=2))


def test_a_worker_killed_while_it_sends_is_an_error_and_no_hang() -> None:
    with pytest.raises(EcgfastError, match="a worker process was killed"):
        list(in_order(_die_while_sending, range(40), workers=2))
