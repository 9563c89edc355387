"""Probabilities for raw ECG files, prepared exactly as the run's training records were.

Shapes: n windows, C leads, N patches, P padded patch length.
"""

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from ecgfast_kernels.codec import lead_statistics, patches_from_int16
from numpy.typing import NDArray

from ecgfast import log
from ecgfast.convert.preprocess import Digits, Segment, cut, to_digits
from ecgfast.data.normalise import CohortStatistics, mean_and_rstd
from ecgfast.errors import ConfigError, FormatError, ShapeError
from ecgfast.ingest import InputFile, discover, read_record
from ecgfast.model.classifier import Classifier
from ecgfast.records import SAMPLING_RATE_HZ
from ecgfast.train.checkpoint import load_model

COLUMNS = ("file", "start_s", "probability", "note")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One window of one file.

    Attributes:
        file: as it was given or found.
        start_s: where the window begins, seconds.
        probability: of the run's target, in [0, 1]; None where the file cannot be used.
        note: why not, or what was done to the signal; empty for digits used as they were.
    """

    file: Path
    start_s: float
    probability: float | None
    note: str


@dataclass(frozen=True, kw_only=True)
class _Statistics:
    """The windows of one file, as normalisation sees a store."""

    scale_uv: NDArray[np.float32]
    offset_adc: NDArray[np.float32]
    lead_mean: NDArray[np.float32]
    lead_std: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.lead_mean)


def predict(run: Path, files: Sequence[Path], out: Path | None = None) -> int:
    """Write a CSV with one line per window of each file.

    Args:
        run: folder of a finished fine-tuning.
        files: raw ECGs or folders of them.
        out: CSV to write; None writes to the standard output.
    Returns:
        how many files could not be used; their lines say why.
    Raises:
        ConfigError: the run is no classifier.
        FormatError: a file does not exist, or a folder holds no ECG.
    """
    predictor = Predictor(run)
    items = discover(files)
    rows = log.track((predictor(item) for item in items), "predict", total=len(items), unit="files")
    if out is None:
        return _write(rows, sys.stdout)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        return _write(rows, file)


class Predictor:
    """A fine-tuned run, ready to score raw files.

    Args:
        run: folder of a finished fine-tuning.
    Raises:
        ConfigError: the run is no classifier.
    """

    def __init__(self, run: Path) -> None:
        model, config, meta = load_model(run)
        if not isinstance(model, Classifier):
            raise ConfigError(
                f"{run} must be a fine-tuned run, got a {meta['kind']} run; make one with "
                "ecgfast finetune --init RUN"
            )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device).eval()
        self._mode: str = config.data.normalise
        self._cohort = _cohort(meta["preprocessing"]["cohort"])
        spec = meta["preprocessing"]["store"]
        self._window, self._short = spec["window"], spec["short"]

    def __call__(self, item: InputFile) -> list[Prediction]:
        """Score every window of one file; one that cannot be used gives a line that says why."""
        try:
            record = read_record(item)
            digits = to_digits(record)
        except (FormatError, ShapeError) as error:
            return [Prediction(file=item.path, start_s=0.0, probability=None, note=str(error))]
        windows = cut(digits, window=self._window, short=self._short)
        usable = [window for window in windows if isinstance(window, Segment)]
        scores = iter(self.probabilities(digits, usable).tolist() if usable else [])
        return [
            Prediction(
                file=item.path,
                start_s=window.start / SAMPLING_RATE_HZ,
                probability=next(scores),
                note=" ".join(sorted(set(window.flags))),
            )
            if isinstance(window, Segment)
            else Prediction(file=item.path, start_s=0.0, probability=None, note=window)
            for window in windows
        ]

    def probabilities(self, digits: Digits, windows: Sequence[Segment]) -> NDArray[np.float64]:
        """Score windows of one record.

        Args:
            digits: the record; gives the windows their units.
            windows: n windows of it.
        Returns:
            (n,) float64 in [0, 1].
        """
        signal_nCT = np.stack([window.signal for window in windows])
        valid = None
        if any(window.valid is not None for window in windows):
            full = np.ones(signal_nCT.shape[1:], dtype=bool)
            valid = np.stack([full if w.valid is None else w.valid for w in windows])
        mean_nC, std_nC = lead_statistics(signal_nCT, valid)
        shape = mean_nC.shape
        statistics = _Statistics(
            scale_uv=np.broadcast_to(digits.scale_uv, shape).astype(np.float32),
            offset_adc=np.broadcast_to(digits.offset_adc, shape).astype(np.float32),
            lead_mean=mean_nC,
            lead_std=std_nC,
        )
        mean, rstd = mean_and_rstd(statistics, self._mode, self._cohort)
        patches_nNP = torch.from_numpy(patches_from_int16(signal_nCT, mean, rstd))
        with torch.inference_mode():
            logits = self._model(patches_nNP.to(self._device).float())
        return torch.sigmoid(logits.double()).cpu().numpy()


def _cohort(values: dict[str, Any] | None) -> CohortStatistics | None:
    if values is None:
        return None
    return CohortStatistics(mean_uv=tuple(values["mean_uv"]), std_uv=tuple(values["std_uv"]))


def _write(groups: Iterator[list[Prediction]], file: TextIO) -> int:
    """Write lines as they come; return how many files have none with a probability."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    unusable = 0
    for group in groups:
        for line in group:
            share = "" if line.probability is None else f"{line.probability:.6f}"
            writer.writerow((line.file, f"{line.start_s:g}", share, line.note))
        file.flush()
        unusable += all(line.probability is None for line in group)
    return unusable
