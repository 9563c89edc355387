"""Probabilities for raw ECG files, prepared exactly as the run's training records were.

Shapes: n windows, C leads, N patches, P padded patch length.
"""

import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ecgfast import log
from ecgfast.convert.preprocess import CutRecording, Window, check_source, read_windows
from ecgfast.errors import ConfigError, FormatError, ShapeError
from ecgfast.ingest import InputFile
from ecgfast.ingest.inventory import Inventory, walk
from ecgfast.prediction import COLUMNS, Prediction, averaged, write_lines
from ecgfast.predictor import EcgModel, load_model, signal_checks
from ecgfast.records import LEADS, SAMPLING_RATE_HZ
from ecgfast.runs.column_task import Number
from ecgfast.runs.leads import require_fewer_possible
from ecgfast.runs.located import located
from ecgfast.runs.register import SeenFiles, read_register
from ecgfast.store.durable import DurableFile, explained
from ecgfast.store.format import refuse_inside_store, refuse_to_replace
from ecgfast.vocabulary import Short, WindowChoice

_BLOCK_WINDOWS = 64  # scored at once: a recording of hours has a thousand
_FIRST = f"{COLUMNS[0]},".encode()


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
    leads: Sequence[str] | None = None,
    allow_missing: bool = False,
) -> list[Prediction]:
    """Return the probability of each window of each file, in memory.

    Args:
        run: folder of a finished fine-tuning, or what else `ecgfast.load_model` takes.
        files: raw ECGs or folders of them.
        key_file: as for `write_predictions`.
        average: as for `write_predictions`.
        leads: as for `write_predictions`.
        allow_missing: as for `write_predictions`.
    Raises:
        ConfigError: the run is no classifier, its weights are no numbers, the key is not that of
            its store, or it does not take such leads.
        FormatError: a file does not exist, or a folder holds no ECG.
    """
    predictor = Predictor(run, key_file, average=average, leads=leads, allow_missing=allow_missing)
    items = list(walk([*map(Path, files)], Inventory()))  # a line names its file, not its id
    groups = log.track(map(predictor, items), "predict", total=len(items), unit="files")
    return [line for group in groups for line in group]


def write_predictions(
    run: str | Path,
    files: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    key_file: str | Path | None = None,
    average: bool = False,
    leads: Sequence[str] | None = None,
    allow_missing: bool = False,
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
        leads: names of some of the leads that the run learned from: no others are looked at, as if
            masked. A file without one of them is refused. With this or `allow_missing`, and of a
            run on fewer than twelve, the column "leads" says which were used.
        allow_missing: take files that lack leads with those that they have.
    Returns:
        how many files there were, and how many could not be used; their lines say why.
    Raises:
        ConfigError: the run is no classifier, its weights are no numbers, the key is not that of
            its store, it does not take such leads, or `out` is an input or any other file that no
            predict wrote.
        FormatError: a file does not exist, or a folder holds no ECG.
    """
    out = None if out is None else Path(out)
    if out is not None:
        refuse_inside_store(out, "--out")
        refuse_to_replace(out, "--out", _FIRST, "table of predict")
    predictor = Predictor(run, key_file, average=average, leads=leads, allow_missing=allow_missing)
    items = list(walk([*map(Path, files)], Inventory()))  # a line names its file, not its id
    rows = log.track(map(predictor, items), "predict", total=len(items), unit="files")
    write = partial(
        write_lines,
        rows,
        average=average,
        leads=predictor.says_leads,
        of_number=predictor.of_number,
    )
    if out is None:
        return Predicted(len(items), write(_show, named=log.plain))
    with explained(out):
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
        leads: as for `write_predictions`.
        allow_missing: as for `write_predictions`.

    Attributes:
        says_leads: whether not every line is of all twelve leads.
        thresholds: name of each target of the run -> its threshold with the highest Youden index
            on the run's validation records, or None.
        of_number: whether the run learned a number, and gives values instead of probabilities.

    Raises:
        ConfigError: the run is no classifier, its weights are no numbers, the key is not that of
            its store, or it does not take such leads.
    """

    def __init__(
        self,
        run: str | Path,
        key_file: str | Path | None = None,
        *,
        average: bool = False,
        leads: Sequence[str] | None = None,
        allow_missing: bool = False,
    ) -> None:
        folder = located(run)
        model = load_model(folder, leads=leads)
        if not model.thresholds:
            raise ConfigError(
                f"{run} must be a fine-tuned run, got a {model.meta.kind} run; make one with "
                "ecgfast finetune --init RUN"
            )
        if allow_missing:
            require_fewer_possible(model.meta)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        self._model_of = {model.leads: model}
        self._leads, self._allow_missing = model.leads, allow_missing
        self.says_leads = allow_missing or leads is not None or model.leads != LEADS
        made = model.meta.preprocessing.store
        self._average = average
        self._window: WindowChoice = "all" if average else made["window"]
        self._short: Short = made["short"]
        self.thresholds = model.thresholds
        self.of_number = isinstance(model.meta.task, Number)
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
            found = read_windows(
                item,
                window=self._window,
                short=self._short,
                leads=[LEADS.index(lead) for lead in self._leads],
                allow_missing=self._allow_missing,
            )
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

    def _model_on(self, missing: set[str]) -> EcgModel:
        """The run's model on the leads that are left; each is made once."""
        leads = tuple(lead for lead in self._leads if lead not in missing)
        if leads not in self._model_of:
            self._model_of[leads] = self._model_of[self._leads].on_leads(leads)
        return self._model_of[leads]

    def _unusable(self, item: InputFile, why: str) -> list[Prediction]:
        line = partial(Prediction, file=item.path, start_s=0.0, probability=None, note=why)
        return [line(target=name, threshold=value) for name, value in self.thresholds.items()]

    def _scored(self, item: InputFile, found: CutRecording) -> list[Prediction]:
        """One line for each window and target, in order of time."""
        usable = [each for each in found.windows if isinstance(each, Window)]
        model = self._model_on({LEADS[number] for number in found.record.missing})
        scores: list[list[float]] = []
        checks: list[list[str]] = []
        for first in range(0, len(usable), _BLOCK_WINDOWS):
            block = usable[first : first + _BLOCK_WINDOWS]
            patches_nNP = model.prepare(found.samples, block)
            scores += model.scores(patches_nNP).reshape(len(block), -1).tolist()
            if found.record.missing:  # they compare the leads with each other
                checks += [["unchecked"]] * len(block)
            else:
                checks += signal_checks(found.samples, block)
        seen = self._seen.words(item.record_id, found.record, [each.signal for each in usable])
        lines = iter(zip(usable, scores, checks, seen, strict=True))
        return [
            line
            for each in found.windows
            for line in (
                self._lines(item, model.leads, *next(lines))
                if isinstance(each, Window)
                else self._unusable(item, str(each))
            )
        ]

    def _lines(
        self,
        item: InputFile,
        leads: tuple[str, ...],
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
                leads=leads,
            )]  # fmt: skip
        return found
