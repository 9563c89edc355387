"""Names in figures: drawn with the fonts of this machine, and as codes where none has a letter."""

import functools
import unicodedata
from contextlib import suppress

from matplotlib import font_manager

from ecgfast import log

# matplotlib's own font, DejaVu Sans, has no letters of Chinese, Japanese and Korean. The first of
# these that has a letter draws it: of one code, each language writes some letters in its own way.
_JAPANESE = (
    *("Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "IPAGothic", "IPAPGothic", "TakaoGothic"),
    *("VL Gothic", "Hiragino Sans", "Yu Gothic", "Meiryo", "MS Gothic"),
)
_OTHERS = (
    *("Noto Sans CJK SC", "Noto Sans CJK KR", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei"),
    *("NanumGothic", "Droid Sans Fallback", "Arial Unicode MS", "Unifont"),
)


@functools.cache
def families() -> list[str]:
    """The font families of a figure, each for the letters that those before it lack."""
    manager = font_manager.fontManager
    if not {*manager.get_font_names()}.intersection(_JAPANESE):  # matplotlib keeps an old list
        known = {entry.fname for entry in manager.ttflist}
        for path in sorted({*font_manager.findSystemFonts()} - known):
            with suppress(Exception):  # fonts that matplotlib cannot read raise anything
                manager.addfont(path)
    names = {*manager.get_font_names()}
    return ["sans-serif", *(name for name in (*_JAPANESE, *_OTHERS) if name in names)]


def drawn(name: str) -> str:
    r"""Return a name as matplotlib draws it: no mathematics, no character that SVG cannot hold.

    A letter that no font here has is its code, such as \u6771. A label that begins with an
    underscore would be missing in the legend.
    """
    text = "".join(each if _is_drawable(each) else _code(each) for each in log.plain(name))
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def letters(text: str) -> int:
    """How wide a text is, in Latin letters: those of East Asia take two."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


@functools.cache
def _is_drawable(letter: str) -> bool:
    paths = (
        font_manager.findfont(font_manager.FontProperties(family=[name])) for name in families()
    )
    return any(font_manager.get_font(path).get_char_index(ord(letter)) for path in paths)


def _code(letter: str) -> str:
    _say_once()
    return letter.encode("unicode_escape").decode()


@functools.cache
def _say_once() -> None:
    log.warning(
        r"figures show some letters of names as codes, such as \u6771, because no font here has "
        "them; install Noto Sans CJK (Debian, Ubuntu: fonts-noto-cjk) and write the report again"
    )
