"""Probabilities for raw ECG files, prepared exactly as the run's training records were.

Shapes: n windows, C leads, N patches, P padded patch length.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ecgfast import log
from ecgfast.convert.preprocess import CutRecording, Window, check_source, read_windows
from ecgfast.errors import ConfigError, FormatError, ShapeError
from ecgfast.ingest import InputFile
from ecgfast.ingest.inventory import discover
from ecgfast.predictor import load_model, signal_checks
from ecgfast.records import SAMPLING_RATE_HZ
from ecgfast.runs.export import located
from ecgfast.runs.register import SeenFiles, read_register
from ecgfast.store.csv_files import csv_lines
from ecgfast.store.durable import DurableFile
from ecgfast.store.format import refuse_inside_store, refuse_to_replace
from ecgfast.vocabulary import Short, WindowChoice

_BLOCK_WINDOWS = 64  # scored at once: a recording of hours has a thousand
COLUMNS = ("file", "start_s", "target", "probability", "threshold", "finding", "note")
# With the windows of each file averaged: how far they lie apart, instead of where one begins.
SPREAD = ("windows", "sd", "lowest", "highest")
AVERAGED_COLUMNS = ("file", *COLUMNS[2:4], *SPREAD, *COLUMNS[4:])

_FIRST = f"{COLUMNS[0]},".encode()


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
        probability: of the target, in [0, 1]; None where the file cannot be used.
        threshold: of the run for this target, None where it has none.
        finding: whether the probability reaches it; None without either.
        note: why not, or what was done to the signal, what the signal checks of convert find in
            it, and whether the run has seen this ECG or patient in training; empty for a signal
            used as it was.
        spread: of the windows that were averaged, None of a single window.
    """

    file: Path
    target: str
    start_s: float
    probability: float | None
    threshold: float | None
    finding: bool | None = None
    note: str
    spread: Spread | None = None


class Predicted(NamedTuple):
    """How many files were given, and how many have no probability."""

    num_files: int
    num_refused: int


def predict(
    run: str | Path,
    files: Sequence[str | Path],
    *,
    key_file: str | Path | None = None,
    average: bool = False,
) -> list[Prediction]:
    """Return the probability of each window of each file, in memory.

    Args:
        run: folder of a finished fine-tuning, or what else `ecgfast.load_model` takes.
        files: raw ECGs or folders of them.
        key_file: as for `write_predictions`.
        average: as for `write_predictions`.
    Raises:
        ConfigError: the run is no classifier, its weights are no numbers, or the key is not that
            of its store.
        FormatError: a file does not exist, or a folder holds no ECG.
    """
    predictor, items = Predictor(run, key_file, average=average), discover([*map(Path, files)])
    groups = log.track(map(predictor, items), "predict", total=len(items), unit="files")
    return [line for group in groups for line in group]


def write_predictions(
    run: str | Path,
    files: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    key_file: str | Path | None = None,
    average: bool = False,
) -> Predicted:
    """Write a CSV with one line per window of each file, or per file, and target of the run.

    Args:
        run: folder of a finished fine-tuning, or what else `ecgfast.load_model` takes.
        files: raw ECGs or folders of them.
        out: CSV to write, whole or not at all; None writes to the standard output.
        key_file: pseudonym key of the run's store, by which other ECGs of its patients are
            recognised; without it, only the ECGs themselves are.
        average: one line per file and target, the mean probability of all whole windows with
            their spread, whether or not the run's store took more than the first one.
    Returns:
        how many files there were, and how many could not be used; their lines say why.
    Raises:
        ConfigError: the run is no classifier, its weights are no numbers, the key is not that of
            its store, or `out` is an input or any other file that no predict wrote.
        FormatError: a file does not exist, or a folder holds no ECG.
    """
    out = None if out is None else Path(out)
    if out is not None:
        refuse_inside_store(out, "--out")
        refuse_to_replace(out, "--out", _FIRST, "table of predict")
    predictor, items = Predictor(run, key_file, average=average), discover([*map(Path, files)])
    rows = log.track(map(predictor, items), "predict", total=len(items), unit="files")
    write = partial(_write, rows, average=average)
    if out is None:
        return Predicted(len(items), write(_show, named=log.plain))
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists() and not out.is_file():  # a pipe, /dev/stdout: nothing that could be half a file
        with out.open("w", newline="", encoding="utf-8", errors="backslashreplace") as pipe:
            return Predicted(len(items), write(lambda lines: print(lines, end="", file=pipe)))
    file = DurableFile(Path(os.path.realpath(out)))  # a link stays, what it leads to is replaced
    try:
        unusable = write(lambda lines: file.write([lines.encode(errors="backslashreplace")]))
    except BaseException:  # Ctrl-C too
        file.discard()
        raise
    file.finish()
    return Predicted(len(items), unusable)


