"""Probabilities for raw ECG files, prepared exactly as the run's training records were.

Shapes: n windows, C leads, N patches, P padded patch length.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ecgfast_kernels.codec.signals import fingerprints

from ecgfast import log
from ecgfast.convert.measures import LEAST_TIMESTEPS
from ecgfast.convert.preprocess import CutRecording, Samples, Window, check_source, read_windows
from ecgfast.convert.quality import quality_of
from ecgfast.errors import ConfigError, FormatError, ShapeError
from ecgfast.ingest import InputFile
from ecgfast.ingest.inventory import discover
from ecgfast.predictor import load_model, stacked
from ecgfast.records import SAMPLING_RATE_HZ
from ecgfast.runs.export import located
from ecgfast.runs.register import SeenFiles, read_register
from ecgfast.store.csv_files import csv_lines
from ecgfast.store.durable import DurableFile
from ecgfast.store.format import refuse_inside_store, refuse_to_replace
from ecgfast.store.quality import default_limits

_BLOCK_WINDOWS = 64  # scored at once: a recording of hours has a thousand
COLUMNS = ("file", "start_s", "target", "probability", "threshold", "finding", "note")

_FIRST = f"{COLUMNS[0]},".encode()


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One target of one window of one file.

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
    """

    file: Path
    target: str
    start_s: float
    probability: float | None
    threshold: float | None
    finding: bool | None = None
    note: str


class Predicted(NamedTuple):
    """How many files were given, and how many have no probability."""

    num_files: int
    num_refused: int


def predict(
    run: str | Path, files: Sequence[str | Path], *, key_file: str | Path | None = None
) -> list[Prediction]:
    """Return the probability of each window of each file, in memory.

    Args:
        run: folder of a finished fine-tuning, or what else `ecgfast.load_model` takes.
        files: raw ECGs or folders of them.
        key_file: as for `write_predictions`.
    Raises:
        ConfigError: the run is no classifier, its weights are no numbers, or the key is not that
            of its store.
        FormatError: a file does not exist, or a folder holds no ECG.
    """
    predictor, items = Predictor(run, key_file), discover([*map(Path, files)])
    groups = log.track(map(predictor, items), "predict", total=len(items), unit="files")
    return [line for group in groups for line in group]


def write_predictions(
    run: str | Path,
    files: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    key_file: str | Path | None = None,
) -> Predicted:
    """Write a CSV with one line per window of each file and target of the run.

    Args:
        run: folder of a finished fine-tuning, or what else `ecgfast.load_model` takes.
        files: raw ECGs or folders of them.
        out: CSV to write, whole or not at all; None writes to the standard output.
        key_file: pseudonym key of the run's store, by which other ECGs of its patients are
            recognised; without it, only the ECGs themselves are.
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
    predictor, items = Predictor(run, key_file), discover([*map(Path, files)])
    rows = log.track(map(predictor, items), "predict", total=len(items), unit="files")
    if out is None:
        return Predicted(len(items), _write(rows, _show, named=log.plain))
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists() and not out.is_file():  # a pipe, /dev/stdout: nothing that could be half a file
        with out.open("w", newline="", encoding="utf-8", errors="backslashreplace") as pipe:
            unusable = _write(rows, lambda lines: print(lines, end="", file=pipe))
        return Predicted(len(items), unusable)
    file = DurableFile(Path(os.path.realpath(out)))  # a link stays, what it leads to is replaced
    try:
        unusable = _write(rows, lambda lines: file.write([lines.encode(errors="backslashreplace")]))
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

    Attributes:
        thresholds: name of each target of the run -> its threshold with the highest Youden index
            on the run's validation records, or None.

    Raises:
        ConfigError: the run is no classifier, its weights are no numbers, or the key is not that
            of its store.
    """

    def __init__(self, run: str | Path, key_file: str | Path | None = None) -> None:
        folder = located(run)
        model = load_model(folder)
        if not model.thresholds:
            raise ConfigError(
                f"{run} must be a fine-tuned run, got a {model.meta.kind} run; make one with "
                "ecgfast finetune --init RUN"
            )
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        made = model.meta.preprocessing.store
        self._window, self._short = made["window"], made["short"]
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
            return self._scored(item, found)
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
            checks += _checks(found.samples, block)
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
            line = Prediction(
                file=item.path,
                target=target,
                start_s=window.start / SAMPLING_RATE_HZ,
                probability=score if is_number else None,
                threshold=threshold,
                finding=score >= threshold if is_number and threshold is not None else None,
                note=" ".join(sorted(words if is_number else {*words, "no_number"})),
            )
            found.append(line)
        return found


def _checks(samples: Samples, windows: Sequence[Window]) -> list[list[str]]:
    """What the signal checks of convert find in each window, by their default limits."""
    signal_nCT, valid_nCT = stacked(windows)
    scale_nC, offset_nC = (
        np.broadcast_to(each, signal_nCT.shape[:2])
        for each in (samples.scale_uv, samples.offset_adc)
    )
    correlation = fingerprints(signal_nCT, least_timesteps=LEAST_TIMESTEPS).correlation
    rows = quality_of(signal_nCT, valid_nCT, scale_nC, offset_nC, correlation, default_limits())
    return [[*filter(None, row["quality"].split(";"))] for row in rows]


def _write(
    groups: Iterator[list[Prediction]],
    write: Callable[[str], None],
    *,
    named: Callable[[str], str] = str,
) -> int:
    """Write lines as they come; return how many files have none with a probability.

    `named` is what becomes of the name of a file.
    """
    write(csv_lines([COLUMNS]))
    unusable = 0
    for group in groups:
        rows: list[tuple[str, ...]] = []
        for line in group:
            share, threshold = (
                "" if number is None else f"{number:.6f}"
                for number in (line.probability, line.threshold)
            )
            finding = "" if line.finding is None else ("yes" if line.finding else "no")
            start = f"{line.start_s:g}"
            name, note = named(str(line.file)), log.plain(line.note)
            rows.append((name, start, line.target, share, threshold, finding, note))
        write(csv_lines(rows))
        unusable += all(line.probability is None for line in group)
    return unusable
