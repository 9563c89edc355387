"""The manifest: what a finished store holds, with size and digest of its tables and of itself.

Here also: opening files of a store, regular ones alone, and reading them if they have that size.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ecgfast.errors import CorruptStoreError, FormatError
from ecgfast.store.durable import write_durably
from ecgfast.store.format import (
    CODECS,
    ERASING,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    QUARANTINE,
    RECORDS,
    SHARD_RECORDS,
    SHARDS,
    SIGNALS,
    num_shards,
    shard_files,
)
from ecgfast.store.objects import at, exists, size_of

Manifest = dict[str, Any]

_NEEDED = {
    **{"num_records": int, "codec": str, "identity": str},
    **{"files": dict, "preprocessing": dict, "key_fingerprint": str},
    **{"counts": dict, "synthetic": bool, "identifiers": str, "request": str},
}
_ENTRY = {"bytes": int, "sha256": str}
_COUNTS = {"inputs": int, "converted": int, "quarantined": int}
_LATER: dict[str, tuple[type, ...]] = {  # of entries that stores of earlier versions lack
    **{"labels": (dict, type(None)), "source_files": (int,), "quality": (str,)},
    **dict.fromkeys(("passed_over", "left_out", "patients", "splits", "retained"), (dict,)),
    **{"generation": (int,), "history": (list,), "columns": (list,)},
}
_GENERATION = {  # an entry of the history
    **{"generation": int, "identity": str, "num_records": int, "num_slots": int},
    **{"counts": dict, "quarantine": dict},
}
_NO_FILE = (errno.ENXIO, errno.ENODEV, errno.ELOOP)  # a socket, a device, a link to itself
_LARGEST = 1 << 30  # bytes; 3 million shards of format 1 have as many


def write_manifest(store: Path, content: Manifest) -> Manifest:
    """Seal a store: add the digest, write the manifest atomically.

    Args:
        store: the folder, every other file written and synced.
        content: all entries except "format" and "digest", "version" too where the store is of
            another format than new ones; "files" maps each relative path to {"bytes", "sha256"}.
    """
    sealed = {"format": FORMAT, "version": FORMAT_VERSION, **content}
    sealed["digest"] = _digest(sealed)
    write_durably(store / MANIFEST, [_text(sealed)])
    return sealed


def read_manifest(store: Path, *, erasing: bool = False) -> Manifest:
    """Read and check the manifest of a finished store.

    Args:
        store: its folder.
        erasing: also while records are erased from it.
    Raises:
        FormatError: no store, or one of another version.
        CorruptStoreError: the store is unfinished or the manifest is damaged.
    """
    path = store / MANIFEST
    if not erasing and exists(store / ERASING):
        raise CorruptStoreError(
            f"{store}: records are being erased; wait for ecgfast erase, or if it was interrupted "
            f"run ecgfast erase {store} again, which finishes it"
        )
    if not exists(path):
        if (store / SIGNALS).exists():
            raise CorruptStoreError(
                f"{store} is an unfinished store: it has no {MANIFEST}; run the convert command "
                "that began it again, it resumes where it stopped"
            )
        raise FormatError(
            f"{store} is not a store: it has no {MANIFEST}; make one with ecgfast convert"
        )
    damaged = f"{path} is damaged: its digest is wrong; restore it from a copy or convert again"
    data = read_file(path, _LARGEST, exactly=False)
    try:
        manifest: Manifest = json.loads(data)
        # The raw text is compared, so that no byte of the file is outside the check.
        right = manifest["digest"] == _digest(manifest) and _text(manifest) == data
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CorruptStoreError(damaged) from error
    if not right or manifest.get("format") != FORMAT:
        raise CorruptStoreError(damaged)
    if manifest.get("version") not in (1, FORMAT_VERSION):
        raise FormatError(
            f"{store} has format version {manifest.get('version')}, this ecgfast reads 1 to "
            f"{FORMAT_VERSION}; update ecgfast or convert again"
        )
    problem = _problem(manifest)
    if problem is not None:
        raise CorruptStoreError(f"{path} is damaged: {problem}; restore it from a copy")
    return manifest


def _problem(manifest: Manifest) -> str | None:
    """Why nothing can be read by a manifest, though its digest is right; None: it can."""
    for key, kind in _NEEDED.items():
        if type(manifest.get(key)) is not kind:
            return f"{key!r} must be of type {kind.__name__}, got {manifest.get(key)!r:.40}"
    for key, kinds in _LATER.items():
        if key in manifest and type(manifest[key]) not in kinds:
            return f"{key!r} must be of type {kinds[0].__name__}, got {manifest[key]!r:.40}"
    if {k: type(v) for k, v in manifest["counts"].items() if k in _COUNTS} != _COUNTS:
        return f"'counts' must have {', '.join(_COUNTS)}, got {manifest['counts']!r:.60}"
    for key in ("passed_over", "left_out"):
        if any(type(count) is not int for count in manifest.get(key, {}).values()):
            return f"{key!r} must hold counts, got {manifest[key]!r:.60}"
    for each in manifest.get("history", []):
        if not isinstance(each, dict) or {k: type(v) for k, v in each.items()} != _GENERATION:
            return f"'history' must hold generations, got {each!r:.60}"
    if manifest["codec"] not in CODECS or manifest["num_records"] < 1:
        return f"codec {manifest['codec']!r:.40} with {manifest['num_records']} records"
    files = manifest["files"]
    if manifest["version"] == 1:  # it lists the files of every shard
        shards = range(num_shards(min(manifest["num_records"], len(files) * SHARD_RECORDS + 1)))
        signals = [name for shard in shards for name in shard_files(shard).values()]
    else:
        signals = [SHARDS]
        slots = manifest.get("num_slots")
        if type(slots) is not int or slots < manifest["num_records"]:
            return f"'num_slots' must be at least {manifest['num_records']}, got {slots!r:.40}"
    for name in (RECORDS, QUARANTINE, *signals):
        entry = files.get(name)
        if not isinstance(entry, dict) or {k: type(v) for k, v in entry.items()} != _ENTRY:
            return f"it has no size and digest of {name}"
    return None


def _text(manifest: Manifest) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"


def _digest(manifest: Manifest) -> str:
    body = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(_text(body)).hexdigest()


def identity_of(content: Manifest, shards: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """Digest of the signals alone: joining labels does not change what a model was trained on.

    Args:
        content: of the manifest.
        shards: name and entry of every file of the shards, in order.
    """
    files = hashlib.sha256()
    for name, entry in shards:
        files.update(f"{name} {entry['bytes']} {entry['sha256']}\n".encode())
    metadata = {name: entry for name, entry in content["files"].items() if name.startswith(SIGNALS)}
    kept = {key: content[key] for key in ("codec", "num_records", "num_slots", "preprocessing")}
    whole = {"version": FORMAT_VERSION, **kept, "files": metadata, "shards": files.hexdigest()}
    return hashlib.sha256(_text(whole)).hexdigest()


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


def read_file(path: Path, num_bytes: int, *, exactly: bool = True, or_more: bool = False) -> bytes:
    """Read a whole file; its size is compared first, as it need not fit into the memory.

    Args:
        path: of the file.
        num_bytes: that it must have.
        exactly: False: it may also have fewer.
        or_more: it may have more, which are not read.
    Raises:
        CorruptStoreError: it is no regular file, or has another size.
    """
    if there := at(path):
        objects, name = there
        size = size_of(path)
        if size is None:
            raise CorruptStoreError(f"{path} is missing; the store is damaged")
        _check_size(path, size, num_bytes, exactly=exactly, or_more=or_more)
        return objects.read(name)[:num_bytes]
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        _check_size(path, size, num_bytes, exactly=exactly, or_more=or_more)
        return file.read(min(size, num_bytes))  # not more: the buffer has that size at once


def _check_size(path: Path, size: int, num_bytes: int, *, exactly: bool, or_more: bool) -> None:
    """Refuse a file of another size; as `read_file`."""
    if (size > num_bytes and not or_more) or (exactly and size < num_bytes):
        allowed = f"{num_bytes:,}" if exactly else f"at most {num_bytes:,}"
        raise CorruptStoreError(
            f"{path} has {size:,} bytes, expected {allowed}; the store is damaged, restore it "
            "from a copy or convert again"
        )


def digest_of_file(path: Path) -> str:
    """The sha256 of a file's content, in hex."""
    if there := at(path):
        return there[0].sha256(there[1])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _no_file(path: Path) -> CorruptStoreError:
    return CorruptStoreError(f"{path} is no regular file; the store is damaged")
