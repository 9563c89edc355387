"""Charts of a report: ROC curves, AUROC by site, losses, calibration."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ecgfast.evaluate.operating import Calibration
from ecgfast.evaluate.roc import Auroc, roc_curve

COLOURS = ("#1450c8", "#e07b00", "#3c8c4a", "#a03070", "#606060")  # legible without colour vision
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "ecgfast",  # the same figure gives the same bytes
}

Curve = tuple[Sequence[float], Sequence[float]]
Labelled = tuple[NDArray[np.bool_], NDArray[np.float64]]


def data_uri(figure: Figure, kind: Literal["png", "svg"]) -> str:
    """Render a figure for an ``<img>`` of a self-contained page."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    mime = "image/png" if kind == "png" else "image/svg+xml"
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def roc_curves(cohorts: Mapping[str, Mapping[str, Labelled]]) -> Figure:
    """Draw one panel per cohort with one curve per model.

    Args:
        cohorts: cohort -> model -> (labels (n,) bool, probabilities (n,) float); both classes.
    """
    columns = min(3, len(cohorts))
    rows = -(-len(cohorts) // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.3 * columns, 3.5 * rows), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, (cohort, models) in zip(panels, cohorts.items(), strict=False):
            axes.plot([0, 1], [0, 1], color="#b0b0b0", linewidth=0.8, linestyle=":")
            for colour, (model, (is_case, probability)) in zip(
                COLOURS, models.items(), strict=False
            ):
                axes.step(*roc_curve(is_case, probability), where="post", color=colour, label=model)
            axes.set(title=cohort, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
            axes.set(xlabel="1 - specificity", ylabel="sensitivity")
        for axes in panels[len(cohorts) :]:
            axes.set_visible(False)
        figure.axes[0].legend(loc="lower right", fontsize=7)
    return figure


def auroc_by_site(results: Mapping[str, Mapping[str, Auroc]]) -> Figure:
    """Draw point and 95 % interval of each model at each cohort.

    Args:
        results: cohort -> model -> AUROC; those not defined are left out.
    """
    models = list(next(iter(results.values())))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7, 0.8 + 0.6 * len(results)), layout="constrained")
        axes = figure.subplots()
        for number, (colour, model) in enumerate(zip(COLOURS, models, strict=False)):
            offset = (number - (len(models) - 1) / 2) * 0.22
            for row, by_model in enumerate(results.values()):
                _interval(axes, by_model[model], row + offset, colour)
            axes.plot([], [], "o-", color=colour, markersize=4, label=model)
        axes.axvline(0.5, color="#b0b0b0", linestyle=":")
        axes.set_yticks(range(len(results)), list(results))
        axes.invert_yaxis()
        axes.set(xlabel="AUROC, 95 % interval", xlim=(None, 1.01))
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside upper center", ncols=len(models), fontsize=8)
    return figure


def losses(curves: Mapping[str, Curve], *, y_label: str, log_x: bool = False) -> Figure:
    """Draw losses over steps.

    Args:
        curves: name -> (steps, losses).
        y_label: what the loss is, with its unit.
        log_x: steps on a logarithmic scale.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axes = figure.subplots()
        for colour, (name, (steps, values)) in zip(COLOURS, curves.items(), strict=False):
            axes.plot(steps, values, color=colour, linewidth=1.2, label=name)
        axes.set(xlabel="step", ylabel=y_label, xscale="log" if log_x else "linear")
        axes.legend(fontsize=8)
    return figure


def reliability(results: Mapping[str, Calibration]) -> Figure:
    """Draw observed over predicted frequency of each model."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#b0b0b0", linewidth=0.8, linestyle=":")
        for colour, (model, result) in zip(COLOURS, results.items(), strict=False):
            axes.plot(
                result.bin_predicted,
                result.bin_observed,
                "o-",
                color=colour,
                markersize=4,
                label=model,
            )
        axes.set(xlabel="predicted probability", ylabel="observed share of cases")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.legend(loc="upper left", fontsize=8)
    return figure


def _interval(axes: Axes, result: Auroc, y: float, colour: str) -> None:
    if result.value is None:
        return
    axes.plot([result.value], [y], "o", color=colour, markersize=4)
    if result.low is not None and result.high is not None:
        axes.plot([result.low, result.high], [y, y], color=colour, linewidth=1.4)
