"""One output of several: a run, and its register, as if it had learned yes or no of that alone.

Shapes: N records of a store, n of validation, B of a batch, K outputs.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor, nn

from ecgfast.errors import ConfigError
from ecgfast.labels.expression import Clause, parse
from ecgfast.labels.selection import selected
from ecgfast.runs.loading import LoadedRun
from ecgfast.runs.register import OUTPUTS, Register, with_validation
from ecgfast.runs.task import Task, yes_or_no

_BELOW = {"<": True, "<=": True, ">": False, ">=": False}  # whether a case lies below


class OneOutput(nn.Module):
    """A classifier of several outputs whose logits are the log odds of one of them.

    Args:
        model: that is asked.
        task: of its outputs.
        number: of the output.
    """

    def __init__(self, model: nn.Module, task: Task, number: int) -> None:
        super().__init__()
        self.model = model
        self._task, self._number = task, number

    def forward(self, patches_BNP: Tensor) -> Tensor:
        """(B,) log odds, in the weights' dtype."""
        return self._task.log_odds(self.model(patches_BNP))[:, self._number]


def run_of_output(run: LoadedRun, number: int, scores: NDArray[np.float64]) -> LoadedRun:
    """A run as if it had learned one of its outputs.

    Args:
        run: a classifier.
        number: of the output.
        scores: (N, K) probabilities of the records of a store, NaN where it is not tested.
    """
    load, task = run.model, run.meta.task
    return replace(
        run,
        model=lambda: OneOutput(load(), task, number),
        meta=run.meta.of_output(number),
        register=run.register and register_of_output(run.register, number),
        scores=scores[:, number],
    )


def threshold_of(target: str, column: str) -> tuple[float, bool]:
    """The number that a target such as ``ejection_fraction<40`` compares a column with.

    Returns:
        the number, and whether a case lies below it.
    Raises:
        ConfigError: the target is something else.
    """
    clause = parse(target)
    try:
        if isinstance(clause, Clause) and clause.column == column and clause.op in _BELOW:
            return float(clause.value), _BELOW[clause.op]
    except ValueError:  # compared with a word
        pass
    raise ConfigError(
        f"a run that learned {column} is tested at {column} < or > a number, got {target}; name "
        f"such a --target, or evaluate the runs apart"
    )


def run_at_threshold(run: LoadedRun, target: str) -> LoadedRun:
    """A run that learned a number, as if it had learned yes or no of a threshold.

    The chance of a case is that of a normal distribution about the number, with the mean and the
    standard deviation of the errors on the run's own validation records: it keeps the order of the
    numbers, hence AUROC is that of the number itself.

    Args:
        run: with the numbers that it gave the records of a store.
        target: such as ``ejection_fraction<40``.
    Raises:
        ConfigError: the target compares something else.
    """
    number, below = threshold_of(target, run.meta.target)
    assert run.register is not None
    assert run.scores is not None
    truth, predicted = (
        np.array([row[0] for row in run.register.select("valid")[field.name].to_pylist()])
        for field in OUTPUTS
    )
    error = truth - predicted
    sign = 1.0 if below else -1.0

    def chance(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of a case: that the true number is on its side of the threshold."""
        found: NDArray[np.float64] = ndtr(
            sign * (number - values - error.mean()) / error.std(ddof=1)
        )
        return found

    is_case = selected(pa.table({run.meta.target: truth}), target)
    probability = chance(predicted)
    meta = replace(run.meta.of_output(0), thresholds=yes_or_no(is_case, probability)["thresholds"])
    return replace(
        run,
        meta=replace(meta, identity={**meta.identity, "target": target}),
        register=with_validation(
            replace(run.register, rows=run.register.rows.drop_columns([f.name for f in OUTPUTS])),
            is_case.tolist(),
            probability,
        ),
        scores=chance(run.scores),
    )


def register_of_output(register: Register, number: int) -> Register:
    """The register with the labels of one output, where they are known."""
    truth, predicted = (
        [None if row is None else row[number] for row in register.rows[field.name].to_pylist()]
        for field in OUTPUTS
    )
    case = [None if t is None or np.isnan(t) else t > 0 for t in truth]
    rows = register.rows.drop_columns([field.name for field in OUTPUTS])
    rows = rows.set_column(4, "is_case", pa.array(case, pa.bool_()))
    rows = rows.set_column(5, "probability", pa.array(predicted, pa.float64()))
    return replace(register, rows=rows)


def with_outputs(
    register: Register, truth_nK: NDArray[np.float64], predicted_nK: NDArray[np.float64]
) -> Register:
    """The register with what a run says of each output of its validation records."""
    is_valid = [role == "valid" for role in register.rows["role"].to_pylist()]
    rows = register.rows
    for field, table in zip(OUTPUTS, (truth_nK, predicted_nK), strict=True):
        values = iter(table.tolist())
        column = [next(values) if valid else None for valid in is_valid]
        rows = rows.append_column(field, pa.array(column, field.type))
    return replace(register, rows=rows)
