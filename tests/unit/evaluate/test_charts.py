"""Charts of a report: what is drawn lies where its numbers say."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

from ecgfast.evaluate import charts
from ecgfast.evaluate.agreement_charts import bland_altman, observed_predicted
from ecgfast.evaluate.discrimination import Auroc, delong
from ecgfast.evaluate.interval import Interval
from ecgfast.evaluate.operating import calibration

Floats = NDArray[np.float64]


def points(x_y: tuple[ArrayLike, ArrayLike]) -> list[tuple[float, float]]:
    x, y = (np.asarray(each, dtype=float).tolist() for each in x_y)
    return list(zip(x, y, strict=True))


def test_the_area_below_a_roc_curve_is_the_auroc_with_ties_too() -> None:
    """Few different scores, so that cases and controls share them; ends at the corners."""
    rng = np.random.default_rng(3)
    y = rng.random(60) < 0.3
    for score in (np.round(rng.random(60) + 0.4 * y, 1), np.full(60, 0.5), rng.random(60)):
        (figure,) = charts.roc_curves({"site 1": {"CNN": (y, score)}})
        (line,) = (each for each in figure.axes[0].lines if each.get_label() == "CNN")
        x, height = (np.asarray(each, dtype=float) for each in line.get_data())
        assert (x[0], height[0], x[-1], height[-1]) == (0, 0, 1, 1)
        assert line.get_drawstyle() == "default"
        assert np.trapezoid(height, x) == pytest.approx(roc_auc_score(y, score))


def test_intervals_stand_beside_their_numbers_and_below_each_other() -> None:
    rng = np.random.default_rng(4)
    y = rng.random(50) < 0.4
    areas = {name: delong(y, rng.random(50) + lift * y) for name, lift in (("A", 0.9), ("B", 0.2))}
    (figure,) = charts.auroc_by_site({"site 1": areas})
    (axes,) = figure.axes
    for row, (name, area) in enumerate(areas.items()):
        of_row = [points(line.get_data()) for line in axes.lines if row in line.get_ydata()]
        assert [(area.value, row)] in of_row
        assert [(area.low, row), (area.high, row)] in of_row
        text = axes.texts[row]
        assert text.get_position()[1] == row
        assert text.get_text() == f"{area.value:.3f} ({area.low:.3f} to {area.high:.3f})"
        assert name in axes.get_legend_handles_labels()[1]
    bottom, top = axes.get_ylim()
    assert bottom > top  # the first model is above


def test_a_reliability_curve_has_predictions_below_and_shares_with_intervals() -> None:
    rng = np.random.default_rng(5)
    probability = rng.random(200)
    found = calibration(rng.random(200) < probability**2, probability)
    assert found is not None
    (axes,) = charts.reliability({"as given": {"CNN": found}}).axes
    (line,) = (each for each in axes.lines if each.get_label() == "CNN")
    assert points(line.get_data()) == points((found.bin_predicted, found.bin_observed))
    (bars,) = (each for each in axes.collections if isinstance(each, LineCollection))
    assert [segment.tolist() for segment in bars.get_segments()] == [
        [[x, low], [x, high]]
        for x, low, high in zip(found.bin_predicted, found.bin_low, found.bin_high, strict=True)
    ]


def test_label_efficiency_has_each_mean_at_the_number_of_its_patients() -> None:
    def area(value: float) -> Auroc:
        return Auroc(num_cases=9, num_controls=9, value=value, low=value - 0.1, high=value + 0.05)

    few = (10.0, area(0.6), (0.55, 0.65))
    many = (200.0, area(0.8), (0.8,))
    (axes,) = charts.label_efficiency({"external": {"ViT": [few, many]}}).axes
    drawn = [points(line.get_data()) for line in axes.lines]
    assert drawn[0] == [(10, 0.6), (200, 0.8)]
    bars = [c.get_segments()[0].tolist() for c in axes.collections if isinstance(c, LineCollection)]
    assert bars == [[[10, 0.6 - 0.1], [10, 0.6 + 0.05]], [[200, 0.8 - 0.1], [200, 0.8 + 0.05]]]
    (runs,) = (c for c in axes.collections if not isinstance(c, LineCollection))
    assert np.asarray(runs.get_offsets()).tolist() == [[10, 0.55], [10, 0.65]]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["10", "200"]


def test_a_spread_is_median_quartiles_and_the_middle_nine_tenths() -> None:
    values = np.arange(1.0, 102)
    axes, *_ = charts.spreads({"noise": {"A": values, "B": values[:0]}}, x_label="uV").axes
    assert [points(line.get_data()) for line in axes.lines] == [
        [(6, 0), (96, 0)], [(26, 0), (76, 0)], [(51, 0)],
    ]  # fmt: skip


def test_numbers_are_drawn_predicted_to_the_right_and_differences_over_means() -> None:
    measured, predicted = np.array([40.0, 50.0, 62.0]), np.array([44.0, 49.0, 65.0])
    lines = [Interval(value=v, low=v - 1, high=v + 2) for v in (2.0, -3.0, 7.0)]
    runs = {"ViT": (measured, predicted, lines)}
    (axes,) = observed_predicted(runs, "EF").axes
    assert np.asarray(axes.collections[0].get_offsets()).T.tolist() == [
        predicted.tolist(), measured.tolist(),
    ]  # fmt: skip
    (axes,) = bland_altman(runs, "EF").axes
    assert np.asarray(axes.collections[0].get_offsets()).T.tolist() == [
        [42, 49.5, 63.5], [4, -1, 3],
    ]  # fmt: skip
    drawn = [(line.get_ydata()[0], line.get_linestyle()) for line in axes.lines]
    assert drawn == [(2, "-"), (-3, "--"), (7, "--")]
