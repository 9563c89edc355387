"""What a classifier learns: a task, and that of yes or no of each target.

A task knows its labels, its loss, and what its outputs mean; nothing else asks which kind it is.
The tasks of a column are in `column_task`.

Shapes: N records of a store, R of them, B of a batch, K outputs. Logits, and what is predicted from
them, are (B,) of one output and (B, K) of several, as the model gives them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ecgfast.labels.selection import labels_of
from ecgfast.runs.roc import auroc, sensitivity_threshold, youden_threshold
from ecgfast.settings import FinetuneConfig

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What the outputs of a classifier are.

    Attributes:
        targets: as `finetune --target` has them.
    """

    targets: tuple[str, ...]

    @property
    def loss_name(self) -> str:
        """Of its loss, in words."""
        return "cross-entropy"

    @property
    def name(self) -> str:
        """What is learned, in one line."""
        return ", ".join(self.targets)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the K outputs; of yes and no, what a case is, as in --select."""
        return self.targets

    @property
    def is_single(self) -> bool:
        """Whether it is yes or no of one target, whose files name no outputs."""
        return False

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share, as plain values for JSON."""
        return {"target": list(self.targets) if len(self.targets) > 1 else self.targets[0]}

    def refused(self, settings: FinetuneConfig) -> str:
        """Why it cannot be learned with some settings; empty where it can."""
        if settings.number_loss == "squared":
            return ""
        return (
            f"finetune.number_loss is of a target that is a number, got {settings.number_loss} for "
            f"{self.name}; leave it out, or name a column of numbers"
        )

    def fitted(self, truth_RK: Floats, settings: FinetuneConfig) -> Self:
        """The task with what its outputs take from the labels of training, a scale, and a loss."""
        del truth_RK, settings
        return self

    def strata(self, truth_NK: Floats, training: Rows) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """Names of the classes of which subsets take alike, and (N,) the class of each record.

        Rarer ones stand behind: a patient with records of several classes is of the rarest.
        """
        del training
        is_case = np.any(truth_NK > 0, axis=1)
        return ("control", "case"), np.asarray(is_case, np.int64)

    @abstractmethod
    def truth(self, records: pa.Table) -> Floats:
        """(N, K) labels, NaN where unknown: 0 or 1, or numbers in the column's unit.

        Raises:
            ConfigError: a target cannot be read, or does not fit its column.
        """

    def counts(self, truth_RK: Floats) -> list[dict[str, int]]:
        """How many labels of each kind each output has."""
        known, cases = (~np.isnan(truth_RK)).sum(axis=0), (truth_RK > 0).sum(axis=0)
        return [
            {"cases": int(c), "controls": int(n - c)} for c, n in zip(cases, known, strict=True)
        ]

    def lacking(self, truth_RK: Floats, split: str) -> str:
        """Why the labels of a split do not suffice; empty where they do."""
        for name, count in zip(self.outputs, self.counts(truth_RK), strict=True):
            if not all(count.values()):
                return (
                    f"split {split!r} must hold cases and controls of {name!r}, got "
                    f"{count['cases']} cases and {count['controls']} controls"
                )
        return ""

    @abstractmethod
    def loss(self, logits_B: Tensor, truth_BK: Tensor, weight_BK: Tensor) -> Tensor:
        """Mean loss of some records.

        Args:
            logits_B: (B,) or (B, K) fp32.
            truth_BK: fp32, any number where unknown.
            weight_BK: fp32, 0 where unknown.
        """

    @abstractmethod
    def cell_losses(self, logits_RK: Floats, truth_RK: Floats) -> Floats:
        """(R, K) losses, whose mean over the outputs is that of a record."""

    def validation_loss(self, logits_R: Floats, truth_RK: Floats, weight_RK: Floats) -> float:
        """Mean over the outputs of the mean loss of the records that have a label.

        Args:
            logits_R: (R,) or (R, K).
            truth_RK: NaN where unknown.
            weight_RK: of each label, by its class.
        """
        cells_RK = weight_RK * self.cell_losses(_by_output(logits_R, truth_RK), truth_RK)
        known_RK = ~np.isnan(truth_RK)
        return float(np.mean([np.mean(c[k]) for c, k in zip(cells_RK.T, known_RK.T, strict=True)]))

    def on_validation(self, truth_R: Floats, predicted_R: Floats) -> dict[str, Any]:
        """What result.json says of one output, by the records whose label is known."""
        return yes_or_no(truth_R > 0, predicted_R)

    def area(self, logits_R: Floats, truth_RK: Floats) -> float | None:
        """AUROC, of several outputs the mean of those that have cases and controls."""
        odds_RK = _by_output(self.log_odds(torch.from_numpy(logits_R)).numpy(), truth_RK)
        areas = []
        for odds, truth in zip(odds_RK.T, truth_RK.T, strict=True):
            known = ~np.isnan(truth)
            areas.append(auroc(truth[known], odds[known]))
        defined = [area for area in areas if area is not None]
        return float(np.mean(defined)) if defined else None

    def class_weights(self, truth_RK: Floats) -> Floats:
        """(K, 2) weights of controls and cases by which both weigh alike in training.

        Source: King and Zeng 2001; scikit-learn's "balanced".
        """
        cases, known = np.nansum(truth_RK, axis=0), (~np.isnan(truth_RK)).sum(axis=0)
        return np.stack([known / (2 * (known - cases)), known / (2 * cases)], axis=1)

    @abstractmethod
    def predictions(self, logits_B: Tensor) -> Tensor:
        """Probabilities, or numbers in the column's unit: fp64, in the shape of the logits."""

    def log_odds(self, logits_B: Tensor) -> Tensor:
        """Of each output against all else, in the shape of the logits."""
        return logits_B

    @abstractmethod
    def first_logits(self, truth_RK: Floats, weight_RK: Floats) -> Tensor:
        """(K,) fp64 logits of a model that knows nothing but the labels of training.

        Args:
            truth_RK: NaN where unknown.
            weight_RK: of each label, by its class.
        """


