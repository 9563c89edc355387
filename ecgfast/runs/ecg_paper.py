"""Reconstructions as cardiologists read ECGs: 25 mm/s, 10 mm/mV, millimetre paper, calibration.

Shapes: C leads, T timesteps. All drawing coordinates are millimetres of paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d, minimum_filter1d

from ecgfast.records import LEADS, SAMPLING_RATE_HZ
from ecgfast.runs.inference import Reconstruction, millivolt
from ecgfast.store.reader import StoreReader, as_store

MM_PER_S = 25.0
MM_PER_MV = 10.0
DOTS_PER_INCH = 127  # 5 pixels per mm: every grid line falls on a whole pixel
_MM_PER_INCH = 25.4
_LEFT_MM, _RIGHT_MM, _TOP_MM, _BOTTOM_MM = 30.0, 5.0, 15.0, 10.0
_PULSE_LEFT_MM, _PULSE_MM = 18.0, 5.0  # 0.2 s wide, 1 mV high, its edges on coarse lines
_MIN_GAP_MM, _MAX_GAP_MM = 15.0, 40.0
_NEAR_TIMESTEPS = 51  # 0.1 s: traces keep clear of each other within it
_PAPER, _FINE, _COARSE = "#fffafa", "#f8d9d9", "#e9a5a5"
_INK, _ACCENT, _SHADE = "#101010", "#1450c8", "#dfe3ea"
_FOR, _AGAINST, _WEIGHT_MM = "#d55e00", "#0072b2", 7.0  # told apart by colour, and by their side

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One row of a figure.

    Attributes:
        name: printed in the margin, such as "V5"; a second line after a line break is smaller.
        signal_mv: (T,) float, drawn about its median.
        hidden: (T,) bool, timesteps shaded instead of drawn; None: none.
        accent: (T,) bool, timesteps drawn in the colour of predictions; None: none.
        over_mv: (T,) float, drawn over the signal in the colour of predictions where it is not
            NaN, from the same zero line; None: nothing.
        weight: (T,) float in [-1, 1]: what stands behind the trace, above its zero line for
            positive values and below it for negative ones, the fuller the larger; None: nothing.
        leads: timestep -> name of the lead that begins there, where a strip holds several.
    """

    name: str
    signal_mv: Floats
    hidden: Flags | None = None
    accent: Flags | None = None
    over_mv: Floats | None = None
    weight: Floats | None = None
    leads: Mapping[int, str] = field(default_factory=dict)


def plot_ecg(store: StoreReader | str | Path, row: int) -> Figure:
    """Draw a record of a store as it would be printed: 12 leads, 25 mm/s, 10 mm/mV.

    Args:
        store: an open store, or its path.
        row: of the record in `store.records`.
    Returns:
        A figure of the size of the paper, which notebooks show; `savefig` writes it.
    Raises:
        IndexError: the store has no such row.
    """
    store = as_store(store)
    (signal_mv_CT,) = millivolt(store, np.array([row]))
    return printed(signal_mv_CT, title=name_of(store, row))


def draw(store: StoreReader, result: Reconstruction, leads: Sequence[str] = LEADS) -> Figure:
    """Draw a record of a store as original, masked and reconstructed.

    The title names its pseudonym and loss and, where it is so, that the data are synthetic. Of a
    store that keeps readable ids it names the row instead.

    Args:
        store: of the record.
        result: what the model made of it.
        leads: as in `reconstruction`.
    """
    return reconstruction(result, title=_title(store, result), leads=leads)


def draw_overlaid(store: StoreReader, result: Reconstruction) -> Figure:
    """Draw 12 leads as they are printed, the predictions over the record.

    Args:
        store: of the record.
        result: what the model made of it, of 10 s.
    """
    centre = np.nanmedian(result.original_mv, axis=1, keepdims=True)
    return printed(
        result.original_mv,
        title=_title(store, result),
        over_mv_CT=np.where(result.mask, result.filled_mv - centre, np.nan),
        hidden_CT=result.mask,
    )


def printed(
    signal_mv_CT: Floats,
    *,
    title: str,
    over_mv_CT: Floats | None = None,
    hidden_CT: Flags | None = None,
    weight_CT: Floats | None = None,
) -> Figure:
    """Draw 12 leads in three rows of four, each with 2.5 s of its own, and lead II below them.

    Args:
        signal_mv_CT: (12, T) float, of 10 s; each lead is drawn about its median.
        title: one line above the paper.
        over_mv_CT: (12, T) float about the medians, as `Strip.over_mv`.
        hidden_CT: (12, T) bool, shaded.
        weight_CT: (12, T) float, as `Strip.weight`.
    """
    centred_CT = signal_mv_CT - np.nanmedian(signal_mv_CT, axis=1, keepdims=True)
    strips = []
    for spans in printed_spans(signal_mv_CT.shape[1]):
        signal, over, hidden, weight = (
            None if of is None else np.concatenate([of[lead, part] for lead, part in spans])
            for of in (centred_CT, over_mv_CT, hidden_CT, weight_CT)
        )
        assert signal is not None
        marks = {part.start: LEADS[lead] for lead, part in spans}
        strips.append(
            Strip(
                name="", signal_mv=signal, over_mv=over, hidden=hidden, weight=weight, leads=marks
            )
        )
    return paper(strips, title=title)


