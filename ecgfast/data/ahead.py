"""Working on later batches while an earlier one is used."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Entry = TypeVar("Entry")
Made = TypeVar("Made")


def made_ahead(
    make: Callable[[Entry], Made], entries: Iterable[Entry], *, depth: int, num_threads: int = 1
) -> Generator[Made, None, None]:
    """Yield ``make(entry)`` of each entry, in order, with threads that run some entries ahead.

    Args:
        make: called from the threads.
        entries: what to make.
        depth: results that may lie finished or in work while the consumer has one.
        num_threads: entries in work at a time.
    """
    with ThreadPoolExecutor(num_threads, thread_name_prefix="ecgfast-ahead") as pool:
        pending: deque[Future[Made]] = deque()
        try:
            for entry in entries:
                pending.append(pool.submit(make, entry))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # the consumer stopped early: do not make what nobody will use
            for future in pending:
                future.cancel()
