"""Pages: escaped, self-contained, and honest about what is not defined."""

import base64
import re
import warnings
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from report_pages import html_of

from ecgfast.evaluate import charts
from ecgfast.evaluate.discrimination import Auroc, delong
from ecgfast.evaluate.figures import Kind, saved
from ecgfast.evaluate.findings import _area, _why
from ecgfast.evaluate.operating import calibration, net_benefit
from ecgfast.evaluate.views import Table


def test_a_page_begins_with_its_data() -> None:
    text = html_of(heading="data: a < b", synthetic=True)
    assert "<title>SYNTHETIC data: a &lt; b</title>" in text
    assert "<h1><b>SYNTHETIC</b> data: a &lt; b</h1>" in text
    assert "SYNTHETIC" not in html_of(heading="data: real")


def figures_of(html: str) -> list[ET.Element]:
    return [
        ET.fromstring(base64.b64decode(text))
        for text in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", html)
    ]


@pytest.mark.parametrize("synthetic", [True, False])
def test_every_figure_says_synthetic(synthetic: bool) -> None:
    y, score = np.array([True, False, True]), np.array([0.9, 0.1, 0.4])
    result, benefit = calibration(y, score), net_benefit(y, score)
    assert result is not None
    assert benefit is not None
    drawn = [
        *charts.roc_curves({"site 1": {"CNN": (y, score)}}),
        *charts.auroc_by_site({"a": {"CNN": delong([1, 0, 1, 0], [0.9, 0.1, 0.4, 0.6])}}),
        charts.losses({"loss": ([1, 2], [1.0, 0.9])}, y_label="loss"),
        charts.reliability({"as given": {"CNN": result}}),
        charts.decision_curves({"as given": {"CNN": benefit}}),
    ]
    training = [{"name": "c", "losses": chart} for chart in drawn]
    figures = figures_of(html_of(training=training, synthetic=synthetic))
    assert len(figures) == len(drawn)
    for figure, chart in zip(figures, drawn, strict=True):
        words = [text.text for text in figure.iter("{http://www.w3.org/2000/svg}text")]
        assert words.count("SYNTHETIC") == int(synthetic)
        width, height = (72 * inches for inches in chart.get_size_inches())
        left, top, *size = (float(number) for number in figure.attrib["viewBox"].split())
        strip = 14 if synthetic else 0
        assert (left, top) == (0, 0)
        assert size == pytest.approx([width, height + strip])
        assert float(figure.attrib["height"].removesuffix("pt")) == pytest.approx(height + strip)


def test_text_of_others_is_escaped() -> None:
    table = Table(header=["a"], rows=[["<script>"]], sums=[0])
    detection: dict[str, Any] = {"target": "x < y", "in_words": "x below y", "notes": ["&"]}
    detection |= {"table": table, "precision": table, "areas": [], "curves": []}
    text = html_of(detection=detection)
    assert "<script>" not in text
    assert 'class="sum"' in text
    assert "x &lt; y" in text
    assert "&amp;" in text


def test_a_picture_has_its_size_on_paper() -> None:
    figure = Figure(figsize=(10 / 2.54, 2))
    text = html_of(training=[{"name": 'lead "II"', "losses": figure}])
    assert 'style="width:100.0mm"' in text
    assert 'alt="lead &#34;II&#34;"' in text


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_the_same_chart_gives_the_same_bytes(kind: Kind) -> None:
    y, score = np.array([True, False, True]), np.array([0.9, 0.1, 0.4])

    def chart() -> bytes:
        return saved(*charts.roc_curves({"site 1": {"CNN": (y, score)}}), kind)

    assert chart() == chart()


@pytest.mark.parametrize("num_cohorts", [1, 2, 3, 4, 7])
def test_there_is_one_panel_per_cohort(num_cohorts: int) -> None:
    y, score = np.array([True, False]), np.array([0.9, 0.1])
    figures = charts.roc_curves({f"site {n}": {"CNN": (y, score)} for n in range(num_cohorts)})
    assert len(figures) == (num_cohorts + 5) // 6
    visible = [axes for figure in figures for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in visible] == [f"site {n}" for n in range(num_cohorts)]


