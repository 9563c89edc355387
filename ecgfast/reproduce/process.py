"""A cell is done by a process of its own: what kills it, or ruins a GPU for it, harms no other."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ecgfast import log
from ecgfast.errors import BusyError, ConfigError
from ecgfast.reproduce.cells import (
    PRODUCT,
    Cell,
    Outcome,
    beside_cell,
    inputs_of,
    is_finished,
    outcome_of,
)
from ecgfast.runs.digests import entries
from ecgfast.runs.initial import imagenet_file
from ecgfast.store.durable import exclusive, write_durably
from ecgfast.train.guards import STOPPING

_LOG_EVERY_S = 600.0  # the last line of a running cell's log is shown so often
# The child dies with this process, however that dies (prctl 1: PR_SET_PDEATHSIG).
_GUARD = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
_TORCHRUN = (
    *("-m", "torch.distributed.run", "--standalone"),
    *("--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"),
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and how cells run.

    Attributes:
        store: path.
        device: "cpu", "cuda" or "cuda:N"; None: a GPU where there is one.
        ranks: processes of a training, each with its GPU; more than 1 are started by torchrun.
        strict: as ``--strict``.
    Raises:
        ConfigError: no such device, or this process is itself one of several ranks.
    """

    store: Path
    device: str | None = None
    ranks: int = 1
    strict: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device or "cuda"):
            raise ConfigError(f"device must be cpu, cuda or cuda:N, got {self.device!r}")
        if self.ranks > 1 and ":" in (self.device or ""):
            raise ConfigError(
                f"{self.ranks} ranks take a GPU each, got device {self.device!r}; choose GPUs with "
                "CUDA_VISIBLE_DEVICES"
            )
        if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
            raise ConfigError(
                "reproduce starts the ranks of its trainings itself, got RANK and WORLD_SIZE in "
                "the environment; run it without torchrun, with --ranks"
            )


def run_cell(cell: Cell, place: Place) -> Outcome:
    """Do a cell, from where it was interrupted, unless it is finished or another process has it.

    It takes no state but files, so that it can be called in any process of any machine that sees
    them.

    Args:
        cell: whose needs are finished.
        place: where it runs.
    """
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive(cell.folder.with_name(f".{cell.folder.name}.lock"), cell.folder):
            before = outcome_of(cell.folder)
            if before is not None and is_finished(cell):
                return before
            outcome = _attempt(cell, place, 0.0 if before is None else before.seconds)
            text = json.dumps(vars(outcome), indent=1) + "\n"
            write_durably(beside_cell(cell.folder, "json"), [text.encode()])
            return outcome
    except BusyError as error:
        return Outcome(state="busy", reason=str(error))


def _attempt(cell: Cell, place: Place, seconds: float) -> Outcome:
    if cell.imagenet is not None:
        try:
            imagenet_file(cell.imagenet)
        except ConfigError as error:
            return Outcome(state="no weights", reason=str(error))
    begin = time.monotonic()
    reason = _run(cell, place)
    seconds += time.monotonic() - begin
    if reason:
        return Outcome(state="failed", reason=reason, seconds=seconds)
    return Outcome(
        state="finished",
        seconds=seconds,
        files=entries(cell.folder, (PRODUCT[cell.kind],)),
        inputs=inputs_of(cell),
        identity=dict(cell.identity),
    )


def _run(cell: Cell, place: Place) -> str:
    """Run the command to its end; why it failed, or nothing."""
    command = _command(cell, place)
    with cell.log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(['python', *command[3:]])}\n")
        file.flush()
        process = subprocess.Popen(
            command,
            env=_environment(place),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes to this process, which passes it on once
        )
        with _passed_on(process) as received:
            while True:
                try:
                    status = process.wait(timeout=_LOG_EVERY_S)
                    break
                except subprocess.TimeoutExpired:
                    log.info(f"{cell.name}: {_last_line(cell.log)}")
    if received:  # the command has saved what it could: end as it did
        signal.signal(received[0], signal.SIG_DFL)
        os.kill(os.getpid(), received[0])
    if status == 0:
        return ""
    if status < 0:
        return f"its process was killed by {signal.Signals(-status).name}; see {cell.log}"
    last = _last_line(cell.log)
    return last.partition("error: ")[2] or f"its process ended with status {status}: {last}"


def _command(cell: Cell, place: Place) -> list[str]:
    words = [*cell.words, str(place.store)]
    if place.device is not None:
        words += ["--device", place.device.partition(":")[0]]
    if place.strict:
        words.append("--strict")
    launcher: tuple[str, ...] = ()
    if cell.kind != "evaluate" and place.ranks > 1:
        launcher = (*_TORCHRUN, "--nproc-per-node", str(place.ranks))
    return [sys.executable, "-c", _GUARD, *launcher, "-m", "ecgfast", *words]


def _environment(place: Place) -> dict[str, str]:
    """Of the command: it sees the chosen device alone, so that evaluations run there too."""
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    kind, _, number = (place.device or "").partition(":")
    if kind == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif number:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        names = number if visible is None else ",".join(visible.split(",")[int(number) :][:1])
        environment["CUDA_VISIBLE_DEVICES"] = names  # none where there are not so many: an error
    return environment


@contextmanager
def _passed_on(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Pass signals that ask for a stop on to the command; yields those that came."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.send_signal(number)

    is_main = threading.current_thread() is threading.main_thread()  # Python's rule for handlers
    before = {number: signal.signal(number, pass_on) for number in STOPPING if is_main}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(path: Path) -> str:
    """The last line of a log that holds something."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no word")