def printed_spans(num_timesteps: int) -> list[list[tuple[int, slice]]]:
    """Which timesteps of which lead each row of a printed ECG shows, from left to right."""
    edges = np.linspace(0, num_timesteps, 5).astype(int).tolist()
    quarters = [slice(start, stop) for start, stop in pairwise(edges)]
    rows = [list(zip(range(row, 12, 3), quarters, strict=True)) for row in range(3)]
    return [*rows, [(LEADS.index("II"), slice(0, num_timesteps))]]


def _title(store: StoreReader, result: Reconstruction) -> str:
    """The record, and its loss."""
    share = result.mask.mean()
    return f"{name_of(store, result.row)}   {share:.0%} masked, error {result.loss:.2f}"


def name_of(store: StoreReader, row: int) -> str:
    """A record's pseudonym, or row where ids are readable, and whether it is synthetic."""
    is_readable = store.manifest["identifiers"] == "kept"
    record_id = str(store.records["record_id"][row].as_py())
    mark = "SYNTHETIC   " if store.manifest["synthetic"] else ""
    return f"{mark}record {f'in row {row}' if is_readable else record_id[:16]}"


def reconstruction(result: Reconstruction, *, title: str, leads: Sequence[str] = LEADS) -> Figure:
    """Draw a record as it was, as the model saw it, and as the model filled it in.

    Args:
        result: of 12 leads; only masked timesteps are drawn from the prediction.
        title: one line above the paper; no identifiers but pseudonyms.
        leads: which leads, such as ("II", "V5"). Up to three: original, masked and
            reconstructed lie below each other lead by lead; else panel by panel.
    """
    original, mask = result.original_mv, result.mask
    filled = np.where(mask, result.filled_mv, original)

    def strips(name: str) -> list[Strip]:
        row = LEADS.index(name)
        return [
            Strip(name=f"{name}\noriginal", signal_mv=original[row]),
            Strip(name=f"{name}\nmasked", signal_mv=original[row], hidden=mask[row]),
            Strip(name=f"{name}\nreconstructed", signal_mv=filled[row], accent=mask[row]),
        ]

    by_lead = [strips(name) for name in leads]
    panels = by_lead if len(by_lead) <= 3 else zip(*by_lead, strict=True)
    return paper([strip for panel in panels for strip in panel], title=title)


def paper(strips: Sequence[Strip], *, title: str) -> Figure:
    """Lay strips of equal length out on millimetre paper.

    Args:
        strips: at least one; the distance between two grows with their amplitudes.
        title: one line above the paper.
    Returns:
        A figure whose size is that of the paper: saved and printed at 100 %, 25 mm are a second.
    """
    centred = [_centred(strip.signal_mv) for strip in strips]
    baselines, height_mm = _baselines(centred)
    seconds = max(len(signal) for signal in centred) / SAMPLING_RATE_HZ
    width_mm = _LEFT_MM + seconds * MM_PER_S + _RIGHT_MM
    figure = Figure(
        figsize=(width_mm / _MM_PER_INCH, (height_mm + 6) / _MM_PER_INCH), dpi=DOTS_PER_INCH
    )
    axes = figure.add_axes((0, 0, 1, height_mm / (height_mm + 6)))
    _grid(axes, width_mm, height_mm)
    for strip, signal_mm, baseline in zip(strips, centred, baselines, strict=True):
        _strip(axes, strip, signal_mm, baseline)
    for second in range(int(seconds) + 1):
        x = _LEFT_MM + second * MM_PER_S
        axes.text(x, 1.2, f"{second} s", fontsize=7, color="#a05050", ha="center")
    scale = f"25 mm/s   10 mm/mV   {SAMPLING_RATE_HZ} Hz"
    axes.text(width_mm - 2, height_mm + 1.6, scale, fontsize=8, ha="right", clip_on=False)
    axes.text(2, height_mm + 1.6, title, fontsize=9, clip_on=False)
    return figure


def _centred(signal_mv: Floats, about_mv: Floats | None = None) -> Floats:
    """Millimetres about the median, cut where one strip would run over the whole page.

    Args:
        signal_mv: (T,) float.
        about_mv: (T,) float, whose median is taken; None: of the signal.
    """
    centre = np.nanmedian(signal_mv if about_mv is None else about_mv)
    centred = (signal_mv - centre) * MM_PER_MV
    return np.clip(centred, -_MAX_GAP_MM, _MAX_GAP_MM)


