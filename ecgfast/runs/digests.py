"""Files of a run with digests: what it says about itself, as JSON, and its weights.

A digest reveals damage and files that were mixed up. It is no signature: who can write the
folder can write the digest too.
"""

import argparse
import hashlib
import json
import os
import pickle
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from ecgfast.config import Config, config_to_toml
from ecgfast.errors import EcgfastError, FormatError, ResumeError
from ecgfast.store.durable import RESUME, write_durably

FORMAT = 3  # of checkpoints and results; those of format 2 have no digests
RUN_FILES = "run_files"  # key of their entries
METRICS = "metrics.jsonl"
_LARGEST = 64 << 20  # bytes; a run has some thousand to say
_BLOCK = 1 << 20  # bytes read at once
_ENTRY = {"bytes": int, "sha256": str}

# Of weights: keys in the header of a safetensors file, and what stands for the digest while it is
# computed.
CONFIG, DIGEST = "config", "file_sha256"
OLD_DIGEST = "sha256"  # of the tensors alone, as earlier versions wrote it
_ZEROS = "0" * 64
_UNREADABLE = (
    *(SafetensorError, RuntimeError, OSError, ValueError, EOFError, LookupError),
    *(zipfile.BadZipFile, zlib.error),
)

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


def _digest(file: BinaryIO, num_bytes: int) -> str:
    """Digest of the first bytes of a file."""
    digest, left = hashlib.sha256(), num_bytes
    while left > 0 and (block := file.read(min(left, _BLOCK))):
        digest.update(block)
        left -= len(block)
    return digest.hexdigest()


def _text(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, indent=1).encode()


def export_safetensors(state: Mapping[str, Tensor], path: Path, config: Config) -> None:
    """Write weights under the reference names; header: settings, and a digest of the file."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    plain = memoryview(save(tensors))
    start = _start(plain)
    facts = {CONFIG: config_to_toml(config), DIGEST: _ZEROS}
    # safetensors itself writes the facts in another order each time: the same run, other bytes
    header = json.dumps({"__metadata__": facts, **json.loads(bytes(plain[8:start]))}).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8
    header = len(header).to_bytes(8, "little") + header
    digest = hashlib.sha256(header)
    digest.update(plain[start:])
    header = header.replace(_digest_entry(_ZEROS), _digest_entry(digest.hexdigest()))
    write_durably(path, [header, plain[start:]], again=RESUME)


def _start(file: bytes | memoryview) -> int:
    """Where the tensors begin in a safetensors file: behind 8 bytes and a header of that length."""
    return 8 + int.from_bytes(file[:8], "little")


def _digest_entry(digest: str) -> bytes:
    """The digest as it stands in a header."""
    return f'"{DIGEST}": "{digest}"'.encode()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        try:
            name = str(path)
            name.encode()
        except UnicodeEncodeError:  # the library opens no other names
            name = f"/dev/fd/{file.fileno()}"
        with safe_open(name, framework="pt") as tensors:
            facts = tensors.metadata() or {}  # others' files have none
        if _is_damaged(file, facts):
            raise FormatError(
                f"weights {path} are damaged: their digest is wrong; restore them from a copy"
            )
        return load_file(name)


def _is_damaged(file: BufferedReader, facts: Mapping[str, str]) -> bool:
    """Compare a file with the digest in its header, of which the header itself is a part."""
    start = _start(file.read(8))
    if DIGEST in facts:
        file.seek(0)
        header = file.read(start).replace(_digest_entry(facts[DIGEST]), _digest_entry(_ZEROS))
        digest = hashlib.sha256(header)
        while block := file.read(_BLOCK):
            digest.update(block)
        return digest.hexdigest() != facts[DIGEST]
    if OLD_DIGEST in facts:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest() != facts[OLD_DIGEST]
    return CONFIG in facts and len(facts) > 1  # the name of the digest itself was hit


def _check_archive(path: Path) -> None:
    """Compare the checksums of a .pth, which PyTorch writes and does not read.

    Raises:
        FormatError: one differs.
    """
    with path.open("rb") as file:  # a file of before PyTorch 1.6 is no archive, and has none
        if file.read(4) != b"PK\x03\x04":
            return
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    if damaged is not None:
        raise FormatError(
            f"weights {path} are damaged: the checksum of {damaged!r:.80} is wrong; restore them "
            "from a copy"
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, or from ``.pth`` without running its code.

    Raises:
        FormatError: neither format, or damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        _check_archive(path)
        # checkpoints of the reference keep their options: a class of names and values, no code
        with torch.serialization.safe_globals([argparse.Namespace]):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except FormatError:
        raise
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"weights {path} cannot be read: the file is damaged, or holds code besides tensors, "
            "which is never run; give a .safetensors file, or a .pth state dict"
        ) from error
    except _UNREADABLE as error:
        raise FormatError(
            f"weights {path} cannot be read: {str(error).splitlines()[0]}; give a .safetensors "
            "file, or a .pth state dict"
        ) from error
    # the reference implementation wraps its state dict in {"model": ...}
    state = tree.get("model", tree) if isinstance(tree, dict) else {}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise FormatError(f"weights {path} hold no tensors; give a state dict")
    return tensors
