"""Preemption: all ranks stop after the same step, save, and end with the signal's own status."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from ecgfast import log
from ecgfast.train.distributed import Ranks

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """While entered, SIGTERM, SIGUSR1 and SIGINT ask for a stop instead of ending the process.

    When the body has saved and left, the process ends by the same signal, so that SLURM and shells
    see why. A second signal ends it at once.

    Args:
        ranks: they agree on the step after which to stop, one step late, so that nobody waits.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._received = 0
        self._agreed = 0
        self._group = ranks.side_group() if ranks.world_size > 1 else None
        self._vote: tuple[torch.Tensor, Any] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python's rule for handlers
            self._before = {s: signal.signal(s, self._receive) for s in STOPPING}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._vote is not None:
            self._vote[1].wait()
            self._vote = None

    def agreed(self) -> bool:
        """Whether every rank shall stop now; call it once per step on every rank."""
        if self._ranks.world_size == 1:
            self._agreed = self._received
            return self._agreed != 0
        if self._vote is not None:
            numbers, work = self._vote
            work.wait()  # begun a step ago
            self._agreed = int(numbers.numpy()[0])
        numbers = torch.tensor([self._received])
        work = dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._vote = (numbers, work)
        return self._agreed != 0

    def end_process(self) -> None:
        """End this process by the agreed signal, if there is one; call it when all is saved."""
        if self._agreed:
            signal.signal(self._agreed, signal.SIG_DFL)
            os.kill(os.getpid(), self._agreed)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._received = number
        log.warning(f"{signal.Signals(number).name}: stopping after this step with a checkpoint")
