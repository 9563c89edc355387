"""The end of a process that was one of several ranks."""

import hashlib
import subprocess
import sys
import threading
import time

from ecgfast.train.distributed import _wait_for_threads


def test_a_thread_at_work_is_waited_for() -> None:
    data = bytes(200 << 20)
    thread = threading.Thread(target=hashlib.sha256, args=(data,))  # without the interpreter's lock
    thread.start()
    _wait_for_threads(limit_s=60)
    assert not thread.is_alive()


def test_threads_that_sleep_are_not_waited_for() -> None:
    released = threading.Event()
    thread = threading.Thread(target=released.wait)
    thread.start()
    begin = time.monotonic()
    _wait_for_threads(limit_s=60)
    assert time.monotonic() - begin < 30
    released.set()
    thread.join()


def test_the_interpreter_ends_after_the_threads_of_ranks() -> None:
    """A process of ranks waits at its exit, whatever then ends it."""
    program = """
from ecgfast.train import distributed
distributed._wait_for_threads = lambda: print("waited")
with distributed.join("cpu", mesh_of_one=True) as ranks:
    ranks.barrier()
print("left")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split() == ["left", "waited"]
