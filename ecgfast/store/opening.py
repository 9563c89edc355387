"""Opening the files of a store: regular ones alone, without waiting, of the size that is known."""

import errno
import os
import stat
from pathlib import Path

from ecgfast.errors import CorruptStoreError

_NO_FILE = (errno.ENXIO, errno.ENODEV, errno.ELOOP)  # a socket, a device, a link to itself


def open_regular(path: Path) -> int:
    """Open a file for reading and return its descriptor.

    Raises:
        CorruptStoreError: it is missing, or a pipe, a socket, a device or a folder.
        OSError: the share fails.
    """
    try:
        # Without O_NONBLOCK a named pipe would wait for its writer for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptStoreError(f"{path} is missing; the store is damaged") from error
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        raise _no_file(path) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _no_file(path)
    return fd


def read_file(path: Path, num_bytes: int, *, exactly: bool = True) -> bytes:
    """Read a whole file; its size is compared first, as it need not fit into the memory.

    Args:
        path: of the file.
        num_bytes: that it must have.
        exactly: it may also have fewer.
    Raises:
        CorruptStoreError: it is no regular file, or has another size.
    """
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > num_bytes or (exactly and size < num_bytes):
            allowed = f"{num_bytes:,}" if exactly else f"at most {num_bytes:,}"
            raise CorruptStoreError(
                f"{path} has {size:,} bytes, expected {allowed}; the store is damaged, restore it "
                "from a copy or convert again"
            )
        return file.read()


def _no_file(path: Path) -> CorruptStoreError:
    return CorruptStoreError(f"{path} is no regular file; the store is damaged")
