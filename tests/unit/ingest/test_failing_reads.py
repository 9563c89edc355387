"""Whether a failed read concerns one file, or the share that all files are on."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from recordings import ecg_like, write_wfdb

from ecgfast.errors import FormatError
from ecgfast.ingest import read_record
from ecgfast.ingest.inventory import discover

SIGNAL = ecg_like(1, seed=3)[0]


def test_a_failing_share_ends_the_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wfdb(tmp_path / "in/good", SIGNAL)
    (item,) = discover([tmp_path / "in"])
    for number, error in ((errno.EIO, OSError), (errno.ESTALE, OSError)):

        def failing(*_: object, number: int = number) -> bytes:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "read", failing)
        with pytest.raises(error, match=r"good\.hea"):
            read_record(item)


@pytest.mark.parametrize("name", ["good.hea", "odd.npy"])
def test_a_file_that_is_locked_is_its_own_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A lock that the kernel enforces, or a lease on the file: reading would have to wait."""
    write_wfdb(tmp_path / "in/good", SIGNAL)
    np.save(tmp_path / "in/odd.npy", SIGNAL)
    (tmp_path / "in/odd.json").write_text('{"sampling_rate_hz": 500, "scale_uv": 1}')
    items = {item.path.name: item for item in discover([tmp_path / "in"])}

    def waiting(*_: object) -> bytes:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "read", waiting)
    with pytest.raises(FormatError) as error:
        read_record(items[name])
    assert error.value.reason == "the file cannot be opened"


def test_memory_that_is_wanting_for_one_file_is_its_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wfdb(tmp_path / "in/good", SIGNAL)
    (item,) = discover([tmp_path / "in"])
    monkeypatch.setattr("ecgfast.ingest.wfdb_records.read_header", _no_memory)
    with pytest.raises(FormatError, match=r"good\.hea: cannot be read: MemoryError"):
        read_record(item)


def _no_memory(*_: object) -> None:
    raise MemoryError
