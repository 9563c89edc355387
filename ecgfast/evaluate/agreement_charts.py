"""Charts of predicted beside measured numbers: one over the other, and Bland and Altman's."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ecgfast.evaluate.charts import COLOURS, STYLE, row_of_panels
from ecgfast.evaluate.fonts import drawn
from ecgfast.evaluate.interval import Interval

Measured = tuple[NDArray[np.float64], NDArray[np.float64], Sequence[Interval]]


@mpl.rc_context(STYLE)
def observed_predicted(runs: Mapping[str, Measured], unit: str) -> Figure:
    """Draw the measured number over the predicted one, a panel for each run.

    Args:
        runs: name -> measured (n,), predicted (n,), and what `bland_altman` draws.
        unit: what is measured.
    """
    figure = Figure(figsize=(3.9 * len(runs), 4.2), layout="constrained")
    for axes, (name, (measured, predicted, _)) in zip(
        row_of_panels(figure, len(runs)), runs.items(), strict=True
    ):
        ends = [min(measured.min(), predicted.min()), max(measured.max(), predicted.max())]
        axes.plot(ends, ends, color="#b0b0b0", linewidth=0.8, linestyle=":")
        _points(axes, predicted, measured)
        axes.set(title=drawn(name), xlabel=f"predicted {drawn(unit)}", aspect="equal")
        axes.set(ylabel=f"measured {drawn(unit)}")
    return figure


@mpl.rc_context(STYLE)
def bland_altman(runs: Mapping[str, Measured], unit: str) -> Figure:
    """Draw differences over means, with bias and limits of agreement and their intervals.

    Args:
        runs: name -> measured (n,), predicted (n,), and bias and limits.
        unit: what is measured.
    """
    figure = Figure(figsize=(3.9 * len(runs), 3.6), layout="constrained")
    for axes, (name, (measured, predicted, lines)) in zip(
        row_of_panels(figure, len(runs)), runs.items(), strict=True
    ):
        _points(axes, (measured + predicted) / 2, predicted - measured)
        for line, style in zip(lines, ("-", "--", "--"), strict=True):
            if line.value is not None:
                axes.axhline(line.value, color=COLOURS[1], linestyle=style, linewidth=1)
            if line.low is not None and line.high is not None:
                axes.axhspan(line.low, line.high, color=COLOURS[1], alpha=0.15, linewidth=0)
        axes.set(title=drawn(name), xlabel=f"mean of measured and predicted {drawn(unit)}")
        axes.set(ylabel="predicted minus measured")
    return figure


def _points(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    axes.scatter(x, y, s=6, color=COLOURS[0], alpha=0.4, linewidths=0, rasterized=len(x) > 2000)
