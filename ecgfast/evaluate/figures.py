"""Figures of a report as bytes: in its page, and as files of their own."""

import base64
import io
import re
from pathlib import Path
from typing import Literal

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from ecgfast.evaluate.charts import STYLE
from ecgfast.evaluate.views import View
from ecgfast.store.durable import write_durably

FOLDER = "figures"
SYNTHETIC = "SYNTHETIC"
Kind = Literal["png", "svg", "pdf"]
KINDS: tuple[Kind, ...] = ("svg", "pdf")  # of the files
_STRIP_PT = 14  # below a figure, for the word SYNTHETIC: legends move to the top of what is saved
# A date would make other bytes of the same figure.
_NO_DATE = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
_PATH, _LONG = re.compile(r' d="[^"]+"'), re.compile(r"(\.\d\d)\d+")


def saved(figure: Figure, kind: Kind, *, synthetic: bool = False) -> bytes:
    """Save a figure.

    Args:
        figure: a chart, or an ECG.
        kind: format of the picture.
        synthetic: write SYNTHETIC into the picture, so that a copy of it keeps the word, in a strip
            of its own that covers nothing. The title of an ECG has it anyway.
    """
    buffer, words = io.BytesIO(), [text.get_text() for text in figure.findobj(Text)]
    with mpl.rc_context(STYLE):
        if not synthetic or any(SYNTHETIC in text for text in words):
            figure.savefig(buffer, format=kind, metadata=_NO_DATE[kind])
        else:
            width, height = figure.get_size_inches()
            strip = _STRIP_PT / 72
            mark = figure.text(
                0.05 / width, -0.7 * strip / height, SYNTHETIC,
                color="#b00020", weight="bold", fontsize=10,
            )  # fmt: skip
            whole = Bbox([[0, -strip], [width, height]])
            figure.savefig(buffer, format=kind, metadata=_NO_DATE[kind], bbox_inches=whole)
            mark.remove()
    return _shortened(buffer.getvalue()) if kind == "svg" else buffer.getvalue()


def _shortened(svg: bytes) -> bytes:
    """Coordinates of paths to a hundredth of a point, 4 micrometres: half of the bytes."""
    return _PATH.sub(lambda path: _LONG.sub(r"\1", path[0]), svg.decode()).encode()


class Pictures:
    """Figures of one report, each drawn once in each format.

    Args:
        synthetic: as in `saved`.
    """

    def __init__(self, *, synthetic: bool) -> None:
        self.synthetic = synthetic
        self._drawn: dict[tuple[Figure, Kind], bytes] = {}

    def of(self, figure: Figure, kind: Kind) -> bytes:
        """A picture of a figure."""
        if (figure, kind) not in self._drawn:
            self._drawn[figure, kind] = saved(figure, kind, synthetic=self.synthetic)
        return self._drawn[figure, kind]

    def data_uri(self, figure: Figure, kind: Kind) -> str:
        """The same for an ``<img>`` of a self-contained page."""
        mime = {"png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf"}[kind]
        return f"data:{mime};base64,{base64.b64encode(self.of(figure, kind)).decode()}"


def named(sections: View) -> dict[str, Figure]:
    """Figures of a report, by the names of their files.

    Args:
        sections: of `report.page`.
    """
    found: list[tuple[str, Figure | None]] = []
    for section, parts in (
        ("several", {"areas": "auroc-by-target"}),
        ("agreement", {"observed": "measured-predicted", "bland_altman": "bland-altman"}),
        ("detection", {"areas": "auroc", "curves": "roc"}),
        ("label_efficiency", {"curves": "label-efficiency"}),
        ("calibration", {"curves": "calibration"}),
        ("net_benefit", {"curves": "net-benefit"}),
    ):
        for key, name in parts.items():
            drawn = (sections[section] or {}).get(key)
            found += [(name, each) for each in (drawn if isinstance(drawn, list) else [drawn])]
    for run in sections["training"]:
        found.append((f"training {run['name']}", run["losses"]))
    for run in sections["reconstructions"]:
        for view in run["overlaid"]:
            found.append((f"reconstruction {run['name']} {view['kind']}", view["figure"]))
        found.append((f"reconstruction {run['name']} II V5", run["two_leads"]))
    for run in sections["saliencies"]:
        for view in run["figures"]:
            found.append((f"saliency {run['name']} {view['kind']}", view["figure"]))
    names: dict[str, Figure] = {}
    for name, figure in found:
        if figure is not None:
            plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            number = sum(other.rpartition("--")[0] == plain or other == plain for other in names)
            names[f"{plain}--{number + 1}" if number else plain] = figure
    return names


def write_figures(out: Path, sections: View, pictures: Pictures) -> None:
    """Write each figure as SVG and PDF, in place of those of an earlier call.

    Args:
        out: folder of the report.
        sections: of `report.page`.
        pictures: of the same report.
    """
    folder = out / FOLDER
    for kind in KINDS:
        for path in folder.glob(f"*.{kind}"):
            path.unlink()
    folder.mkdir(exist_ok=True)
    for name, figure in named(sections).items():
        for kind in KINDS:
            write_durably(folder / f"{name}.{kind}", [pictures.of(figure, kind)])
