"""Cells of a CSV of labels: which are empty, and whether a column holds numbers, yes/no or text."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ecgfast.records import NOT_KNOWN

NUMBER_CELL = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_COMMA_CELL = r"^[+-]?(\d+,\d*|,\d+)$"
_THOUSANDS = r"^[+-]?[1-9]\d{0,2},\d{3}$"
# 426783006;164889003 is no bad number; 33,5 is one, 426783006,164889003 is not.
_LIST_CELL = r"^[+-]?[\d.]+(\s*[;|/]\s*|\s+)[+-]?[\d.]+|^\d{4,}\s*,\s*\d{4,}"
_TRUE, _FALSE = ("true", "yes"), ("false", "no")
_MOST_WRONG = 10  # one cell in so many, or a single one: more are text
_SHOWN = 40


@dataclass(frozen=True, kw_only=True)
class BadCell:
    """The first cell that does not fit a column of numbers or yes/no values.

    Attributes:
        row: below the header, from 1.
        value: cut to 40 characters.
        count: how many cells do not fit.
    """

    row: int
    value: str
    count: int


def clean(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a text column with null for every empty cell; the others as they are."""
    bare = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    empty = pc.is_in(bare, pa.array(sorted(NOT_KNOWN)))
    return pc.if_else(empty, pa.scalar(None, pa.string()), column)


def typed(column: pa.ChunkedArray, *, decimal_comma: bool) -> pa.ChunkedArray | BadCell:
    """Return a cleaned text column as float64 or bool where its cells allow that, else unchanged.

    Numbers are decimal; yes/no values are true, false, yes, no (and then 1 and 0). A column is
    text when cells are lists of numbers (426783006;164889003), or when more than one cell, and
    more than one in ten, are no values.

    Args:
        column: text, null for empty cells.
        decimal_comma: take 33,5 as 33.5 where no cell of the column has a point.
    Returns:
        float64, bool or text; for a column of values with some cells that are none, the first.
    """
    bare = pc.utf8_trim_whitespace(column)
    if decimal_comma and not _any(pc.match_substring(bare, ".")):
        is_comma = pc.match_substring_regex(bare, _COMMA_CELL)
        bare = pc.if_else(is_comma, pc.replace_substring(bare, ",", "."), bare)
    low = pc.utf8_lower(bare)
    is_word = pc.is_in(low, pa.array(_TRUE + _FALSE))
    fits = is_value = pc.match_substring_regex(bare, NUMBER_CELL)
    if _any(is_word):  # null cells are no words either
        fits = pc.or_(is_word, pc.is_in(low, pa.array(["0", "1"])))
        is_value = pc.or_(is_word, is_value)
    num_cells = len(column) - column.null_count
    num_values = pc.sum(pc.and_(is_value, pc.is_valid(column))).as_py()  # None: no cells
    wrong = pc.and_(pc.invert(fits), pc.is_valid(column))
    if not num_values:
        return column
    if not _any(wrong):
        return _booleans(low) if _any(is_word) else _numbers(bare)
    if _any(is_word) and num_values == num_cells:  # numbers beside words: name the rarer ones
        num_words = pc.sum(is_word).as_py()
        wrong = wrong if 2 * num_words >= num_cells else pc.and_(is_word, pc.is_valid(column))
        return _first(column, wrong)
    strange = pc.and_(pc.invert(is_value), pc.is_valid(column))
    num_strange = pc.sum(strange).as_py()
    is_list = _any(pc.and_(strange, pc.match_substring_regex(bare, _LIST_CELL)))
    if is_list or (num_strange > 1 and num_strange * _MOST_WRONG > num_cells):
        return column
    return _first(column, strange)


def maybe_thousands(column: pa.ChunkedArray) -> int | None:
    """The first cell whose comma may stand for thousands, if that holds for all cells with one.

    Args:
        column: text that `typed` took for numbers with decimal commas.
    Returns:
        its row below the header, from 1.
    """
    bare = pc.utf8_trim_whitespace(column)
    has_comma = pc.match_substring(bare, ",")
    is_decimal = pc.and_(has_comma, pc.invert(pc.match_substring_regex(bare, _THOUSANDS)))
    return (
        None if not _any(has_comma) or _any(is_decimal) else pc.index(has_comma, True).as_py() + 1
    )


def _first(column: pa.ChunkedArray, wrong: pa.ChunkedArray) -> BadCell:
    row = pc.index(wrong, True).as_py()
    value = " ".join(column[row].as_py().split())
    return BadCell(row=row + 1, value=value[:_SHOWN], count=pc.sum(wrong).as_py())


def _booleans(low: pa.ChunkedArray) -> pa.ChunkedArray:
    truth = pc.is_in(low, pa.array([*_TRUE, "1"]))
    return pc.if_else(pc.is_valid(low), truth, pa.scalar(None, pa.bool_()))


def _numbers(bare: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring_regex(bare, r"^\+", "").cast(pa.float64())


def _any(mask: pa.ChunkedArray) -> bool:
    return bool(pc.any(mask).as_py())
