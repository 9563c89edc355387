"""Ejection fractions as echo reports write them: numbers, percent, ranges and limits.

    55, 55 %, 33,5     the number
    35-40, 35 to 40 %  the middle, 37.5; decides a target unless its bound lies inside the range
    <40, >=60          the nearest whole percent that fits, 39 and 60; decides as the limit does
    ~55, ca. 55        the number

Words such as "normal" are no number: such cells are unknown. docs/datasets.md has the rules.
"""

import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ecgfast.errors import ConfigError
from ecgfast.labels.columns import NUMBER_CELL

_DASHES = dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-")  # hyphens, dashes, minus
_SIGNS = {ord("≤"): "<=", ord("⩽"): "<=", ord("≥"): ">=", ord("⩾"): ">=", ord("≈"): "~"}
_NUMBER = r"(\d+(?:[.,]\d+)?)\s*(%|percent|per cent)?"
_ONE = re.compile(rf"(~|ca\.?|approx\.?|about)?\s*{_NUMBER}")
_LIMIT = re.compile(rf"(<=?|>=?|=<|=>)\s*{_NUMBER}")
_RANGE = re.compile(rf"{_NUMBER}\s*(?:-|to)\s*{_NUMBER}")
_WORDS = """
normal preserved reduced impaired depressed low high good fair poor hyperdynamic mild mildly
moderate moderately severe severely borderline slightly not measured assessed
"""
_KNOWN_WORDS = frozenset(_WORDS.split())
_SHOWN = 40  # letters of a cell in an error
_TURNED = {"=<": "<=", "=>": ">="}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a cell says.

    Attributes:
        percent: the number; None for words.
        given: in our spelling, where the cell says less or more than a number: "35-40", "<40".
        words: qualitative ones, such as "mildly reduced".
    """

    percent: float | None = None
    given: str | None = None
    words: str | None = None


def parse(cell: str) -> Reading:
    """Read one cell that is not empty.

    Raises:
        ValueError: what it must be instead.
    """
    text = unicodedata.normalize("NFKC", cell).translate(_DASHES).translate(_SIGNS)
    text = " ".join(text.casefold().split())
    if re.fullmatch(NUMBER_CELL, text):
        return Reading(percent=_percent(text, "") + 0.0)
    if match := _ONE.fullmatch(text):
        sign, number, unit = match.groups()
        percent = _percent(number, unit)
        return Reading(percent=percent, given=f"~{percent:g}" if sign else None)
    if match := _LIMIT.fullmatch(text):
        sign, number, unit = match.groups()
        return _limit(_TURNED.get(sign, sign), _percent(number, unit))
    if match := _RANGE.fullmatch(text):
        low_text, low_unit, high_text, high_unit = match.groups()
        unit = high_unit or low_unit
        low, high = _percent(low_text, unit), _percent(high_text, unit)
        if low >= high:
            raise ValueError("a range that ascends, such as 35-40")
        return Reading(percent=(low + high) / 2, given=f"{low:g}-{high:g}")
    if set(re.split(r"[ ,/-]+", text)) <= _KNOWN_WORDS:
        return Reading(words=text)
    raise ValueError("a percentage such as 35.5, 55 %, 35-40, <40 or >=60")


def _percent(number: str, unit: str | None) -> float:
    """A number in percent; a comma is a decimal one, as no thousands are below 100."""
    value = float(number.replace(",", "."))
    if not 0 <= value <= 100:
        raise ValueError("from 0 to 100 percent")
    if 0 < value < 1 and not unit:
        raise ValueError("in percent, such as 35 for 0.35")
    return value


def _limit(sign: str, bound: float) -> Reading:
    """A limit; its number is the nearest whole percent inside, or the bound that belongs to it."""
    percent = {"<": math.ceil(bound) - 1, ">": math.floor(bound) + 1}.get(sign, bound)
    if not 0 <= percent <= 100:
        raise ValueError("a limit that leaves something from 0 to 100 percent")
    return Reading(percent=float(percent), given=f"{sign}{bound:g}")


def bounds(given: str) -> tuple[float, float]:
    """The lowest and the highest value that a reading stands for, both included.

    A range stands for its inside: 35-40 is below 40.

    Args:
        given: as `Reading` has it.
    """
    if given[0] == "~":
        return float(given[1:]), float(given[1:])
    if given[0] in "<>":
        bound = float(given.lstrip("<>="))
        inside = bound if "=" in given else math.nextafter(bound, 0 if given[0] == "<" else 100)
        return (0.0, inside) if given[0] == "<" else (inside, 100.0)
    low, _, high = given.partition("-")
    return math.nextafter(float(low), 100), math.nextafter(float(high), 0)


def bounds_of(
    given: pa.ChunkedArray, percent: pa.ChunkedArray
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """(N,) lowest and highest value of each record: of what was given, else the number itself."""
    coded = given.combine_chunks().dictionary_encode()
    pairs = [bounds(each) for each in coded.dictionary.to_pylist()]
    number = percent.combine_chunks()
    low, high = (
        pc.coalesce(pa.array(ends, pa.float64()).take(coded.indices), number)
        for ends in ([low for low, _ in pairs], [high for _, high in pairs])
    )
    return pa.chunked_array([low]), pa.chunked_array([high])


def read_column(
    text: pa.ChunkedArray, path: Path
) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None, Counter[str]]:
    """Read a column of ejection fractions.

    Args:
        text: (N,) cells, null for empty ones.
        path: of the table, for errors.
    Returns:
        (N,) float64 percent, null where unknown; (N,) text, what was given, None where all are
        plain numbers; words -> how many cells hold them.
    Raises:
        ConfigError: a cell is neither a number, a range, a limit, nor a known word.
    """
    coded = text.combine_chunks().dictionary_encode()
    readings: list[Reading] = []
    for code, cell in enumerate(coded.dictionary.to_pylist()):
        try:
            readings.append(parse(cell))
        except ValueError as error:
            row = pc.index(coded.indices, code).as_py() + 1
            # A number out of bounds may be that of a patient: it is not shown.
            is_number = re.fullmatch(NUMBER_CELL, cell.strip())
            got = "" if is_number else f", got {cell.strip()[:_SHOWN]!r}"
            raise ConfigError(
                f"labels {path}: ejection_fraction of row {row} below the header must be {error}, "
                f"or empty{got}; correct the cell"
            ) from None
    numbers = pa.array([each.percent for each in readings], pa.float64()).take(coded.indices)
    given = pa.array([each.given for each in readings], pa.string()).take(coded.indices)
    words: Counter[str] = Counter()
    for code, reading in enumerate(readings):
        if reading.words:
            words[reading.words] += pc.sum(pc.equal(coded.indices, code)).as_py()
    has_given = given.null_count < len(given)
    return pa.chunked_array([numbers]), pa.chunked_array([given]) if has_given else None, words