def _show(lines: str) -> None:
    """Print lines at once; names of files are shown, never obeyed by the terminal."""
    log.show(lines.removesuffix("\n"))
    if sys.stdout is not None:  # closed by the caller, who wants no lines
        sys.stdout.flush()


class Predictor:
    """A fine-tuned run, ready to score raw files.

    Args:
        run: as for `predict`.
        key_file: pseudonym key of its store, None where it is not at hand.
        average: as for `write_predictions`.

    Attributes:
        thresholds: name of each target of the run -> its threshold with the highest Youden index
            on the run's validation records, or None.

    Raises:
        ConfigError: the run is no classifier, its weights are no numbers, or the key is not that
            of its store.
    """

    def __init__(
        self, run: str | Path, key_file: str | Path | None = None, *, average: bool = False
    ) -> None:
        folder = located(run)
        model = load_model(folder)
        if not model.thresholds:
            raise ConfigError(
                f"{run} must be a fine-tuned run, got a {model.meta.kind} run; make one with "
                "ecgfast finetune --init RUN"
            )
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        made = model.meta.preprocessing.store
        self._average = average
        self._window: WindowChoice = "all" if average else made["window"]
        self._short: Short = made["short"]
        self.thresholds = model.thresholds
        register = read_register(folder)
        if register is None:
            log.warning(
                f"{run} does not say whom it learned from: it was exported, or an earlier version "
                "trained it"
            )
        self._seen = SeenFiles(register, None if key_file is None else Path(key_file))

    def __call__(self, item: InputFile) -> list[Prediction]:
        """Score every window of one file; one that cannot be used gives a line that says why."""
        try:
            found = read_windows(item, window=self._window, short=self._short)
        except (FormatError, ShapeError) as error:
            check_source(item.source, again="run the same command again")
            return self._unusable(item, str(error))
        try:
            lines = self._scored(item, found)
            if not self._average:
                return lines
            return [averaged([each for each in lines if each.target == n]) for n in self.thresholds]
        except (MemoryError, torch.OutOfMemoryError) as error:
            return self._unusable(item, f"{item.path.name}: cannot be scored: {error!r}")

    def _unusable(self, item: InputFile, why: str) -> list[Prediction]:
        line = partial(Prediction, file=item.path, start_s=0.0, probability=None, note=why)
        return [line(target=name, threshold=value) for name, value in self.thresholds.items()]

    def _scored(self, item: InputFile, found: CutRecording) -> list[Prediction]:
        """One line for each window and target, in order of time."""
        usable = [each for each in found.windows if isinstance(each, Window)]
        scores: list[list[float]] = []
        checks: list[list[str]] = []
        for first in range(0, len(usable), _BLOCK_WINDOWS):
            block = usable[first : first + _BLOCK_WINDOWS]
            patches_nNP = self._model.prepare(found.samples, block)
            scores += self._model.scores(patches_nNP).reshape(len(block), -1).tolist()
            checks += signal_checks(found.samples, block)
        seen = self._seen.words(item.record_id, found.record, [each.signal for each in usable])
        lines = iter(zip(usable, scores, checks, seen, strict=True))
        return [
            line
            for each in found.windows
            for line in (
                self._lines(item, *next(lines))
                if isinstance(each, Window)
                else self._unusable(item, str(each))
            )
        ]

    def _lines(
        self,
        item: InputFile,
        window: Window,
        scores: list[float],
        checks: list[str],
        seen: tuple[str, ...],
    ) -> list[Prediction]:
        words, found = {*window.flags, *checks, *seen}, []
        for (target, threshold), score in zip(self.thresholds.items(), scores, strict=True):
            is_number = math.isfinite(score)
            found += [Prediction(
                file=item.path,
                target=target,
                start_s=window.start / SAMPLING_RATE_HZ,
                probability=score if is_number else None,
                threshold=threshold,
                finding=score >= threshold if is_number and threshold is not None else None,
                note=" ".join(sorted(words if is_number else {*words, "no_number"})),
            )]  # fmt: skip
        return found


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


def _write(
    groups: Iterator[list[Prediction]],
    write: Callable[[str], None],
    *,
    average: bool,
    named: Callable[[str], str] = str,
) -> int:
    """Write lines as they come; return how many files have none with a probability.

    `named` is what becomes of the name of a file.
    """
    write(csv_lines([AVERAGED_COLUMNS if average else COLUMNS]))
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
            rows.append((named(str(line.file)), *cells, threshold, finding, log.plain(line.note)))
        write(csv_lines(rows))
        unusable += all(line.probability is None for line in group)
    return unusable


def _share(value: float | None) -> str:
    """A number in [0, 1] as a table has it; empty where there is none."""
    return "" if value is None else f"{value:.6f}"
