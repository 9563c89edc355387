"""One output of several: a run, and its register, as if it had learned yes or no of that alone.

Shapes: N records of a store, n of validation, B of a batch, K outputs.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, nn

from ecgfast.runs.loading import LoadedRun
from ecgfast.runs.register import OUTPUTS, Register
from ecgfast.runs.task import Task


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
