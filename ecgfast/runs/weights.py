"""Weights as files: safetensors out; safetensors and .pth in."""

import json
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from hashlib import file_digest, sha256
from io import BufferedReader
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from ecgfast.config import Config, config_to_toml
from ecgfast.errors import FormatError
from ecgfast.store.durable import RESUME, write_durably

# Keys in the header.
CONFIG, DIGEST = "config", "file_sha256"
OLD_DIGEST = "sha256"  # of the tensors alone, as earlier versions wrote it
_UNREADABLE = (
    *(SafetensorError, RuntimeError, OSError, ValueError, EOFError, LookupError),
    *(zipfile.BadZipFile, zlib.error),
)
_ZEROS = "0" * 64  # stand for the digest where it is computed


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
    digest = sha256(header)
    digest.update(plain[start:])
    header = header.replace(_entry(_ZEROS), _entry(digest.hexdigest()))
    write_durably(path, [header, plain[start:]], again=RESUME)


def _start(file: bytes | memoryview) -> int:
    """Where the tensors begin in a safetensors file: behind 8 bytes and a header of that length."""
    return 8 + int.from_bytes(file[:8], "little")


def _entry(digest: str) -> bytes:
    """The digest as it stands in a header."""
    return f'"{DIGEST}": "{digest}"'.encode()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        try:
            name = str(path)
            name.encode()
        except UnicodeEncodeError:  # the library opens no other names
            name = f"/dev/fd/{file.fileno()}"
        with safe_open(name, framework="pt") as opened:
            facts = opened.metadata() or {}  # others' files have none
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
        header = file.read(start).replace(_entry(facts[DIGEST]), _entry(_ZEROS))
        digest = sha256(header)
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest() != facts[DIGEST]
    if OLD_DIGEST in facts:
        file.seek(start)
        return file_digest(file, "sha256").hexdigest() != facts[OLD_DIGEST]
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
