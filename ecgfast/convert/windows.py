"""One input file -> its windows as they are stored, or why not; convert and predict share it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgfast.convert.preprocess import Digits, Segment, cut, to_digits
from ecgfast.errors import EcgfastError, FormatError
from ecgfast.ingest import InputFile, read_record, unreadable
from ecgfast.records import EcgRecord
from ecgfast.vocabulary import Short, Window


@dataclass(frozen=True, kw_only=True)
class Windows:
    """What one file gives.

    Attributes:
        record: as the reader gave it.
        digits: the whole record at 500 Hz.
        segments: windows in order of time; an error instead says why that window is refused.
    """

    record: EcgRecord
    digits: Digits
    segments: list[Segment | FormatError]


def read_windows(item: InputFile, *, window: Window, short: Short) -> Windows:
    """Read a file and cut its windows.

    Args:
        item: of `discover`'s list.
        window: which windows of a longer record.
        short: what happens to a shorter one.
    Raises:
        FormatError, ShapeError: whatever is wrong with this one file, an array that the memory
            cannot hold too.
        OSError: the share fails.
    """
    record = read_record(item)
    try:
        with np.errstate(all="ignore"):  # what overflows is refused below
            digits = to_digits(record)
            segments = cut(digits, window=window, short=short)
    except (EcgfastError, ImportError, OSError):
        raise
    except Exception as error:  # MemoryError too: one odd file must not end a run over millions
        raise unreadable(item, error) from error
    return Windows(record=record, digits=digits, segments=segments)


def check_source(source: Path, *, again: str) -> None:
    """After a refusal: see that the source itself is still there.

    Args:
        source: folder or file of a command line.
        again: what to do when it is back.
    Raises:
        EcgfastError: it has gone, so that every further file would be refused.
        OSError: the share fails.
    """
    if not source.exists():
        raise EcgfastError(f"source {source} has gone while it was read; bring it back and {again}")
