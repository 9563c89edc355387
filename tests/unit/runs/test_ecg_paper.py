"""ECG paper to scale: measured in the figure and in the pixels of the saved picture."""

import io
from itertools import pairwise
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ecgfast.records import LEADS
from ecgfast.runs import ecg_paper
from ecgfast.runs.inference import Reconstruction

MM_PER_INCH = 25.4


def record(peak_mv: float = 1.0, num_timesteps: int = 5000) -> NDArray[np.float32]:
    """Flat leads with a one-sample spike at every second."""
    signal = np.zeros((12, num_timesteps), np.float32)
    signal[:, 250::500] = peak_mv
    return signal


def twelve_leads(signal: NDArray[np.floating]) -> Figure:
    strips = [
        ecg_paper.Strip(name=name, signal_mv=row) for name, row in zip(LEADS, signal, strict=True)
    ]
    return ecg_paper.paper(strips, title="")


def filled(
    original: NDArray[np.float32], predicted: NDArray[np.float32], mask: NDArray[np.bool_]
) -> Reconstruction:
    return Reconstruction(row=0, original_mv=original, filled_mv=predicted, mask=mask, loss=0.0)


def traces(figure: Figure) -> list[Line2D]:
    return [line for line in figure.axes[0].lines if len(np.atleast_1d(line.get_xdata())) > 100]


def test_one_second_is_25_mm_and_one_millivolt_10_mm_of_paper() -> None:
    figure = twelve_leads(record())
    axes = figure.axes[0]
    figure.canvas.draw()
    to_mm = MM_PER_INCH / figure.dpi
    (x0, y0), (x1, y1) = axes.transData.transform([(0, 0), (25, 10)])
    assert (x1 - x0) * to_mm == pytest.approx(25, abs=1e-6)
    assert (y1 - y0) * to_mm == pytest.approx(10, abs=1e-6)
    x, y = (np.asarray(v) for v in traces(figure)[0].get_data())
    assert x[500] - x[0] == pytest.approx(25)
    assert np.nanmax(y) - np.nanmedian(y) == pytest.approx(10)


def test_the_zero_lines_and_the_seconds_lie_on_large_squares() -> None:
    for line in traces(twelve_leads(record(1.7))):
        x, y = (np.asarray(v) for v in line.get_data())
        if np.isfinite(y).any():
            assert np.nanmedian(y) % 5 == pytest.approx(0, abs=1e-6)
            assert x[0] % 5 == pytest.approx(0, abs=1e-6)


def test_saved_pixels_show_a_fine_line_every_5_and_a_coarse_line_every_25() -> None:
    buffer = io.BytesIO()
    twelve_leads(np.zeros((12, 5000))).savefig(buffer, format="png")
    buffer.seek(0)
    picture = matplotlib.image.imread(buffer)
    pink = picture[33, :1425, 0] - picture[33, :1425, 1]  # between two horizontal lines
    lines = np.maximum(pink[25:1400:5], pink[24:1399:5])  # a line may share two pixels
    between = pink[27:1402:5]
    assert lines.min() > between.max() + 0.03
    assert lines[::5].min() > np.delete(lines, np.s_[::5]).max() + 0.03


def test_a_calibration_pulse_stands_before_every_lead() -> None:
    figure = twelve_leads(record())
    pulses = [line for line in figure.axes[0].lines if len(np.atleast_1d(line.get_xdata())) == 6]
    assert len(pulses) == 12
    for pulse in pulses:
        x, y = (np.asarray(v, dtype=float) for v in pulse.get_data())
        assert np.ptp(y) == pytest.approx(10)  # 1 mV
        assert x[3] - x[2] == pytest.approx(5)  # 0.2 s


def test_strips_never_cross() -> None:
    rng = np.random.default_rng(0)
    signal = record() * rng.uniform(-2.5, 2.5, (12, 1)).astype(np.float32)
    drawn = [np.asarray(line.get_ydata()) for line in traces(twelve_leads(signal))]
    rows = [y for y in drawn if np.isfinite(y).any()]
    assert len(rows) == 12
    for above, below in pairwise(rows):
        assert (above > below).all()


