"""What the readers of binary formats share: whole files, lead numbers, damage, ages."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from ecgfast.errors import EcgfastError, FormatError
from ecgfast.ingest.files import open_regular, too_large
from ecgfast.ingest.vendor.record import age_of, time_of
from ecgfast.records import LEADS

# Lead numbers of SCP-ECG, which DICOM, MDC and MFER took over; further ones are no standard lead.
# Source: EN 1064, section 3; DICOM PS3.16, CID 3001; MFER, tag 09h.
LEAD_OF_NUMBER = {
    **{1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF"},
    **dict(enumerate(LEADS[6:], 3)),
}
_DAYS_PER_YEAR = 365.2425


def read_whole(path: Path, limit: int) -> bytes:
    """Read a file into memory.

    Args:
        path: of the file.
        limit: bytes.
    Raises:
        FormatError: it is larger, or no regular file.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise too_large(
                f"{path.name}: got {size:,} bytes, allowed {limit:,} in this format; cut the "
                "recording into shorter records"
            )
        return file.read(size)


@contextmanager
def limits_of_damage(source: str) -> Iterator[None]:
    """Turn what a parser raises on a damaged file, whose bytes are in memory, into one refusal.

    It repeats nothing of the parser's message, which can quote the file, and so a patient.

    Args:
        source: file name, named in the error.
    Raises:
        FormatError: in place of anything but our own errors and a package that is missing.
    """
    try:
        yield
    except (EcgfastError, ImportError):
        raise
    except Exception as error:  # MemoryError too: a damaged header can ask for any size
        raise FormatError(
            f"{source}: cannot be parsed ({type(error).__name__}); copy or export it again",
            reason="the file is damaged",
        ) from None


def time_from(year: int, *numbers: int) -> str:
    """Return the time of `time_of` from numbers: year, month, day, and hour, minute, second.

    Nothing where a number is none of a date.
    """
    if any(number > 99 for number in numbers):
        return ""
    return time_of(f"{year:04d}" + "".join(f"{number:02d}" for number in numbers))


def age_between(born: str, recorded: str) -> float | None:
    """Return the age in years on the day of a recording; None where a date is missing.

    Args:
        born: "YYYY-MM-DD", or nothing.
        recorded: the same, with or without a time.
    """
    if not born or not recorded:
        return None
    days = (date.fromisoformat(recorded[:10]) - date.fromisoformat(born[:10])).days
    return age_of(f"{days / _DAYS_PER_YEAR:.6f}")
