"""The pool of processes that does units: its end."""

import os
import signal
import threading

from ecgfast.convert.processes import Processes


def test_the_end_waits_for_no_worker() -> None:
    """A worker that is killed while idle keeps the others from hearing that they may end."""
    pool = Processes(2)
    assert [pool.submit(abs, -n).result(timeout=120) for n in range(4)] == [0, 1, 2, 3]
    workers = [process.pid for process in pool._processes.values() if process.pid is not None]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # it answers nothing
    leaving = threading.Thread(target=pool.__exit__, args=(None, None, None), daemon=True)
    leaving.start()
    leaving.join(timeout=30)
    still_there = leaving.is_alive()
    for pid in workers if still_there else ():
        os.kill(pid, signal.SIGCONT)
    leaving.join(timeout=30)
    assert not still_there
