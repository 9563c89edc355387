"""Opening the files of a source: regular ones alone, without waiting, up to a stated size."""

import errno
import os
import stat
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from ecgfast.errors import FormatError

MAX_BYTES = 1 << 30  # of one record: of its file, and as float64 at its own rate and at 500 Hz
MAX_VALUES = MAX_BYTES // 8  # timesteps times signals: six hours of 12 leads at 500 Hz
MAX_TEXT_BYTES = 1 << 20  # of a header, a sidecar or a label: real ones have a few thousand

_CHUNK = 1 << 16
_LARGEST_SHOWN = 10**18  # of a damaged header: the number can have thousands of digits

# Errors that concern one file. All others concern the share or the machine.
_OF_ONE_FILE = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR),
    *(errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EINVAL, errno.EILSEQ, errno.ENXIO, errno.ENODEV, errno.EOVERFLOW, errno.EFBIG),
    errno.EAGAIN,  # it is locked
}


def size_and_mtime(path: Path) -> tuple[int, int]:
    """Bytes of a file and of what belongs to it by name, and when the last of them changed.

    That is the signal file beside a WFDB header, .dat before .mat, and the sidecar beside others.

    Returns:
        bytes and nanoseconds since 1970; zeros where there is no such file.
    """
    stem, suffix = os.path.splitext(path)
    if suffix.lower() == ".hea":
        beside = _status(f"{stem}.dat") or _status(f"{stem}.mat")  # a share takes long to say no
    else:
        beside = _status(f"{stem}.json")
    found = [each for each in (_status(path), beside) if each is not None]
    return sum(each.st_size for each in found), max((each.st_mtime_ns for each in found), default=0)


def _status(path: str | PathLike[str]) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def printable(name: str) -> str:
    """Return a name as text that can be written: old shares have bytes that are no UTF-8."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def is_of_one_file(error: OSError) -> bool:
    """Whether an error concerns one file, not the share or the machine."""
    return error.errno in _OF_ONE_FILE or error.errno is None  # None: a library's own


def open_regular(path: str | PathLike[str], *, buffering: int = -1) -> BinaryIO:
    """Open a file for reading, unless it is a pipe, a socket or a device.

    Args:
        path: the file; links are followed.
        buffering: of `open`.
    Raises:
        FormatError: it is no regular file.
        OSError: it cannot be opened.
    """
    return open(path, "rb", buffering=buffering, opener=_open_regular)


def regular_descriptor(path: str | PathLike[str]) -> int:
    """Open a file for one read, in less time than `open_regular`, whose errors it raises.

    Returns:
        a descriptor that the caller closes.
    """
    return _open_regular(path, os.O_RDONLY | os.O_CLOEXEC)


def read_text_bytes(path: str | PathLike[str]) -> bytes:
    """Return the content of a header or sidecar.

    Raises:
        FormatError: it is no regular file, or larger than a text that describes a record.
        OSError: it cannot be read.
    """
    content = b""
    fd = regular_descriptor(path)
    try:
        while len(content) <= MAX_TEXT_BYTES and (more := os.read(fd, _CHUNK)):
            content += more
    finally:
        os.close(fd)
    if len(content) > MAX_TEXT_BYTES:
        raise too_large(
            f"{_name(path)}: got over {MAX_TEXT_BYTES >> 20} MiB of text, allowed "
            f"{MAX_TEXT_BYTES >> 20} MiB for a header or sidecar"
        )
    return content


def check_regular(path: str | PathLike[str]) -> int:
    """Refuse what is no regular file, before another library opens it; returns its size in bytes.

    Raises:
        FormatError: it is a pipe, a socket, a device or a folder.
        OSError: it does not exist.
    """
    status = os.stat(path)
    _check(status.st_mode, path)
    return status.st_size


def check_values(timesteps: int, signals: int, source: str) -> None:
    """Refuse a record that would take too much memory, before anything of it is read.

    Args:
        timesteps: of each signal.
        signals: how many there are.
        source: named in the error.
    Raises:
        FormatError: there are more values than `MAX_VALUES`.
    """
    if timesteps * signals > MAX_VALUES:
        length = f"{min(timesteps, _LARGEST_SHOWN):,} timesteps of {signals:,} signals"
        raise too_large(
            f"{source}: {length}, allowed {MAX_BYTES >> 30} GiB of 8-byte numbers in one record; "
            "cut the recording into shorter records"
        )


def too_large(message: str) -> FormatError:
    """The refusal of a file that would take too much memory."""
    return FormatError(message, reason="the file is too large")


def cut_short(message: str) -> FormatError:
    """The refusal of a file that holds fewer samples than promised."""
    return FormatError(message, reason="a signal file is cut short")


def not_read(message: str) -> FormatError:
    """The refusal of a sound file in a version or coding that no reader here knows."""
    return FormatError(message, reason="its version or coding is not read")


def _open_regular(path: str | PathLike[str], flags: int) -> int:
    # Without O_NONBLOCK a named pipe would wait for its writer for ever.
    fd = os.open(path, flags | os.O_NONBLOCK)
    try:
        _check(os.fstat(fd).st_mode, path)
    except BaseException:  # whatever it is, the file does not stay open
        os.close(fd)
        raise
    return fd


def _check(mode: int, path: str | PathLike[str]) -> None:
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise FormatError(
            f"{_name(path)}: got {kind}, allowed a file", reason="it is no regular file"
        )


def _name(path: str | PathLike[str]) -> str:
    return os.path.basename(os.fspath(path))
