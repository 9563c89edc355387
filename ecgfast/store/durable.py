"""Files that survive a power cut: whole or not at all, and errors that say what to do."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ecgfast.errors import EcgfastError
from ecgfast.store.format import beside

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_durably(path: Path, parts: Iterable[bytes], *, mode: int = 0o644) -> dict[str, int | str]:
    """Write a file to a temporary name, fsync it, rename it, fsync its folder.

    Args:
        path: the file; its folder exists.
        parts: its content.
        mode: permission bits.
    Returns:
        its entry in the manifest: {"bytes": size, "sha256": hex digest}.
    Raises:
        EcgfastError: the disk is full or not writable.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    digest, size = hashlib.sha256(), 0
    with explained(path):
        try:
            with open(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb"
            ) as file:
                for part in parts:
                    file.write(part)
                    digest.update(part)
                    size += len(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return {"bytes": size, "sha256": digest.hexdigest()}


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one clear error; other OSErrors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise EcgfastError(
                f"disk full while writing {path}: free some space and run the same command again, "
                "it goes on where it stopped"
            ) from error
        if error.errno in _FORBIDDEN:
            raise EcgfastError(
                f"cannot write {path}: {error.strerror}; choose a place that this user may write to"
            ) from error
        raise


@contextmanager
def store_lock(store: Path) -> Iterator[None]:
    """Hold the one writer's lock of a store; it ends with the process, however that dies.

    Raises:
        EcgfastError: another process holds it.
    """
    path = beside(store, ".lock")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = _locked(path)
    if fd is None:
        raise EcgfastError(
            f"{store} is being written by another process; wait until it ends, then run again"
        )
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _locked(path: Path) -> int | None:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        # The holder before us may have unlinked the file between our open and our lock.
        if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
            return fd
        os.close(fd)
