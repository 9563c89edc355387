"""A table of a report as Markdown, CSV and LaTeX, with what its data are."""

from collections.abc import Sequence

from ecgfast import log
from ecgfast.evaluate.views import Table
from ecgfast.store.csv_files import csv_lines

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
        return f"| {' | '.join(log.plain(cell).replace('|', chr(92) + '|') for cell in cells)} |"

    rule = ["---", *["---:"] * (len(table.header) - 1)]
    lines = [line(table.header), line(rule), *map(line, table.rows)]
    return f"{caption}\n\n" + "\n".join(lines) + "\n"


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
