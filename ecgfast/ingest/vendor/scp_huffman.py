"""Huffman codes of SCP-ECG: the default table, a file's own tables, and differences undone.

Source: EN 1064, sections 2 and 6 and annex C.
"""

import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import cut_short

_DEFAULT = 19999  # in place of the number of tables
_MAX_CODES = 4096  # of all tables of a file; the default table has 19
_LONGEST_CODE = 32
_WINDOW = 16  # bits that are looked up at once: at most 65,536 runs are kept
_CODE = struct.Struct("<BBBhI")


class HuffmanTable:
    """The codes of one table.

    Args:
        codes: first bits of each code, how many bits follow that are a number, the value to which
            this number is added, and whether the value is instead that of the next table, from 1.
    """

    def __init__(self, codes: Sequence[tuple[str, int, int, bool]]) -> None:
        self._codes = {prefix: (base, switches) for prefix, _, base, switches in codes}
        words = (f"({prefix})([01]{{{extra}}})" for prefix, extra, _, _ in codes)
        self._pattern = re.compile("|".join(words))
        self._known: dict[str, tuple[int, bool]] = {}
        self._runs: dict[str, tuple[list[int], int]] = {}

    def run(self, bits: str) -> tuple[list[int], int]:
        """Return the numbers that lie whole in some bits, and how many bits these take.

        They end before a code that switches, and before one that goes on behind the bits. What was
        found is kept: short codes let few windows make up most of a signal.
        """
        if bits not in self._runs:
            numbers: list[int] = []
            end = 0
            while (found := self.next(bits, end)) and not found[1]:
                numbers.append(found[0])
                end = found[2]
            self._runs[bits] = numbers, end
        return self._runs[bits]

    def next(self, bits: str, at: int) -> tuple[int, bool, int] | None:
        """Return the value at a bit, whether it is that of a table, and the bit behind it.

        None where no code begins.
        """
        match = self._pattern.match(bits, at)
        if match is None:
            return None
        word = match[0]
        if word not in self._known:
            prefix, extra = (each for each in match.groups() if each is not None)
            base, switches = self._codes[prefix]
            number = int(extra, 2) - (1 << len(extra) if extra[0] == "1" else 0) if extra else 0
            self._known[word] = base + number, switches
        return *self._known[word], match.end()


@lru_cache(maxsize=1)
def default_table() -> HuffmanTable:
    """The table of annex C: -8 to 8 in 1 to 10 bits, other numbers in 8 or 16 bits of their own."""
    small = [
        ("1" * size + "0" + sign, 0, value, False)
        for size in range(1, 9)
        for sign, value in (("0", size), ("1", -size))
    ]
    return HuffmanTable(
        [("0", 0, 0, False), *small, ("1" * 9 + "0", 8, 0, False), ("1" * 10, 16, 0, False)]
    )


def huffman_tables(section: bytes, source: str) -> list[HuffmanTable]:
    """Parse section 2.

    Args:
        section: without its header.
        source: file name, named in errors.
    Raises:
        FormatError: the section is cut short, or its codes are none.
    """
    num_tables = int.from_bytes(section[:2], "little")
    if num_tables == _DEFAULT:
        return [default_table()]
    tables: list[HuffmanTable] = []
    at, num_codes = 2, 0
    for _ in range(num_tables):
        count = int.from_bytes(section[at : at + 2], "little")
        at += 2
        num_codes += count
        end = at + count * _CODE.size
        if not count or num_codes > _MAX_CODES or end > len(section):
            raise _no_tables(source)
        codes = [_code(each, source) for each in _CODE.iter_unpack(section[at:end])]
        if _is_ambiguous(codes):
            raise _no_tables(source)
        tables.append(HuffmanTable(codes))
        at = end
    if not tables:
        raise _no_tables(source)
    return tables


def _is_ambiguous(codes: Sequence[tuple[str, int, int, bool]]) -> bool:
    """Whether the bits of one code begin another one."""
    prefixes = sorted(prefix for prefix, *_ in codes)
    return any(later.startswith(earlier) for earlier, later in pairwise(prefixes))


def _code(fields: tuple[int, ...], source: str) -> tuple[str, int, int, bool]:
    """A code as it stands in section 2, its first bit in the lowest place."""
    prefix_bits, total_bits, mode, base, stored = fields
    if not 1 <= prefix_bits <= total_bits <= _LONGEST_CODE:
        raise _no_tables(source)
    prefix = f"{stored & ((1 << prefix_bits) - 1):0{prefix_bits}b}"[::-1]
    return prefix, total_bits - prefix_bits, base, mode == 0


def _no_tables(source: str) -> FormatError:
    return FormatError(
        f"{source}: section 2 is cut short, or holds no Huffman table of up to {_MAX_CODES} codes "
        f"of 1 to {_LONGEST_CODE} bits, none the begin of another",
        reason="the header is damaged",
    )


def decode(
    data: bytes, count: int, tables: Sequence[HuffmanTable], source: str
) -> NDArray[np.int64]:
    """Decode the numbers of one lead.

    Args:
        data: the lead's bytes.
        count: numbers that they hold.
        tables: of the file; the first one is in use at the begin of each lead.
        source: file name, named in errors.
    Returns:
        (count,) int64.
    Raises:
        FormatError: the bytes end before, or hold what is no code.
    """
    bits = bin(int.from_bytes(b"\1" + data, "big"))[3:]
    numbers: list[int] = []
    table, at = tables[0], 0
    while len(numbers) < count:
        run, size = table.run(bits[at : at + _WINDOW])
        if size:
            numbers += run  # zeros that fill up the last byte are more than asked for
            at += size
            continue
        found = table.next(bits, at)
        if found is None:
            raise cut_short(
                f"{source}: a lead ends after {len(numbers)} of {count} timesteps; the copy is cut "
                "short or damaged, copy it again"
            )
        value, switches, at = found
        if not switches:
            numbers.append(value)
        elif 1 <= value <= len(tables):
            table = tables[value - 1]
        else:
            raise _no_tables(source)
    return np.array(numbers[:count], np.int64)


def undo_differences(numbers: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    """Turn first or second differences into ADC units, in the 16 bits that writers compute in.

    Args:
        numbers: (T,) as decoded; the first `order` of them are ADC units.
        order: 0, 1 or 2.
    """
    values = numbers.copy()
    if order == 2 and len(values) > 1:
        values[1] -= values[0]
        values[1:] = np.cumsum(values[1:])
    if order:
        values = np.cumsum(values)
    return values.astype(np.int16).astype(np.int64)
