"""Probabilities for raw ECG files, prepared exactly as the run's training records were.

Shapes: n windows, C leads, N patches, P padded patch length.
"""

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
from ecgfast.convert.content import content_digests
from ecgfast.convert.preprocess import Digits, Segment, cut, to_digits
from ecgfast.data.normalise import CohortStatistics, mean_and_rstd
from ecgfast.errors import ConfigError, FormatError, ShapeError
from ecgfast.ingest import InputFile, discover, read_record
from ecgfast.model.classifier import Classifier
from ecgfast.records import SAMPLING_RATE_HZ, EcgRecord
from ecgfast.runs.register import Register, Role, read_register
from ecgfast.store.pseudonyms import PatientIds, Pseudonyms, read_key
from ecgfast.store.spreadsheets import csv_lines
from ecgfast.train.checkpoint import load_model

COLUMNS = ("file", "start_s", "target", "probability", "threshold", "finding", "note")

# Words of the column note on ECGs that are no test of the run.
LEARNED_FROM, READ_BEFORE = "learned_from", "read_in_pretraining"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One window of one file.

    Attributes:
        file: as it was given or found.
        start_s: where the window begins, seconds.
        probability: of the run's target, in [0, 1]; None where the file cannot be used.
        finding: whether it reaches the run's threshold; None without either.
        note: why not, or what was done to the signal, and whether the run has seen this ECG or
            patient in training; empty for digits used as they were.
    """

    file: Path
    start_s: float
    probability: float | None
    finding: bool | None = None
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


def predict(
    run: Path, files: Sequence[Path], out: Path | None = None, *, key_file: Path | None = None
) -> int:
    """Write a CSV with one line per window of each file.

    Args:
        run: folder of a finished fine-tuning.
        files: raw ECGs or folders of them.
        out: CSV to write; None writes to the standard output.
        key_file: pseudonym key of the run's store, by which other ECGs of its patients are
            recognised; without it, only the ECGs themselves are.
    Returns:
        how many files could not be used; their lines say why.
    Raises:
        ConfigError: the run is no classifier, or the key is not that of its store.
        FormatError: a file does not exist, or a folder holds no ECG.
    """
    predictor = Predictor(run, key_file)
    items = discover(files)
    rows = log.track((predictor(item) for item in items), "predict", total=len(items), unit="files")
    if out is None:
        return _write(rows, sys.stdout, predictor)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        return _write(rows, file, predictor)


class Predictor:
    """A fine-tuned run, ready to score raw files.

    Args:
        run: folder of a finished fine-tuning.
        key_file: pseudonym key of its store, None where it is not at hand.

    Attributes:
        target: what a case is.
        threshold: with the highest Youden index on the run's validation records, or None.

    Raises:
        ConfigError: the run is no classifier, or the key is not that of its store.
    """

    def __init__(self, run: Path, key_file: Path | None = None) -> None:
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
        self.target: str = meta["identity"]["target"]
        self.threshold: float | None = meta.get("thresholds", {}).get("youden")
        register = read_register(run)
        if register is None:
            log.warning(f"{run} does not say whom it learned from: an earlier version trained it")
        self._known = _Known(register, key_file)

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
        known = iter(self._known.words(item, record, usable))
        return [
            self._scored(item, window, next(scores), next(known))
            if isinstance(window, Segment)
            else Prediction(file=item.path, start_s=0.0, probability=None, note=str(window))
            for window in windows
        ]

    def _scored(
        self, item: InputFile, window: Segment, probability: float, known: tuple[str, ...]
    ) -> Prediction:
        return Prediction(
            file=item.path,
            start_s=window.start / SAMPLING_RATE_HZ,
            probability=probability,
            finding=None if self.threshold is None else probability >= self.threshold,
            note=" ".join(sorted({*window.flags, *known})),
        )

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


class _Known:
    """Patients and ECGs that a run has seen.

    Args:
        register: of the run, None where it has none.
        key_file: pseudonym key of its store, or None.
    """

    def __init__(self, register: Register | None, key_file: Path | None) -> None:
        self._seen: dict[str, set[str]] = {LEARNED_FROM: set(), READ_BEFORE: set()}
        self._pseudonyms: Pseudonyms | None = None
        if register is None:
            return
        roles: dict[str, tuple[Role, ...]] = {
            LEARNED_FROM: ("train", "valid"),
            READ_BEFORE: ("pretrain",),
        }
        for word, parts in roles.items():
            rows = register.select(*parts)
            for name in ("patient", "content"):
                self._seen[word] |= set(rows[name].drop_null().to_pylist())
        if key_file is not None:
            ids: PatientIds = "site" if register.patient_ids == "site" else "global"
            self._pseudonyms = Pseudonyms(read_key(key_file), patient_ids=ids)
            if self._pseudonyms.fingerprint != register.key_fingerprint:
                raise ConfigError(
                    f"pseudonym key {key_file}: it is not the key of the store that the run was "
                    "trained on; give that one with --key-file, or none"
                )

    def words(
        self, item: InputFile, record: EcgRecord, windows: Sequence[Segment]
    ) -> list[tuple[str, ...]]:
        """What the run has seen of each window of a file, or of its patient."""
        if not windows:
            return []
        signal_nCT = np.stack([window.signal for window in windows])
        digests = content_digests(signal_nCT, signal_nCT.std(axis=2))
        patient = self._patient(item, record)
        return [
            tuple(word for word, names in self._seen.items() if {digest, patient} & names)
            for digest in digests
        ]

    def _patient(self, item: InputFile, record: EcgRecord) -> str | None:
        if self._pseudonyms is None:
            return None
        if record.patient_id is None:
            return self._pseudonyms.of("record as patient", item.record_id)
        return self._pseudonyms.patient(record.patient_id, record.site)


def _cohort(values: dict[str, Any] | None) -> CohortStatistics | None:
    if values is None:
        return None
    return CohortStatistics(mean_uv=tuple(values["mean_uv"]), std_uv=tuple(values["std_uv"]))


def _write(groups: Iterator[list[Prediction]], file: TextIO, predictor: Predictor) -> int:
    """Write lines as they come; return how many files have none with a probability."""
    file.write(csv_lines([COLUMNS]))
    threshold = "" if predictor.threshold is None else f"{predictor.threshold:.6f}"
    unusable = 0
    for group in groups:
        for line in group:
            share = "" if line.probability is None else f"{line.probability:.6f}"
            finding = "" if line.finding is None else ("yes" if line.finding else "no")
            start = f"{line.start_s:g}"
            row = (str(line.file), start, predictor.target, share, threshold, finding, line.note)
            file.write(csv_lines([row]))
        file.flush()
        unusable += all(line.probability is None for line in group)
    return unusable