def test_intervals_are_drawn_where_they_are_defined() -> None:
    sites = {
        "a": {"CNN": delong([1, 0, 1, 0], [0.9, 0.1, 0.4, 0.6])},
        "b": {"CNN": delong([1], [1])},
    }
    (figure,) = charts.auroc_by_site(sites)
    lines = figure.axes[0].lines
    assert sum(len(np.atleast_1d(line.get_xdata())) == 1 for line in lines) == 1  # one point
    result = calibration(np.array([True, False]), np.array([0.8, 0.3]))
    assert result is not None
    assert (
        charts.reliability({"as given": {"CNN": result}}).axes[0].get_xlabel()
        == "predicted probability"
    )


def test_intervals_that_a_page_cannot_hold_go_to_the_next() -> None:
    area = delong([1, 0, 1, 0], [0.9, 0.1, 0.4, 0.6])
    runs = [f"run {n}" for n in range(17)]
    sites = {f"site {n}": dict.fromkeys(runs, area) for n in range(5)}
    sites["site 4"] = {"run 16": area, "run 3": area}
    figures = charts.auroc_by_site(sites)
    axes = [figure.axes[0] for figure in figures]
    assert [[text.get_text() for text in each.get_yticklabels()] for each in axes] == [
        ["site 0", "site 1"], ["site 2", "site 3"], ["site 4"],
    ]  # fmt: skip
    assert [len(each.texts) for each in axes] == [34, 34, 2]
    assert figures[0].get_size_inches()[1] < 7.5
    colour = {line.get_label(): line.get_color() for line in axes[0].lines}
    last = [line for line in axes[2].lines if str(line.get_label()).startswith("run")]
    assert [line.get_label() for line in last] == ["run 3", "run 16"]
    assert [line.get_color() for line in last] == [colour["run 3"], colour["run 16"]]


def test_long_names_leave_space_for_the_intervals() -> None:
    area = delong([1, 0, 1, 0], [0.9, 0.1, 0.4, 0.6])
    runs = [f"median beat, trained as ViT, pretrained (probe-{n}-400-seed0)" for n in range(15)]
    (figure,) = charts.auroc_by_site({"site 1": dict.fromkeys(runs, area)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that nothing is left of the axes
        saved(figure, "svg")
    assert figure.axes[0].get_position().width > 0.4


@pytest.mark.parametrize("number", [6, 9])
def test_every_run_is_drawn_and_none_looks_like_another(number: int) -> None:
    y, score = np.array([True, False, True, False]), np.array([0.9, 0.1, 0.4, 0.6])
    names = [f"run {n}" for n in range(number)]
    result, benefit = calibration(y, score), net_benefit(y, score)
    assert result is not None
    assert benefit is not None
    figures = [
        *charts.roc_curves({"site 1": dict.fromkeys(names, (y, score))}),
        *charts.auroc_by_site({"site 1": dict.fromkeys(names, delong(y, score))}),
        charts.losses(dict.fromkeys(names, ([1, 2], [1.0, 0.9])), y_label="loss"),
        charts.reliability({"as given": dict.fromkeys(names, result)}),
        charts.decision_curves({"as given": dict.fromkeys(names, benefit)}),
    ]
    for figure in figures:
        lines = [line for line in figure.axes[0].lines if line.get_label() in names]
        assert [line.get_label() for line in lines] == names
        looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
        assert len(looks) == number


def test_a_loss_of_a_single_step_is_seen() -> None:
    (axes,) = charts.losses({"loss": ([1], [1.0])}, y_label="loss").axes
    assert axes.lines[0].get_marker() not in ("", "None")


def test_what_is_not_defined_is_said() -> None:
    one_class = Auroc(num_cases=0, num_controls=3, reason="no cases")
    assert _area(one_class) == "not defined"
    assert _why(one_class) == "AUROC is not defined: no cases."
    single = delong([1, 0, 0], [0.9, 0.1, 0.2])
    assert _area(single) == "1.000 (no interval)"
    assert "single patient" in _why(single)


def test_curves_of_net_benefit_are_drawn_beside_acting_on_everyone_and_nobody() -> None:
    benefit = net_benefit(np.arange(10) < 3, np.linspace(1, 0, 10))
    assert benefit is not None
    figure = charts.decision_curves({"as given": {"CNN": benefit}, "corrected": {"CNN": benefit}})
    for axes, title in zip(figure.axes, ("as given", "corrected"), strict=True):
        assert axes.get_title() == title
        curves = {line.get_label(): line for line in axes.lines}
        assert list(curves) == ["CNN", "act on everyone", "act on nobody"]
        np.testing.assert_array_equal(curves["CNN"].get_ydata(), benefit.model)
        np.testing.assert_array_equal(curves["act on everyone"].get_ydata(), benefit.everyone)
