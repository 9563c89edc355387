"""Tasks whose target is a column, one class of several or a number; and what task a target asks.

Shapes as in `task`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.special import huber, log_softmax
from torch import Tensor
from torch.nn.functional import huber_loss

from ecgfast.errors import ConfigError
from ecgfast.labels.expression import column, equality, is_expression, parse
from ecgfast.labels.selection import classes_of, labels_of, numbers_of
from ecgfast.runs.task import Binary, Floats, Rows, Task
from ecgfast.settings import FinetuneConfig
from ecgfast.vocabulary import NumberLoss

OF_COLUMNS = ("scale", "classes")  # keys of an identity whose target is a column


@dataclass(frozen=True, kw_only=True)
class Classes(Task):
    """One class of several that exclude each other: what a column holds.

    Attributes:
        classes: values of the column; a record with another one has no label.
    """

    classes: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """What a case of each class is, such as ``rhythm=AF``."""
        return tuple(equality(self.name, value) for value in self.classes)

    def identity(self) -> dict[str, Any]:  # noqa: D102 (as of Task)
        return {**super().identity(), "classes": list(self.classes)}

    def truth(self, records: pa.Table) -> Floats:
        """1 of the record's class and 0 of all others; unknown where it is of none."""
        is_class = np.stack([labels_of(records, output)[0] for output in self.outputs], axis=1)
        if (is_class.sum(axis=1) > 1).any():
            raise ConfigError(
                f"--classes must exclude each other, got {', '.join(self.classes)}, of which one "
                f"record of {self.name} has two; name each once"
            )
        return np.where(is_class.any(axis=1, keepdims=True), is_class, np.nan)

    def lacking(self, truth_RK: Floats, split: str) -> str:  # noqa: D102 (as of Task)
        counts = (truth_RK > 0).sum(axis=0)
        none = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if not none:
            return ""
        return (
            f"split {split!r} must hold each class of {self.name}, got no record of "
            f"{', '.join(none)} (--classes names those to learn)"
        )

    def strata(self, truth_NK: Floats, training: Rows) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """The classes, the one with the fewest records of training last."""
        order = np.argsort(-(truth_NK[training] > 0).sum(axis=0), kind="stable")
        names = tuple(self.classes[number] for number in order)
        return names, (truth_NK[:, order] > 0).argmax(axis=1)

    def loss(self, logits_B: Tensor, truth_BK: Tensor, weight_BK: Tensor) -> Tensor:
        """Cross-entropy of the softmax."""
        return -(weight_BK * truth_BK * torch.log_softmax(logits_B, dim=1)).sum(dim=1).mean()

    def cell_losses(self, logits_RK: Floats, truth_RK: Floats) -> Floats:
        """K times what the class of the record adds to its cross-entropy, 0 of the others."""
        losses: Floats = -len(self.classes) * truth_RK * log_softmax(logits_RK, axis=1)
        return losses

    def class_weights(self, truth_RK: Floats) -> Floats:
        """(K, 2), the same for controls and cases: only the class of a record adds to its loss."""
        count = np.nansum(truth_RK, axis=0)
        return np.stack([count.sum() / (len(count) * count)] * 2, axis=1)

    def predictions(self, logits_B: Tensor) -> Tensor:
        """Probabilities, whose sum is 1."""
        return torch.softmax(logits_B.double(), dim=-1)

    def log_odds(self, logits_B: Tensor) -> Tensor:
        """Of each class against all others."""
        own = torch.eye(len(self.classes), dtype=torch.bool, device=logits_B.device)
        others = logits_B[..., None, :].masked_fill(own, -torch.inf)
        return logits_B - others.logsumexp(dim=-1)

    def first_logits(self, truth_RK: Floats, weight_RK: Floats) -> Tensor:
        """Logarithms of the shares of the classes."""
        shares = np.nansum(weight_RK * truth_RK, axis=0)
        return torch.log(torch.from_numpy(shares / shares.sum()))


