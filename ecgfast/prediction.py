"""What predict says of a window or of a file: a line, the mean of several, and a CSV of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ecgfast import log
from ecgfast.store.csv_files import csv_lines

COLUMNS = ("file", "start_s", "target", "probability", "threshold", "finding", "note")
NUMBER_COLUMNS = (*COLUMNS[:3], "value", "note")  # of a run that learned a number
# With the windows of each file averaged: how far they lie apart, instead of where one begins.
SPREAD = ("windows", "sd", "lowest", "highest")
AVERAGED_COLUMNS = ("file", *COLUMNS[2:4], *SPREAD, *COLUMNS[4:])
AVERAGED_NUMBER_COLUMNS = ("file", *NUMBER_COLUMNS[2:4], *SPREAD, "note")


class Spread(NamedTuple):
    """Probabilities of the windows of a file.

    Attributes:
        windows: how many have one.
        sd: their standard deviation (n - 1), None of one window.
        lowest, highest: probability.
    """

    windows: int
    sd: float | None
    lowest: float
    highest: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One target of one window of one file, or of all its windows averaged.

    Attributes:
        file: as it was given or found.
        target: what a case is, or what is measured.
        start_s: where the window begins, seconds.
        probability: of the target, in [0, 1], or of a run that learned a number the value in the
            unit of its column; None where the file cannot be used.
        threshold: of the run for this target, None where it has none.
        finding: whether the probability reaches it; None without either.
        note: why not, or what was done to the signal, what the signal checks of convert find in
            it, and whether the run has seen this ECG or patient in training; empty for a signal
            used as it was.
        spread: of the windows that were averaged, None of a single window.
        leads: that the model saw, in the order of `LEADS`; none where the file cannot be used.
    """

    file: Path
    target: str
    start_s: float
    probability: float | None
    threshold: float | None
    finding: bool | None = None
    note: str
    spread: Spread | None = None
    leads: tuple[str, ...] = ()


def averaged(lines: Sequence[Prediction]) -> Prediction:
    """The windows of a file as one line: the mean of their probabilities.

    Args:
        lines: of one file and target, in order of time; the mean is compared with their threshold.
    Returns:
        its note has the words of all windows, and "windows_left_out" where some have no
        probability; of a file without any, its first line.
    """
    threshold, scored = lines[0].threshold, [e for e in lines if e.probability is not None]
    if not scored:
        return lines[0]
    shares = np.array([line.probability for line in scored])
    mean, sd = float(shares.mean()), float(shares.std(ddof=1)) if len(shares) > 1 else None
    words = {word for line in scored for word in line.note.split()}
    if len(scored) < len(lines):
        words.add("windows_left_out")
    return replace(
        scored[0],
        probability=mean,
        finding=None if threshold is None else mean >= threshold,
        note=" ".join(sorted(words)),
        spread=Spread(len(scored), sd, float(shares.min()), float(shares.max())),
    )


def write_lines(
    groups: Iterator[list[Prediction]],
    write: Callable[[str], None],
    *,
    average: bool,
    leads: bool,
    of_number: bool = False,
    named: Callable[[str], str] = str,
) -> int:
    """Write lines as they come; return how many files have none with a probability.

    Args:
        groups: lines of each file.
        write: takes them as text.
        average: whether they are of files, not of windows.
        leads: whether they say which leads were used.
        of_number: whether they are values, without threshold and finding.
        named: what becomes of the name of a file.
    """
    last = ("leads",) if leads else ()
    header: tuple[str, ...] = AVERAGED_COLUMNS if average else COLUMNS
    if of_number:
        header = AVERAGED_NUMBER_COLUMNS if average else NUMBER_COLUMNS
    write(csv_lines([(*header, *last)]))
    unusable = 0
    for group in groups:
        rows: list[tuple[str, ...]] = []
        for line in group:
            share, threshold = _share(line.probability), _share(line.threshold)
            finding = "" if line.finding is None else ("yes" if line.finding else "no")
            cells = [f"{line.start_s:g}", line.target, share]
            if average:
                count, *numbers = line.spread or (0, None, None, None)
                cells = [line.target, share, str(count), *map(_share, numbers)]
            cells += (
                [log.plain(line.note)]
                if of_number
                else ([threshold, finding, log.plain(line.note)])
            )
            cells += [" ".join(line.leads)] if leads else []
            rows.append((named(str(line.file)), *cells))
        write(csv_lines(rows))
        unusable += all(line.probability is None for line in group)
    return unusable


def _share(value: float | None) -> str:
    """A probability or value as a table has it; empty where there is none."""
    return "" if value is None else f"{value:.6f}"
