"""What a run says about itself, as JSON with a digest of itself and of the run's files.

A digest reveals damage and files that were mixed up. It is no signature: who can write the
folder can write the digest too.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ecgfast.errors import EcgfastError, ResumeError

FORMAT = 3  # of checkpoints and results; those of format 2 have no digests
RUN_FILES = "run_files"  # key of their entries
METRICS = "metrics.jsonl"
_LARGEST = 64 << 20  # bytes; a run has some thousand to say
_BLOCK = 1 << 20  # bytes read at once

Facts = dict[str, Any]


class LaterFormatError(ResumeError):
    """A later version wrote the run."""


def sealed(facts: Mapping[str, Any]) -> bytes:
    """Render facts as JSON, with their format and the digest of all of it."""
    body = {**facts, "format": FORMAT}
    return _text({**body, "digest": hashlib.sha256(_text(body)).hexdigest()})


def is_sealed(facts: Facts) -> bool:
    """Whether facts have a digest; those of format 2 have none."""
    return bool({"digest", RUN_FILES} & facts.keys()) or facts.get("format") == FORMAT


def read_facts(path: Path) -> Facts:
    """Read what `sealed` made, or facts of format 2, whose truth nothing shows.

    Raises:
        LaterFormatError: a later version wrote it.
        ResumeError: the file is missing or damaged.
    """
    data = read_small(path)
    try:
        facts: Facts = json.loads(data)
        found = facts.get("format", FORMAT)
        if type(found) is int and found > FORMAT:
            raise LaterFormatError(
                f"{path.parent} has format {found}, this ecgfast reads {FORMAT}; resume with the "
                "version that wrote it (see versions.json)"
            )
        body = {key: value for key, value in facts.items() if key != "digest"}
        whole = not is_sealed(facts) or sealed(body) == data
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        raise ResumeError(f"{path} is damaged: it is no JSON of ours") from error
    if not whole:
        raise ResumeError(f"{path} is damaged: its digest is wrong")
    return facts


def entries(folder: Path, names: Iterable[str]) -> dict[str, Facts]:
    """Size and SHA-256 of those files of a folder that exist, for `problem` to compare."""
    found = {}
    for name in names:
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                found[name] = {"bytes": file.tell(), "sha256": digest}
    return found


def problem(folder: Path, name: str, entry: object, *, grows: bool = False) -> str | None:
    """Say in what a file differs from its entry; None where it is what was written.

    Args:
        folder: of the file.
        name: of the file.
        entry: from `entries`, of this moment or of long ago.
        grows: more may have been written behind it since.
    Raises:
        EcgfastError: memory ran out.
    """
    if not isinstance(entry, dict) or {k: type(v) for k, v in entry.items()} != _ENTRY:
        return f"the size and digest of {name} are missing"
    if Path(name).name != name:
        return f"{name!r:.80} is no name of a file"
    try:
        with opened(folder / name) as file:
            size, expected = os.fstat(file.fileno()).st_size, entry["bytes"]
            if size != expected and not (grows and size > expected):
                return f"{name} has {size} bytes, expected {expected}"
            if _digest(file, expected) != entry["sha256"]:
                return f"{name} is not what was written: its digest is wrong"
    except ResumeError as error:
        return str(error)
    return None


def read_small(path: Path) -> bytes:
    """Read a whole file of at most 64 MB.

    Raises:
        ResumeError: it is missing, larger, or cannot be read.
    """
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size > _LARGEST:
            raise ResumeError(f"{path} is damaged: it is larger than any file of its kind")
        return file.read()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, one that can be read to its end: no pipe, folder or device.

    Raises:
        ResumeError: it is none, or reading fails.
        EcgfastError: memory ran out while it was read.
    """
    try:
        # without waiting: a pipe that nobody writes to would block for ever
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ResumeError(f"{path} is no regular file")
            yield file
    except OSError as error:
        raise ResumeError(f"{path} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise EcgfastError(f"memory ran out while reading {path}; close other programs") from error


_ENTRY = {"bytes": int, "sha256": str}


def _digest(file: BinaryIO, num_bytes: int) -> str:
    """Digest of the first bytes of a file."""
    digest, left = hashlib.sha256(), num_bytes
    while left > 0 and (block := file.read(min(left, _BLOCK))):
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


def _text(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, indent=1).encode()
