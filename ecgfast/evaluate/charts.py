"""Charts of a report: ROC curves, AUROC by site, losses, calibration, net benefit."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from ecgfast.evaluate.discrimination import Auroc
from ecgfast.evaluate.fonts import drawn, families, letters
from ecgfast.evaluate.operating import Calibration, NetBenefit
from ecgfast.runs.roc import roc_curve

# Okabe and Ito 2008, without yellow: told apart without full colour vision. Markers tell runs apart
# in print, line styles those beyond the last colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#56b4e9", "#e69f00")
_MARKERS, _LINES = "osD^vPX", ("-", "--", ":", "-.")
STYLE: dict[Any, Any] = {
    "font.family": families(),
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "ecgfast",  # the same figure gives the same bytes
    "path.simplify_threshold": 0.4,  # points of 1/72 inch: half of a trace's width
}
_PANELS, _ROWS = 6, 38  # of ROC curves, of intervals and gaps: what a printed page has space for
_MARKED = 20  # losses of fewer steps have markers: a line needs two points
Curve = tuple[Sequence[float], Sequence[float]]
Efficiency = tuple[float, Auroc, Sequence[float]]  # patients, mean AUROC, that of each run
Labelled = tuple[NDArray[np.bool_], NDArray[np.float64]]


def roc_curves(cohorts: Mapping[str, Mapping[str, Labelled]]) -> list[Figure]:
    """Draw one panel per cohort with one curve per model, as many panels as a page holds.

    Args:
        cohorts: cohort -> model -> (labels (n,) bool, probabilities (n,) float); both classes.
    """
    style_of = _styles(_models(cohorts))
    names = list(cohorts)
    parts = [names[n : n + _PANELS] for n in range(0, len(names), _PANELS)]
    return [_roc_panels({name: cohorts[name] for name in part}, style_of) for part in parts]


@mpl.rc_context(STYLE)
def _roc_panels(
    cohorts: Mapping[str, Mapping[str, Labelled]], style_of: Mapping[str, Mapping[str, Any]]
) -> Figure:
    columns = min(3, len(cohorts))
    rows = -(-len(cohorts) // columns)
    figure = Figure(figsize=(3.3 * columns, 3.5 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (cohort, models) in zip(panels[: len(cohorts)], cohorts.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="#b0b0b0", linewidth=0.8, linestyle=":")
        for model, (is_case, probability) in models.items():
            points = roc_curve(is_case, probability)
            style = {**style_of[model], "marker": ""}
            # straight over ties, which count half: the area below the line is the AUROC
            axes.plot(*points, label=drawn(model), **style)
        axes.set(title=drawn(cohort), xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set(xlabel="1 - specificity", ylabel="sensitivity")
    for axes in panels[len(cohorts) :]:
        axes.set_visible(False)
    fullest = max(panels[: len(cohorts)], key=lambda axes: len(axes.get_lines()))
    fullest.legend(loc="lower right", fontsize=7)
    return figure


def auroc_by_site(results: Mapping[str, Mapping[str, Auroc]]) -> list[Figure]:
    """Draw point and 95 % interval of each model at each cohort, with their numbers beside them.

    Args:
        results: cohort -> model -> AUROC; those not defined are left out, and so are models that a
            cohort does not test.
    Returns:
        figures, each with as many cohorts as a page holds.
    """
    style_of = _styles(_models(results))
    parts: list[dict[str, Mapping[str, Auroc]]] = []
    space = 0
    for cohort, by_model in results.items():
        space -= len(by_model) + 1
        if space < 0:
            parts.append({})
            space = _ROWS - len(by_model) - 1
        parts[-1][cohort] = by_model
    ends = [end for each in results.values() for a in each.values() for end in (a.low, a.value)]
    least = min((end for end in ends if end is not None), default=0.0)
    return [_intervals(part, style_of, least - 0.02) for part in parts]


@mpl.rc_context(STYLE)
def _intervals(
    results: Mapping[str, Mapping[str, Auroc]],
    style_of: Mapping[str, Mapping[str, Any]],
    least: float,
) -> Figure:
    models = [model for model in style_of if any(model in each for each in results.values())]
    rows = sum(len(by_model) + 1 for by_model in results.values())
    columns = _columns(models, width=7)
    height = 0.6 + 0.17 * -(-len(models) // columns) + max(0.16 * rows, 0.5 * len(results))
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots()
    y, middles = 0, []
    for by_model in results.values():
        middles.append(y + (len(by_model) - 1) / 2)
        for model in (model for model in models if model in by_model):
            _interval(axes, by_model[model], y, style_of[model])
            y += 1
        y += 1  # between cohorts
    for model in models:
        axes.plot([], [], markersize=4, label=drawn(model), **style_of[model])
    axes.axvline(0.5, color="#b0b0b0", linestyle=":")
    axes.set_yticks(middles, list(map(drawn, results)))
    axes.set(xlabel="AUROC, 95 % interval", xlim=(least, 1.01), ylim=(y - 1, -1))
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper center", ncols=columns, fontsize=8)
    return figure


@mpl.rc_context(STYLE)
def label_efficiency(cohorts: Mapping[str, Mapping[str, Sequence[Efficiency]]]) -> Figure:
    """Draw AUROC over the number of labelled patients: means with intervals, and each run's.

    Args:
        cohorts: cohort -> model -> patients who taught, mean AUROC with its interval, and the
            AUROC of every run.
    """
    style_of = _styles(_models(cohorts))
    columns = min(2, len(cohorts))
    rows = -(-len(cohorts) // columns)
    figure = Figure(figsize=(4.8 * columns, 3.6 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (cohort, models) in zip(panels, cohorts.items(), strict=False):
        axes.set(title=drawn(cohort), xscale="log", ylabel="AUROC")
        axes.set(xlabel="labelled patients in training")
        for number, (model, points) in enumerate(models.items()):
            aside = 1.04 ** (number - (len(models) - 1) / 2)  # intervals of one size stand apart
            style, sizes = style_of[model], [size * aside for size, _, _ in points]
            axes.plot(sizes, [area.value for _, area, _ in points], markersize=4.5, **style)
            for size, (_, area, by_run) in zip(sizes, points, strict=True):
                if area.low is not None and area.high is not None:
                    axes.vlines(size, area.low, area.high, color=style["color"], linewidth=1)
                if len(by_run) > 1:
                    seeds = {"color": style["color"], "alpha": 0.45, "linewidths": 0}
                    axes.scatter([size] * len(by_run), by_run, s=9, **seeds)
        ticks = sorted({size for points in models.values() for size, _, _ in points})
        axes.set_xticks(ticks, [f"{size:.0f}" for size in ticks])
        axes.minorticks_off()
    for axes in panels[len(cohorts) :]:
        axes.set_visible(False)
    for model, style in style_of.items():
        panels[0].plot([], [], markersize=4.5, label=drawn(model), **style)
    legend = _columns(list(style_of), width=4.8 * columns)
    figure.legend(loc="outside upper center", ncols=legend, fontsize=8)
    return figure


@mpl.rc_context(STYLE)
def losses(curves: Mapping[str, Curve], *, y_label: str) -> Figure:
    """Draw losses over steps.

    Args:
        curves: name -> (steps, losses).
        y_label: what the loss is, with its unit.
    """
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, style in _styles(list(curves)).items():
        marker = style["marker"] if len(curves[name][0]) < _MARKED else ""
        axes.plot(*curves[name], label=drawn(name), **{**style, "marker": marker, "markersize": 4})
    axes.set(xlabel="step", ylabel=y_label)
    axes.legend(fontsize=8)
    return figure


@mpl.rc_context(STYLE)
def reliability(panels: Mapping[str, Mapping[str, Calibration]]) -> Figure:
    """Draw observed over predicted frequency of each model, with the intervals of its bins.

    Args:
        panels: title -> model -> calibration.
    """
    style_of = _styles(_models(panels))
    figure = Figure(figsize=(3.9 * len(panels), 4.2), layout="constrained")
    for axes, (title, results) in zip(
        row_of_panels(figure, len(panels)), panels.items(), strict=True
    ):
        axes.plot([0, 1], [0, 1], color="#b0b0b0", linewidth=0.8, linestyle=":")
        for model, result in results.items():
            style = style_of[model]
            bins = result.bin_predicted, result.bin_observed
            axes.plot(*bins, markersize=4, label=drawn(model), **style)
            ends = result.bin_predicted, result.bin_low, result.bin_high
            axes.vlines(*ends, color=style["color"], linewidth=0.7, alpha=0.6)
        axes.set(xlabel="predicted probability", ylabel="observed share of cases")
        axes.set(title=title, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.legend(loc="upper left", fontsize=7)
    return figure


@mpl.rc_context(STYLE)
def decision_curves(panels: Mapping[str, Mapping[str, NetBenefit]]) -> Figure:
    """Draw net benefit over the risk at which one would act.

    Args:
        panels: title -> model -> net benefit, all of about the same records.
    """
    style_of = _styles(_models(panels))
    figure = Figure(figsize=(3.9 * len(panels), 3.6), layout="constrained")
    for axes, (title, results) in zip(
        row_of_panels(figure, len(panels)), panels.items(), strict=True
    ):
        for model, result in results.items():
            style = {**style_of[model], "marker": ""}
            axes.plot(result.threshold, result.model, label=drawn(model), **style)
        everyone = next(iter(results.values()))
        grey: dict[str, Any] = {"color": "#808080", "linewidth": 0.9}
        axes.plot(everyone.threshold, everyone.everyone, "--", label="act on everyone", **grey)
        axes.axhline(0, label="act on nobody", **grey)
        top = max(everyone.everyone[0], *(max(result.model) for result in results.values()))
        axes.set(title=title, xlabel="risk at and above which one acts", ylabel="net benefit")
        axes.set(xlim=(0, 0.5), ylim=(-0.25 * top, 1.1 * top))
        axes.legend(loc="upper right", fontsize=7)
    return figure


@mpl.rc_context(STYLE)
def spreads(panels: Mapping[str, Mapping[str, NDArray[np.float64]]], *, x_label: str) -> Figure:
    """Draw median, quartiles and the middle 90 % of each group, one panel a measure, two beside.

    Args:
        panels: title -> group -> values above 0; of all panels the same groups.
        x_label: the unit, of a logarithmic axis.
    """
    groups = list(next(iter(panels.values())))
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(7.4, rows * (1.3 + 0.22 * len(groups))), layout="constrained")
    axes_of = list(figure.subplots(rows, 2, squeeze=False, sharey=True).flat)
    for axes, (title, values) in zip(axes_of[: len(panels)], panels.items(), strict=True):
        for row, of in enumerate(values.values()):
            if not len(of):
                continue
            low, left, middle, right, high = np.percentile(
                np.maximum(of, 0.01), (5, 25, 50, 75, 95)
            )
            axes.plot([low, high], [row, row], color=COLOURS[0], linewidth=1)
            axes.plot([left, right], [row, row], color=COLOURS[0], linewidth=4)
            axes.plot([middle], [row], "o", color=COLOURS[1], markersize=5)
        axes.set(title=title, xlabel=x_label, xscale="log", ylim=(len(groups) - 0.4, -0.6))
        axes.xaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}",
            minor_formatter=NullFormatter(),
        )  # fmt: skip
        axes.grid(visible=False, axis="y")
    for axes in axes_of[len(panels) :]:
        axes.set_visible(False)
    axes_of[0].set_yticks(range(len(groups)), list(map(drawn, groups)))
    return figure


def row_of_panels(figure: Figure, number: int) -> list[Axes]:
    """Panels beside each other."""
    return list(figure.subplots(1, number, squeeze=False).flat)


def _columns(models: Sequence[str], *, width: float) -> int:
    """Columns of a legend in inches: a letter of 8 points takes some 0.07, a line sample 0.6."""
    longest = max((letters(drawn(model)) for model in models), default=0)
    return max(1, min(3, len(models), int(width / (0.07 * longest + 0.6))))


def _models(by_cohort: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Every model of any cohort, once: each keeps its colour."""
    return list(dict.fromkeys(model for models in by_cohort.values() for model in models))


def _styles(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of each model, no two alike up to 28 of them."""
    return {
        model: {
            "color": COLOURS[number % len(COLOURS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": _LINES[number // len(COLOURS) % len(_LINES)],
        }
        for number, model in enumerate(models)
    }


def _interval(axes: Axes, result: Auroc, y: int, style: Mapping[str, Any]) -> None:
    if result.value is None:
        return
    axes.plot([result.value], [y], markersize=4, **style)
    if result.low is not None and result.high is not None:
        ends = [result.low, result.high]
        axes.plot(ends, [y, y], color=style["color"], linewidth=1.4)
        text = f"{result.value:.3f} ({result.low:.3f} to {result.high:.3f})"
        # right of the axes, at the height of the point
        axes.text(1.01, y, text, transform=axes.get_yaxis_transform(), fontsize=7, va="center")
