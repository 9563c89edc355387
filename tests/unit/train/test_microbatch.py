"""The microbatch: as asked, as before, or by the rules of a CPU."""

import pytest

from ecgfast.errors import ConfigError
from ecgfast.train.distributed import Ranks
from ecgfast.train.microbatch import choose_microbatch


def _choose(asked: object, share: int, before: int | None = None) -> int:
    def never(num_records: int) -> None:
        raise AssertionError("a CPU needs no probe")

    return choose_microbatch(asked, share, Ranks(), before=before, probe=never)  # type: ignore[arg-type]  # text from a config


@pytest.mark.parametrize(
    ("asked", "share", "before", "expected"),
    [
        (4, 12, None, 4),
        (4, 12, 6, 4),  # asked for wins
        ("auto", 12, 6, 6),  # as before the resume
        ("auto", 10, 6, 10),  # six does not divide the share of another world size
        ("auto", 1024, None, 32),
        ("auto", 50, None, 25),
        ("auto", 37, None, 1),
    ],
)
def test_choice(asked: object, share: int, before: int | None, expected: int) -> None:
    assert _choose(asked, share, before) == expected


def test_unequal_pieces_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"divide the 10 records .* got 4; use one of \[1, 2, 5"):
        _choose(4, 10)
