"""Console lines, progress, and the numbers of a run (``metrics.jsonl`` and TensorBoard)."""

import io
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ecgfast.errors import BackendUnavailableError, FormatError, with_addresses

T = TypeVar("T")
Advance = Callable[[int], None]

console = Console(stderr=True)
logger = logging.getLogger("ecgfast")
_PLAIN_PERIOD_S = 5.0
_strict = False
_reported: set[str] = set()  # slower paths, each once

# Characters that move a terminal's cursor, end a line or change its direction; surrogates.
_ESCAPES = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))},
    **{
        code: f"\\u{code:04x}"
        for start, end in ((0x200E, 0x200F), (0x2028, 0x202E), (0x2066, 0x2069), (0xD800, 0xDFFF))
        for code in range(start, end + 1)
    },
    **{ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t", 0x061C: "\\u061c"},
}


def plain(text: str) -> str:
    r"""Return a text as one line without control characters, which names of files can hold.

    They are written as Python writes them, such as \x1b; addresses get back the slash that a `Path`
    takes from them.
    """
    return with_addresses(text).translate(_ESCAPES)


def show(text: object) -> None:
    """Print a result to the standard output, each of its lines `plain`."""
    print("\n".join(map(plain, str(text).split("\n"))))


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 unit, 1,000 units."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def setup(*, debug: bool = False, strict: bool = False, rank: int = 0) -> None:
    """Send the package's log lines to stderr: coloured on a terminal, plain lines elsewhere.

    Args:
        debug: show debug lines as well.
        strict: `slower_path` raises instead of warning.
        rank: only rank 0 shows lines below WARNING.
    """
    global _strict
    _strict = strict
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, markup=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    level = logging.DEBUG if debug else logging.INFO
    logger.setLevel(level if rank == 0 else logging.WARNING)


def is_strict() -> bool:
    """Whether `setup` got ``strict``: what would be a warning is an error."""
    return _strict


def info(text: str) -> None:
    """Log what happens, or what was chosen and why."""
    logger.info(plain(text))


def warning(text: str) -> None:
    """Log what the user should look at."""
    logger.warning(plain(text))


def slower_path(what: str, *, reason: str, cure: str) -> None:
    """Log once, at WARNING, that a slower path was taken; an error under ``--strict``.

    Raises:
        BackendUnavailableError: `setup` got ``strict``.
    """
    text = f"{what}: {reason}; {cure}"
    if _strict:
        raise BackendUnavailableError(text)
    if text not in _reported:
        _reported.add(text)
        logger.warning(plain(text))


@contextmanager
def progress(what: str, *, total: int | None, unit: str = "records") -> Iterator[Advance]:
    """Show how far a long piece of work is; yields ``advance(count)``.

    Args:
        what: shown before the bar, such as "convert".
        total: how many units there are, None where that is not known yet.
        unit: the word for what is counted.
    """
    what = plain(what)
    if not console.is_terminal:
        yield _PlainProgress(what, total=total, unit=unit).advance
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


def track(
    items: Iterable[T], what: str, *, total: int | None, unit: str = "records"
) -> Iterator[T]:
    """Iterate over `items` with `progress`, one unit each."""
    with progress(what, total=total, unit=unit) as advance:
        for item in items:
            yield item
            advance(1)


class _PlainProgress:
    """A line every few seconds, for log files and CI."""

    def __init__(self, what: str, *, total: int | None, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._start = self._last_line = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last_line >= _PLAIN_PERIOD_S:
            self._last_line = now
            console.print(self._line(now - self._start), highlight=False, soft_wrap=True)

    def _line(self, elapsed_s: float) -> str:
        rate = self._done / elapsed_s
        if self._total is None:
            return f"{self._what}: {self._done:,} {self._unit}, {rate:,.0f}/s"
        share = self._done / max(self._total, 1)
        left_s = (self._total - self._done) / rate if rate else float("inf")
        return (
            f"{self._what}: {self._done:,} of {self._total:,} {self._unit}, "
            f"{share:.0%}, {rate:,.0f}/s, {left_s:,.0f} s left"
        )


class _Board:
    """An event file of TensorBoard, whose name lacks the host's that SummaryWriter puts there.

    Args:
        folder: of event files.
        purge_step: earlier files count up to the step before.
    """

    def __init__(self, folder: Path, *, purge_step: int | None) -> None:
        # Here and not above: it imports torch, and stores are written without it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self.summary = summary
        self._event = Event
        folder.mkdir(exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns() // 1000:016d}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("xb"))
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, summary: object, step: object) -> None:
        """Add a value or a picture of a step."""
        self._write(step=step, summary=summary)

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _write(self, **fields: object) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())


class MetricsWriter:
    """Appends one JSON object per call to ``metrics.jsonl`` and mirrors it to TensorBoard.

    Args:
        folder: the run's folder.
        resume_step: remove every line after this step first: a resumed run writes them again, so
            that the file of an interrupted run equals that of an uninterrupted one.
        tensorboard: also write event files under ``folder/tensorboard``.
    """

    def __init__(
        self, folder: Path, *, resume_step: int | None = None, tensorboard: bool = True
    ) -> None:
        self._path = folder / "metrics.jsonl"
        if self._path.exists():
            _keep_until(self._path, resume_step if resume_step is not None else -1)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = None
        if tensorboard:
            purge = None if resume_step is None else resume_step + 1
            self._board = _Board(folder / "tensorboard", purge_step=purge)

    def write(self, metrics: Mapping[str, float | int | str | None]) -> None:
        """Append `metrics`, which hold an integer ``step``."""
        # JSON has no NaN: a loss that is not a number is null.
        row = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in metrics.items()
        }
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is None:
            return
        step = metrics["step"]
        for name, value in metrics.items():
            if name != "step" and isinstance(value, int | float):
                self._board.add(self._board.summary.scalar(name, value), step)

    def image(self, name: str, png: bytes, *, step: int) -> None:
        """Show a picture in TensorBoard; ``metrics.jsonl`` holds numbers only."""
        if self._board is None:
            return
        import numpy as np  # here, as above
        from PIL import Image

        with Image.open(io.BytesIO(png)) as picture:
            pixels_HWC = np.asarray(picture.convert("RGB"))
        self._board.add(self._board.summary.image(name, pixels_HWC, dataformats="HWC"), step)

    def sync(self) -> None:
        """Force what was written to the disk; called before a checkpoint becomes valid."""
        os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Write everything out and close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Every whole line of a run's ``metrics.jsonl``; a last line cut by a crash is left out.

    Raises:
        FormatError: another line is damaged.
    """
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    rows: list[dict[str, float]] = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            continue
        row = _parsed(line)
        if row is None:
            raise FormatError(
                f"{path}: line {number} is damaged; restore the file or delete the line"
            )
        rows.append(row)
    return rows


def _parsed(line: str) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _keep_until(path: Path, step: int) -> None:
    kept = [row for row in read_metrics(path.parent) if row["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)  # left by a killed run, or a link that leads elsewhere
    with temporary.open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in kept)
    temporary.replace(path)