def _baselines(centred: Sequence[Floats]) -> tuple[list[float], float]:
    """Heights of the zero lines, from the top down, each on a coarse line, and of the paper."""
    heights = [0.0]
    for above, below in pairwise(centred):
        ceiling = maximum_filter1d(np.nan_to_num(below), _NEAR_TIMESTEPS)
        floor = minimum_filter1d(np.nan_to_num(above), _NEAR_TIMESTEPS)
        gap = np.clip(_up(float((ceiling - floor).max()) + 1), _MIN_GAP_MM, _MAX_GAP_MM)
        heights.append(heights[-1] - float(gap))
    top = max(_up(float(np.nanmax(centred[0])) + 1), _TOP_MM)
    bottom = max(_up(-float(np.nanmin(centred[-1]))) + 5, _BOTTOM_MM)
    height_mm = top - heights[-1] + bottom
    return [height_mm - top + height for height in heights], height_mm


def _up(value_mm: float) -> float:
    return float(np.ceil(value_mm / 5) * 5)


def _grid(axes: Axes, width_mm: float, height_mm: float) -> None:
    axes.set(xlim=(0, width_mm), ylim=(0, height_mm), aspect="equal")
    axes.set_axis_off()
    axes.add_patch(Rectangle((0, 0), width_mm, height_mm, color=_PAPER, zorder=0))
    for step, colour, line_width in ((1, _FINE, 0.4), (5, _COARSE, 0.6)):
        xs, ys = np.arange(0, width_mm + 1, step), np.arange(0, height_mm + 1, step)
        lines = [[(x, 0), (x, height_mm)] for x in xs] + [[(0, y), (width_mm, y)] for y in ys]
        axes.add_collection(
            LineCollection(lines, colors=colour, linewidths=line_width, zorder=step)
        )


def _strip(axes: Axes, strip: Strip, signal_mm: Floats, baseline: float) -> None:
    x = _LEFT_MM + np.arange(len(signal_mm)) * (MM_PER_S / SAMPLING_RATE_HZ)
    y = signal_mm + baseline
    pulse_x = _PULSE_LEFT_MM + np.array([0, 2, 2, 2 + _PULSE_MM, 2 + _PULSE_MM, 4 + _PULSE_MM])
    pulse_y = baseline + MM_PER_MV * np.array([0, 0, 1, 1, 0, 0])
    axes.plot(pulse_x, pulse_y, color=_INK, linewidth=0.8, zorder=10)
    hidden = np.zeros(len(x), bool) if strip.hidden is None else strip.hidden
    accent = np.zeros(len(x), bool) if strip.accent is None else strip.accent
    if strip.over_mv is not None:
        over = _centred(strip.over_mv, strip.signal_mv) + baseline
        axes.plot(x, over, color=_ACCENT, linewidth=0.8, zorder=11)
    unseen = accent if strip.over_mv is not None else hidden | accent
    axes.plot(x, np.where(unseen, np.nan, y), color=_INK, linewidth=0.8, zorder=10)
    axes.plot(x, np.where(accent, y, np.nan), color=_ACCENT, linewidth=0.8, zorder=10)
    for start, stop in _runs(hidden):
        corner, width = (x[start], baseline - 5), (stop - start) * (MM_PER_S / SAMPLING_RATE_HZ)
        axes.add_patch(Rectangle(corner, width, 10, facecolor=_SHADE, linewidth=0, zorder=8))
    if strip.weight is not None:
        _weights(axes, x, strip.weight, baseline)
    name, _, role = strip.name.partition("\n")
    axes.text(2, baseline + 1, name, fontsize=10, weight="bold", zorder=12)
    axes.text(2, baseline - 3, role, fontsize=7, zorder=12)
    box = {"facecolor": _PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    for start, lead in strip.leads.items():
        axes.text(x[start] + 1, baseline + 6, lead, fontsize=9, weight="bold", bbox=box, zorder=12)
        axes.plot([x[start]] * 2, [baseline - 4, baseline + 4], color=_INK, linewidth=1, zorder=12)


def _weights(axes: Axes, x: Floats, weight: Floats, baseline: float) -> None:
    """One rectangle for each run of one value, on the side of its sign."""
    starts = [0, *(np.flatnonzero(np.diff(weight)) + 1).tolist(), len(weight)]
    for start, stop in pairwise(starts):
        value, width = float(weight[start]), (stop - start) * (MM_PER_S / SAMPLING_RATE_HZ)
        axes.add_patch(
            Rectangle(
                (x[start], baseline), width, np.copysign(_WEIGHT_MM, value),
                facecolor=_FOR if value > 0 else _AGAINST, alpha=abs(value), linewidth=0, zorder=8,
            )
        )  # fmt: skip


def _runs(flags: Flags) -> list[tuple[int, int]]:
    """Start and stop of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
