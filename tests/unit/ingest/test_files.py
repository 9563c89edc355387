"""Limits of what is opened and read."""

import errno
from pathlib import Path

import pytest

from ecgfast.errors import FormatError
from ecgfast.ingest.files import check_regular, check_values, is_of_one_file, read_text_bytes


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
