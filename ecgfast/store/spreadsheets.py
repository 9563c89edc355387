"""CSV cells that a spreadsheet shows as the text that they are, and never runs as formulas."""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence

# Source: OWASP, "CSV Injection". A quote in front of these makes a cell text.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_FIRST = frozenset("'=+-@\t\r\n")  # of a formula: most cells need no pattern
_SPECIAL = re.compile(r'[",\r\n]')
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def csv_lines(rows: Iterable[Sequence[str]]) -> str:
    """Rows as the lines of a CSV file."""
    # Not csv.writer: before Python 3.13 it puts no quotes around a lone carriage return.
    return "".join(",".join(_quoted(safe_cell(cell)) for cell in row) + "\n" for row in rows)


def safe_cell(text: str) -> str:
    """A cell with a quote before what would be a formula; numbers stay as they are."""
    if text[:1] not in _FIRST or not _FORMULA.match(text) or _NUMBER.fullmatch(text):
        return text
    return f"'{text}"


def plain_text(cell: str) -> str:
    """The text that `safe_cell` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _quoted(cell: str) -> str:
    """A cell as RFC 4180 has it."""
    if _SPECIAL.search(cell):
        return '"' + cell.replace('"', '""') + '"'
    return cell


def read_lines(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Lines of a CSV file of ours, header first; cells that a line lacks are empty.

    Raises:
        csv.Error: it is none.
    """
    for line in csv.DictReader(lines, restval=""):
        yield {name: plain_text(cell) for name, cell in line.items() if name is not None}
