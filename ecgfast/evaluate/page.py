"""HTML building blocks of a report: one self-contained page, nothing loaded from elsewhere."""

from collections.abc import Sequence
from html import escape as escape_html
from typing import Literal

from matplotlib.figure import Figure

from ecgfast.evaluate.plots import data_uri, mark_synthetic
from ecgfast.log import plain

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#181818;max-width:300mm;margin:2em auto;padding:0 1em}
h1{font-size:1.35em;border-bottom:3px solid #1450c8;padding-bottom:.4em}
h1 b{color:#b00020}h2{font-size:1.15em;margin-top:2.2em}
table{border-collapse:collapse;margin:.8em 0;font-variant-numeric:tabular-nums}
th,td{padding:.25em .9em;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}th{border-bottom:2px solid #888}
tr.sum td{font-weight:600;background:#f6f6f6}
figure{margin:1em 0;overflow-x:auto}figcaption{color:#444;font-size:.92em}
.note{color:#444;font-size:.92em}
.warning{border-left:4px solid #b00020;padding-left:.8em;font-weight:600}
""".strip()


def escape(text: str, *, quote: bool = True) -> str:
    r"""Return a text for HTML; characters that a page cannot hold are written as \x1b."""
    return escape_html(plain(text), quote=quote)


def page(first_line: str, sections: Sequence[str], *, synthetic: bool) -> str:
    """Put a whole page together.

    Args:
        first_line: names the data; the page's title and heading.
        sections: HTML, in order.
        synthetic: mark the heading and every figure.
    """
    mark = "<b>SYNTHETIC</b> " if synthetic else ""
    title = ("SYNTHETIC " if synthetic else "") + first_line
    body = "\n".join(sections)
    return "\n".join(
        (
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{mark}{escape(first_line)}</h1>",
            mark_synthetic(body) if synthetic else body,
            "</body></html>\n",
        )
    )


def section(title: str, *parts: str) -> str:
    """A heading and what belongs to it."""
    return "\n".join((f"<h2>{escape(title)}</h2>", *parts))


def warnings(sentences: Sequence[str]) -> str:
    """What must be read before the first number."""
    return "\n".join(f'<p class="warning">{escape(words)}</p>' for words in sentences)


def text(words: str) -> str:
    """A small paragraph."""
    return f'<p class="note">{escape(words)}</p>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, sums: Sequence[int] = ()) -> str:
    """A table of text cells.

    Args:
        header: names of the columns.
        rows: cells; every row as long as the header.
        sums: numbers of the rows that sum others up.
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = []
    for number, row in enumerate(rows):
        mark = ' class="sum"' if number in sums else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def picture(figure: Figure, caption: str, *, kind: Literal["png", "svg"] = "svg") -> str:
    """A figure at its true size with a caption."""
    width_mm = figure.get_size_inches()[0] * 25.4
    return (
        f'<figure><img src="{data_uri(figure, kind)}" style="width:{width_mm:.1f}mm" '
        f'alt="{escape(caption, quote=True)}"><figcaption>{escape(caption)}</figcaption></figure>'
    )