@dataclass(frozen=True, kw_only=True)
class Binary(Task):
    """Yes or no of each target; a record may have any of them, or none."""

    @property
    def is_single(self) -> bool:  # noqa: D102 (as of Task)
        return len(self.targets) == 1

    def refused(self, settings: FinetuneConfig) -> str:
        """Several targets have no classes of which one could take so many each."""
        if settings.labels_per_class is None or self.is_single:
            return super().refused(settings)
        return (
            "finetune.labels_per_class must be unset for several targets, whose classes overlap, "
            f"got {settings.labels_per_class}; set finetune.label_fraction"
        )

    def truth(self, records: pa.Table) -> Floats:
        """Unknown where a cell of the target is null."""
        columns = [labels_of(records, target) for target in self.targets]
        return np.stack([np.where(known, y, np.nan) for y, known in columns], axis=1)

    def loss(self, logits_B: Tensor, truth_BK: Tensor, weight_BK: Tensor) -> Tensor:
        """Binary cross-entropy."""
        logits_BK = logits_B.view_as(truth_BK)
        return binary_cross_entropy_with_logits(logits_BK, truth_BK, weight=weight_BK)

    def cell_losses(self, logits_RK: Floats, truth_RK: Floats) -> Floats:
        """Binary cross-entropy."""
        losses: Floats = np.logaddexp(0.0, logits_RK) - logits_RK * truth_RK
        return losses

    def predictions(self, logits_B: Tensor) -> Tensor:
        """Probabilities, each by itself."""
        return torch.sigmoid(logits_B.double())

    def first_logits(self, truth_RK: Floats, weight_RK: Floats) -> Tensor:
        """Those of the prevalence."""
        weights = np.where(np.isnan(truth_RK), 0.0, weight_RK)
        cases = np.nansum(weights * truth_RK, axis=0)
        return torch.logit(torch.from_numpy(cases / weights.sum(axis=0)))


def yes_or_no(is_case: NDArray[np.bool_], probability: Floats) -> dict[str, Any]:
    """AUROC and thresholds of the validation records of one output."""
    thresholds = {
        "youden": youden_threshold(is_case, probability),
        "sensitivity_90": sensitivity_threshold(is_case, probability, 0.9),
    }
    return {"val_auroc": auroc(is_case, probability), "thresholds": thresholds}


def _by_output(values_R: Floats, truth_RK: Floats) -> Floats:
    """(R, K) of values as a model gives them."""
    return values_R.reshape(truth_RK.shape)
