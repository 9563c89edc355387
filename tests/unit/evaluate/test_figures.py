"""Figures as files: each of a report, in both formats, in place of those of before."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ecgfast.evaluate.figures import Pictures, named, saved, write_figures


def sections(**views: object) -> dict[str, object]:
    parts = ("several", "agreement", "detection", "label_efficiency", "calibration", "net_benefit")
    empty = dict.fromkeys(parts)
    return {**empty, "training": (), "reconstructions": (), "saliencies": (), **views}


def chart(title: str = "") -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], label="0.12345")
    figure.text(0.1, 0.5, title or "0.12345")
    return figure


def test_every_figure_has_a_file_of_its_own_name() -> None:
    drawn = [chart() for _ in range(8)]
    found = named(
        sections(
            detection={"areas": drawn[0], "curves": None},
            training=[
                {"name": "ViT, pretrained", "losses": drawn[1]},
                {"name": "vit pretrained", "losses": drawn[2]},
                {"name": "ViT: pretrained!", "losses": drawn[3]},
            ],
            reconstructions=[
                {
                    "name": "MAE",
                    "overlaid": [{"kind": "best decile", "figure": drawn[4]}],
                    "two_leads": drawn[5],
                }
            ],
            saliencies=[{"name": "../x", "figures": [{"kind": "case", "figure": drawn[6]}]}],
            label_efficiency={"curves": drawn[7]},
        )
    )
    assert found == {
        "auroc": drawn[0],
        "training-vit-pretrained": drawn[1],
        "training-vit-pretrained--2": drawn[2],
        "training-vit-pretrained--3": drawn[3],
        "reconstruction-mae-best-decile": drawn[4],
        "reconstruction-mae-ii-v5": drawn[5],
        "saliency-x-case": drawn[6],
        "label-efficiency": drawn[7],
    }


def test_files_of_an_earlier_report_are_replaced_and_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    folder.mkdir()
    for name in ("old.svg", "old.pdf", "note.txt"):
        (folder / name).write_text("old")
    view = sections(calibration={"curves": chart()})
    write_figures(tmp_path, view, Pictures(synthetic=True))
    assert sorted(path.name for path in folder.iterdir()) == [
        "calibration.pdf", "calibration.svg", "note.txt",
    ]  # fmt: skip
    assert b"SYNTHETIC" in (folder / "calibration.svg").read_bytes()
    assert (folder / "calibration.pdf").read_bytes().startswith(b"%PDF")


def test_a_mark_is_in_every_format_and_leaves_the_figure_as_it_was() -> None:
    figure = chart()
    sizes = {kind: len(saved(figure, kind)) for kind in ("svg", "pdf", "png")}  # type: ignore[arg-type]  # the three
    for kind, size in sizes.items():
        assert len(saved(figure, kind, synthetic=True)) > size  # type: ignore[arg-type]  # as above
    assert [text.get_text() for text in figure.texts] == ["0.12345"]
    np.testing.assert_array_equal(figure.get_size_inches(), (2, 1))


def test_an_ecg_that_says_it_in_its_title_is_not_marked_twice() -> None:
    figure = chart("SYNTHETIC record abc")
    assert saved(figure, "svg", synthetic=True).count(b"SYNTHETIC") == 1


def test_numbers_in_a_figure_keep_their_digits() -> None:
    data = saved(chart(), "svg")
    assert b">0.12345<" in data
    assert b'd="M' in data


def test_a_figure_is_drawn_once_in_a_format() -> None:
    pictures, figure = Pictures(synthetic=False), chart()
    assert pictures.of(figure, "svg") is pictures.of(figure, "svg")
    assert pictures.data_uri(figure, "svg").startswith("data:image/svg+xml;base64,")
