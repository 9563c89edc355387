"""Results made ahead: in order, no further ahead than asked, and no work after an early stop."""

import threading
import time

import pytest

from ecgfast.data.batch import made_ahead


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("depth", [0, 1, 3, 20])
def test_results_come_in_order(depth: int, num_threads: int) -> None:
    def make(entry: int) -> int:
        time.sleep(0.002 * (entry % 3))
        return entry * entry

    made = made_ahead(make, range(10), depth=depth, num_threads=num_threads)
    assert list(made) == [entry * entry for entry in range(10)]


def test_work_runs_ahead_but_no_further_than_asked() -> None:
    begun: list[int] = []
    third = threading.Event()

    def make(entry: int) -> int:
        begun.append(entry)
        if entry == 2:
            third.set()
        return entry

    made = made_ahead(make, range(100), depth=2)
    assert next(made) == 0
    assert third.wait(5)  # two more are made while nobody asks
    time.sleep(0.05)
    assert begun == [0, 1, 2]
    made.close()


def test_an_early_stop_makes_nothing_more() -> None:
    begun: list[int] = []
    second, go_on = threading.Event(), threading.Event()

    def make(entry: int) -> int:
        begun.append(entry)
        if entry == 1:
            second.set()
            go_on.wait(60)
        return entry

    made = made_ahead(make, range(100), depth=5)
    assert next(made) == 0
    assert second.wait(60)  # 1 is in work; 2, 3, 4 and 5 wait for their turn
    threading.Timer(1, go_on.set).start()
    made.close()  # waits for what is in work
    assert go_on.is_set()
    assert begun == [0, 1]


def test_an_error_comes_out_at_its_place() -> None:
    def make(entry: int) -> float:
        return 1 / (entry - 2)

    made = made_ahead(make, range(5), depth=3)
    assert [next(made), next(made)] == [-0.5, -1.0]
    with pytest.raises(ZeroDivisionError):
        next(made)