def test_reconstruction_draws_only_masked_timesteps_from_the_model() -> None:
    original, predicted = record(1.0), record(2.0)
    mask = np.zeros((12, 5000), bool)
    mask[:, 1000:2000] = True
    result = filled(original, predicted, mask)
    figure = ecg_paper.reconstruction(result, title="", leads=("II", "V5"))
    words = [text.get_text() for text in figure.axes[0].texts]
    assert [w for w in words if w in LEADS] == ["II"] * 3 + ["V5"] * 3
    assert words.count("masked") == 2
    blue = [line for line in traces(figure) if line.get_color() == "#1450c8"]
    shown = [np.isfinite(np.asarray(line.get_ydata())) for line in blue]
    assert sum(row.any() for row in shown) == 2
    for row in shown:
        assert not row.any() or (np.flatnonzero(row) == np.arange(1000, 2000)).all()
    black = [line for line in traces(figure) if line.get_color() == "#101010"]
    for line in black:
        y = np.asarray(line.get_ydata())
        assert np.nanmax(y) - np.nanmin(y) == pytest.approx(10)
    shades = [p for p in figure.axes[0].patches if p.get_width() == pytest.approx(50)]
    assert len(shades) == 2  # 2 s of lead II and of V5


def test_twelve_leads_come_panel_by_panel() -> None:
    result = filled(record(), record(), np.ones((12, 5000), bool))
    figure = ecg_paper.reconstruction(result, title="")
    words = [text.get_text() for text in figure.axes[0].texts]
    assert [w for w in words if w in LEADS] == [*LEADS] * 3


def test_a_lead_off_the_scale_stays_on_its_page() -> None:
    signal = record(1.0)
    signal[0, 2000:3000] = -17.0  # an electrode fell off
    figure = twelve_leads(signal)
    assert figure.get_figheight() * MM_PER_INCH < 400


def test_twelve_leads_share_a_page_with_predictions_over_the_record() -> None:
    """Each lead is flat, at its own height; predicted is half a millivolt above it."""
    original, mask = np.zeros((12, 5000), np.float32), np.zeros((12, 5000), bool)
    original[:] = 5 * np.arange(12)[:, None]
    mask[:, 500:750] = True  # in the first quarter: leads I, II and III, and the rhythm strip
    store = SimpleNamespace(
        manifest={"identifiers": "pseudonyms", "synthetic": True},
        records={"record_id": [SimpleNamespace(as_py=lambda: "abc")]},
    )
    figure = ecg_paper.draw_overlaid(store, filled(original, original + 0.5, mask))  # type: ignore[arg-type]  # the two that it reads
    words = [text.get_text() for text in figure.axes[0].texts]
    assert [word for word in words if word in LEADS] == [
        *("I", "aVR", "V1", "V4"), *("II", "aVL", "V2", "V5"), *("III", "aVF", "V3", "V6"), "II",
    ]  # fmt: skip
    assert any(word.startswith("SYNTHETIC   record abc") for word in words)
    drawn = [line for line in traces(figure) if np.isfinite(line.get_ydata()).any()]
    over = [line for line in drawn if line.get_color() == ecg_paper._ACCENT]
    assert len(over) == 4
    for line in over:
        y = np.asarray(line.get_ydata())
        shown = np.flatnonzero(np.isfinite(y))
        assert (shown[0], shown[-1]) == (500, 749)
    ink = [line for line in drawn if np.isfinite(np.asarray(line.get_ydata())).sum() == 5000]
    assert len(ink) == 4  # the record itself is drawn where it was removed, too
    for above, line in zip(over, ink, strict=True):
        gap = np.nanmedian(above.get_ydata()) - np.nanmedian(line.get_ydata())
        assert gap == pytest.approx(5)  # half a millivolt