@dataclass(frozen=True, kw_only=True)
class Number(Task):
    """A number: the values of a column, which training standardises.

    Attributes:
        mean: of the labels of training, in the unit of the column.
        sd: likewise (n - 1).
        number_loss: of standardised values, as `finetune.number_loss`.
    """

    mean: float = 0.0
    sd: float = 1.0
    number_loss: NumberLoss = "squared"

    @property
    def loss_name(self) -> str:  # noqa: D102 (as of Task)
        what = "mean squared error" if self.number_loss == "squared" else "Huber loss"
        return f"{what} of standardised values"

    def identity(self) -> dict[str, Any]:  # noqa: D102 (as of Task)
        return {**super().identity(), "scale": [self.mean, self.sd]}

    def refused(self, settings: FinetuneConfig) -> str:
        """A number has no classes."""
        for name, default in (("class_weights", "none"), ("labels_per_class", None)):
            if (got := getattr(settings, name)) != default:
                return (
                    f"finetune.{name} must be {default or 'unset'} for {self.name}, a number "
                    f"without classes, got {got}; leave it out, or name a target such as "
                    f"'{self.name}<40'"
                )
        return ""

    def fitted(self, truth_RK: Floats, settings: FinetuneConfig) -> Self:
        """With mean and standard deviation of training."""
        values = truth_RK[~np.isnan(truth_RK)]
        mean, sd = float(values.mean()), float(values.std(ddof=1))
        return replace(self, mean=mean, sd=sd, number_loss=settings.number_loss)

    def truth(self, records: pa.Table) -> Floats:
        """In the unit of the column; unknown where it is null, or a limit such as <40 was given."""
        return numbers_of(records, self.name)[:, None]

    def counts(self, truth_RK: Floats) -> list[dict[str, int]]:  # noqa: D102 (as of Task)
        return [{"records": int((~np.isnan(truth_RK)).sum())}]

    def lacking(self, truth_RK: Floats, split: str) -> str:  # noqa: D102 (as of Task)
        values = np.unique(truth_RK[~np.isnan(truth_RK)])
        if len(values) > 1:
            return ""
        return f"split {split!r} must hold different numbers of {self.name}, got {len(values)}"

    def strata(self, truth_NK: Floats, training: Rows) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        """All of one."""
        del training
        return ("labelled",), np.zeros(len(truth_NK), np.int64)

    def loss(self, logits_B: Tensor, truth_BK: Tensor, weight_BK: Tensor) -> Tensor:
        """Mean squared error or Huber loss of standardised values."""
        error_BK = logits_B.view_as(truth_BK) - (truth_BK - self.mean) / self.sd
        loss_BK = error_BK.square()
        if self.number_loss == "huber":
            loss_BK = huber_loss(error_BK, torch.zeros_like(error_BK), reduction="none")
        return (weight_BK * loss_BK).mean()

    def cell_losses(self, logits_RK: Floats, truth_RK: Floats) -> Floats:
        """Squared errors or Huber losses of standardised values."""
        error_RK = logits_RK - (truth_RK - self.mean) / self.sd
        is_squared = self.number_loss == "squared"
        losses: Floats = np.square(error_RK) if is_squared else huber(1.0, error_RK)
        return losses

    def on_validation(self, truth_R: Floats, predicted_R: Floats) -> dict[str, Any]:
        """Errors in the unit of the column."""
        error_R = predicted_R - truth_R
        square, spread = np.square(error_R).mean(), truth_R.var()
        return {
            "val_mae": float(np.abs(error_R).mean()),
            "val_rmse": float(np.sqrt(square)),
            "val_r2": float(1 - square / spread),
            "val_bias": float(error_R.mean()),
        }

    def area(self, logits_R: Floats, truth_RK: Floats) -> float | None:
        """A number has none."""
        del logits_R, truth_RK
        return None

    def predictions(self, logits_B: Tensor) -> Tensor:
        """In the unit of the column."""
        return self.mean + self.sd * logits_B.double()

    def first_logits(self, truth_RK: Floats, weight_RK: Floats) -> Tensor:
        """That of the mean."""
        del truth_RK, weight_RK
        return torch.zeros(1, dtype=torch.float64)


def task_of(
    targets: str | Sequence[str], records: pa.Table | None = None, classes: Sequence[str] = ()
) -> Task:
    """What some targets ask for: yes or no of expressions, or the numbers or classes of a column.

    Args:
        targets: as of `finetune`.
        records: to be learned from, whose columns decide; None: the targets are expressions.
        classes: of a column; none takes all of its text.
    Raises:
        ConfigError: there is no target, one is given twice, or it is no column that can be learned.
    """
    given = (targets,) if isinstance(targets, str) else tuple(targets)
    meant = {parse(each) if is_expression(each) else each.strip() for each in given}
    if len(meant) < max(len(given), 1):  # 'af=true' and 'af = true' are one
        raise ConfigError(
            f"--target must name one target or several, each once, got {', '.join(given) or 'none'}"
        )
    columns = [target for target in given if not is_expression(target)]
    if not columns or records is None:
        if classes:
            raise ConfigError(f"--classes are those of a column, got --target {', '.join(given)}")
        return Binary(targets=given)
    if len(given) > 1:
        raise ConfigError(
            f"--target {columns[0]} is a column, which stands alone, got {', '.join(given)}; "
            "several targets are expressions such as 'age<40'"
        )
    kind = column(records, columns[0]).type
    if pa.types.is_boolean(kind):
        raise ConfigError(f"--target {columns[0]} is a yes/no column; take '{columns[0]}=true'")
    if not classes and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return Number(targets=given)
    return Classes(targets=given, classes=classes_of(records, columns[0], classes))


def task_from(identity: Mapping[str, Any]) -> Task:
    """The task of a run, from what it says of itself; checked before."""
    target = identity["target"]
    targets = (target,) if isinstance(target, str) else tuple(target)
    if "scale" in identity:
        mean, sd = identity["scale"]
        loss = identity.get("finetune.number_loss", "squared")  # of before this setting
        return Number(targets=targets, mean=mean, sd=sd, number_loss=loss)
    if "classes" in identity:
        return Classes(targets=targets, classes=tuple(identity["classes"]))
    return Binary(targets=targets)


def misshapen(identity: Mapping[str, Any]) -> str:
    """What is wrong with the target of an identity, and with `OF_COLUMNS`; empty: nothing."""
    target = identity["target"]
    several = target if isinstance(target, list) else [target]
    are_texts = all(isinstance(each, str) for each in several)
    if not are_texts or not 0 < len(several) == len({*several}):
        return f"its target is {target!r:.40}"
    scale, classes = (identity.get(name) for name in OF_COLUMNS)
    if scale is not None and not (
        isinstance(scale, list)
        and len(scale) == 2
        and all(type(each) in (int, float) for each in scale)
        and scale[1] > 0
    ):
        return f"its scale is {scale!r:.40}"
    if classes is not None and not (
        isinstance(classes, list)
        and len(classes) > 1
        and all(isinstance(each, str) for each in classes)
    ):
        return f"its classes are {classes!r:.40}"
    return ""
