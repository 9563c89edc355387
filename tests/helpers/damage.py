"""Seeded damage of files, and what a reader may make of it: a record, or one clear refusal."""

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ecgfast.errors import FormatError
from ecgfast.records import NUM_LEADS, EcgRecord

Reader = Callable[[Path, str, int | None], EcgRecord]

_SLOWEST_S = 10.0
_EXTREME = (b"\x00", b"\xff", b"\x7f", b"\x80")


def damaged(content: bytes, random_: random.Random) -> bytes:
    """Cut, change, insert, remove or repeat bytes, mostly near the begin, where headers are."""
    edited = bytearray(content)
    for _ in range(random_.randint(1, 4)):
        reach = random_.choice((64, 512, 4096, len(edited)))
        at = random_.randrange(min(reach, len(edited)) or 1)
        size = random_.choice((1, 1, 2, 4, 8, 300))
        kind = random_.randrange(6)
        if kind == 0:
            del edited[at:]
        elif kind == 1:
            edited[at : at + size] = random_.randbytes(size)
        elif kind == 2:
            edited[at : at + size] = random_.choice(_EXTREME) * size
        elif kind == 3:
            edited[at:at] = random_.randbytes(size)
        elif kind == 4:
            del edited[at : at + size]
        else:
            edited[at:at] = edited[at : at + size * 8]
    return bytes(edited)


def check_damage(
    read: Reader,
    path: Path,
    *,
    cases: int,
    secrets: tuple[str, ...] = (),
    row: int | None = None,
) -> Counter[str]:
    """Read a file as often as asked for, each time with other damage.

    Args:
        read: of a format.
        path: of a good file, which is overwritten.
        cases: how often.
        secrets: texts of the file that no refusal may repeat.
        row: of the record.
    Returns:
        how often it was read, and how often refused with each reason.
    """
    content = path.read_bytes()
    outcomes: Counter[str] = Counter()
    for seed in range(cases):
        path.write_bytes(damaged(content, random.Random(seed)))
        begin = time.perf_counter()
        found, message = outcome(read, path, row)
        outcomes[found] += 1
        assert "\n" not in message, seed
        assert not [each for each in secrets if each in message], seed
        assert time.perf_counter() - begin < _SLOWEST_S, seed
    path.write_bytes(content)
    return outcomes


def outcome(read: Reader, path: Path, row: int | None) -> tuple[str, str]:
    """Read a file that may be damaged; the reason and message of its refusal, "read" for none."""
    try:
        with np.errstate(all="ignore"):  # as in `read_record`
            record = read(path, "r", row)
    except FormatError as error:
        return error.reason, str(error)
    assert record.signal.shape[0] == NUM_LEADS
    assert np.isfinite(record.scale_uv).all()
    assert record.sampling_rate_hz > 0
    return "read", ""
