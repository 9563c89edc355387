"""Files that survive a power cut: whole or not at all, and errors that say what to do."""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ecgfast.errors import BusyError, ConfigError, EcgfastError
from ecgfast.store.format import address_of, beside

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
RERUN = "run the same command again"
RESUME = "run the same command with --resume"  # for what belongs to a training run
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}  # Lustre without -o flock, some NFS


class DurableFile:
    """A file on its way: written under a temporary name, and whole when it gets its own.

    An error leaves nothing of it behind; who stops without one calls `discard`.

    Args:
        path: the file; its folder exists.
        mode: permission bits.
        again: how to go on after a full disk.
        shared: others may be writing the same bytes at the same time, under names of their own.
    Raises:
        EcgfastError: here and in every method, the disk is full or not writable.
    """

    def __init__(
        self, path: Path, *, mode: int = 0o644, again: str = RERUN, shared: bool = False
    ) -> None:
        self._again = again
        own = f".{secrets.token_hex(6)}" if shared else ""
        self._path, self._temporary = path, path.with_name(f".{path.name}{own}.tmp")
        self._digest, self._size = hashlib.sha256(), 0
        # Never into what somebody else put there: a link would lead to a file of the user's, and
        # an open file would show a key.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with explained(path, again=again):
            self._temporary.unlink(missing_ok=True)  # left by a killed run
            self._file = open(os.open(self._temporary, flags, mode), "wb")  # noqa: SIM115 (`finish`)

    def write(self, parts: Iterable[bytes | memoryview]) -> None:
        """Add to the file; the parts may change when this returns."""
        with self._whole():
            for part in parts:
                self._file.write(part)
                self._digest.update(part)
                self._size += len(part)

    def finish(self) -> dict[str, int | str]:
        """Fsync the file, rename it, fsync its folder.

        Returns:
            its entry in the manifest: {"bytes": size, "sha256": hex digest}.
        """
        with self._whole():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self._path)
            sync_folder(self._path.parent)
        return {"bytes": self._size, "sha256": self._digest.hexdigest()}

    def discard(self) -> None:
        """Leave nothing behind of a file that will not be finished."""
        with contextlib.suppress(OSError):  # what it still holds back may not fit on the disk
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            with explained(self._path, again=self._again):
                yield
        except BaseException:  # Ctrl-C too: half a file would take its place on the disk for ever
            self.discard()
            raise


def write_durably(
    path: Path,
    parts: Iterable[bytes | memoryview],
    *,
    mode: int = 0o644,
    again: str = RERUN,
    shared: bool = False,
) -> dict[str, int | str]:
    """Write a file whole or not at all, to survive a power cut.

    Args:
        path: the file; its folder exists.
        parts: its content.
        mode: permission bits.
        again: how to go on after a full disk.
        shared: others may be writing the same bytes at the same time.
    Returns:
        its entry in the manifest: {"bytes": size, "sha256": hex digest}.
    Raises:
        EcgfastError: the disk is full or not writable.
    """
    file = DurableFile(path, mode=mode, again=again, shared=shared)
    file.write(parts)
    return file.finish()


def writable_folder(folder: Path) -> None:
    """Make a folder, and refuse one that takes no files: now, not after hours of work.

    Raises:
        EcgfastError: the disk is full or not writable.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def explained(path: Path, *, again: str = RERUN) -> Iterator[None]:
    """Turn a full or read-only disk into one clear error; other OSErrors pass.

    Args:
        path: what is being written.
        again: how to go on when there is space.
    """
    try:
        yield
    except OSError as error:
        told = explain(error, path, again=again)
        if told is None:
            raise
        raise told from error


def explain(error: OSError, path: Path, *, again: str) -> EcgfastError | None:
    """Say what a full or read-only disk means for the user; None for any other error."""
    if error.errno in _FULL:
        return EcgfastError(
            f"disk full while writing {path}: free some space and {again}, it resumes where it "
            "stopped"
        )
    if error.errno in _FORBIDDEN:
        return EcgfastError(
            f"cannot write {path}: {error.strerror}; choose a place that this user may write to"
        )
    return None


def store_lock(store: Path) -> AbstractContextManager[None]:
    """Hold the one writer's lock of a store, beside it, whatever links lead there.

    Raises:
        ConfigError: the store has an address.
        BusyError: another process holds it.
    """
    if url := address_of(store):
        raise ConfigError(
            f"{url} can be changed in a folder only; copy it with ecgfast fetch, change the copy, "
            "and put it there with any tool"
        )
    return exclusive(beside(store.resolve(), ".lock"), store)


@contextmanager
def exclusive(lock: Path, what: Path) -> Iterator[None]:
    """Be the only process that writes something; the lock ends with it, however it dies.

    Args:
        lock: a file that exists while it is held; its folder is created.
        what: the folder that it stands for, for the message.
    Raises:
        BusyError: another process holds it.
    """
    with explained(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        fd = _locked(lock)
    if fd is None:
        raise BusyError(
            f"{what} is being written by another process; wait until it ends, then run again"
        )
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(fd)


def _locked(path: Path) -> int | None:
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise EcgfastError(f"lock {path} is a link, allowed a file; remove it") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            from ecgfast import log  # with it comes rich, which no worker needs

            log.warning(
                f"{path.parent} knows no file locks ({error.strerror}): see to it that no other "
                "process writes there"
            )
            return fd
        # The holder before us may have unlinked the file between our open and our lock.
        if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
            return fd
        os.close(fd)
