"""Names of any script in figures: in a font that has their letters, else as codes, said once."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from ecgfast.evaluate import charts, fonts
from ecgfast.evaluate.figures import KINDS, saved

# of a plane for private use: whatever this machine has, no font of it has these
NAME, CODES = "\U000f6771\U000f4eac A", r"\U000f6771\U000f4eac A"
JAPANESE = "Noto Sans CJK JP"


def forget() -> None:
    for each in (fonts.families, fonts._is_drawable, fonts._say_once):
        each.cache_clear()


@pytest.fixture
def anew() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.fixture
def with_a_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anew: None) -> None:
    """A font with the letters of NAME under the name of a Japanese one, among this machine's."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    letters = {ord(letter): f"u{ord(letter):x}" for letter in NAME[:2]}
    names = [".notdef", *letters.values()]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap(letters)
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": JAPANESE, "styleName": "Regular", "psName": "OfATest"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "a.ttf")
    others = [e for e in font_manager.fontManager.ttflist if e.name != JAPANESE]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", others)
    font_manager.fontManager.addfont(tmp_path / "a.ttf")
    monkeypatch.setitem(charts.STYLE, "font.family", fonts.families())


def pictures(name: str) -> dict[str, bytes]:
    """The picture of a chart in each format; a warning of matplotlib is an error."""
    figure = charts.losses({name: ([1, 2], [3.0, 2.0])}, y_label="loss")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {kind: saved(figure, kind) for kind in KINDS}


def test_a_font_that_has_the_letters_draws_them(with_a_font: None) -> None:
    assert fonts.drawn(NAME) == NAME
    found = pictures(NAME)
    assert NAME.encode() in found["svg"]
    assert JAPANESE.encode() in found["svg"]
    assert b"OfATest" in found["pdf"]


def test_letters_of_no_font_are_codes_and_that_is_said_once(
    anew: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ecgfast"), "propagate", True)
    found = pictures(NAME)
    assert CODES.encode() in found["svg"]
    fonts.drawn("\U000f0001")
    (line,) = caplog.messages
    assert "no font here has them; install Noto Sans CJK" in line


@pytest.mark.parametrize("name", ["Zürich", "São Paulo", "Λάρισα", "Київ", "90 % < µ"])
def test_letters_of_matplotlibs_own_font_stay(name: str) -> None:
    assert fonts.drawn(name) == name
    assert name.replace("<", "&lt;").encode() in pictures(name)["svg"]


def test_letters_of_east_asia_are_twice_as_wide() -> None:
    assert fonts.letters("site 1") == 6
    assert fonts.letters("東京 A") == 6
