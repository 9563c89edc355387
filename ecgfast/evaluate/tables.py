"""A table of a report as Markdown, CSV and LaTeX, with what its data are."""

import re
from collections.abc import Sequence

from ecgfast import log
from ecgfast.evaluate.views import Table
from ecgfast.store.csv_files import csv_lines

# What Markdown takes for more than text: cells, code, links, elements and emphasis. A < before a
# number, and a _ within a word, it leaves alone.
_MARKDOWN = re.compile(r"[\\`*|\[\]]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<!\w)_|_(?!\w)")
_LATEX = str.maketrans(
    {
        **{sign: rf"\{sign}" for sign in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}"},
    }
)


def markdown(table: Table, caption: str) -> str:
    """Return a table as Markdown, what the data are in its first line."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(_escaped, cells))} |"

    rule = ["---", *["---:"] * (len(table.header) - 1)]
    lines = [line(table.header), line(rule), *map(line, table.rows)]
    return f"{_escaped(caption)}\n\n" + "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", log.plain(text))


def csv_text(table: Table, caption: str) -> str:
    """Return a table as CSV, what the data are in its first column."""
    rows = [("data", *table.header), *((caption, *row) for row in table.rows)]
    return csv_lines([[log.plain(cell) for cell in row] for row in rows])


def latex(table: Table, caption: str) -> str:
    """Return a table as LaTeX (package booktabs), what the data are in its caption."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(log.plain(cell).translate(_LATEX) for cell in cells) + r" \\"

    return "\n".join(
        (
            r"\begin{table}",
            rf"\caption{{{caption.translate(_LATEX)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            line(table.header),
            r"\midrule",
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        )
    )


TABLES = {"table3.md": markdown, "table3.csv": csv_text, "table3.tex": latex}
