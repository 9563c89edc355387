"""Limits of what is opened and read."""

import errno
import os
from pathlib import Path

import pytest

from ecgfast.errors import FormatError
from ecgfast.ingest.files import (
    check_regular,
    check_values,
    is_of_one_file,
    read_text_bytes,
    size_and_mtime,
)


def test_a_text_of_one_mebibyte(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for size in (0, 1 << 16, 1 << 20):
        path.write_bytes(b"x" * size)
        assert read_text_bytes(path) == b"x" * size
        assert check_regular(path) == size
    path.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(FormatError, match=r"^a\.json: got over 1 MiB of text"):
        read_text_bytes(path)


def test_one_gibibyte_of_values() -> None:
    check_values(1 << 27, 1, "f")
    check_values(1 << 24, 8, "f")
    check_values(0, 12, "f")
    with pytest.raises(FormatError, match="f: 134,217,729 timesteps of 1 signals, allowed 1 GiB"):
        check_values((1 << 27) + 1, 1, "f")
    with pytest.raises(FormatError, match="f: 1,000,000,000,000,000,000 timesteps of 8 signals"):
        check_values(10**4000, 8, "f")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="got a folder, allowed a file"):
        check_regular(tmp_path)
    with pytest.raises(FormatError, match="got a pipe, a socket or a device, allowed a file"):
        check_regular("/dev/null")


def test_errors_of_one_file_and_of_a_share() -> None:
    assert is_of_one_file(OSError(errno.ENOENT, "gone"))
    assert is_of_one_file(OSError("of a library"))
    assert not is_of_one_file(OSError(errno.EIO, "broken"))
    assert not is_of_one_file(OSError(errno.ESTALE, "stale"))


def test_size_and_time_of_a_file_and_of_what_belongs_to_it(tmp_path: Path) -> None:
    for second, name in enumerate(("r.hea", "r.dat", "r.mat", "r.json", "m.mat", "m.hea", "a.npy")):
        path = tmp_path / name
        path.write_bytes(bytes(10**second))
        os.utime(path, ns=(0, (100 - second) * 10**9))
    asked = ("r.hea", "m.hea", "r.npy", "a.npy", "none.hea", "none.npy")
    assert {name: size_and_mtime(tmp_path / name) for name in asked} == {
        "r.hea": (11, 100 * 10**9),
        "m.hea": (110_000, 96 * 10**9),  # the later of the two
        "r.npy": (1000, 97 * 10**9),  # its sidecar alone
        "a.npy": (1_000_000, 94 * 10**9),
        **dict.fromkeys(("none.hea", "none.npy"), (0, 0)),
    }
