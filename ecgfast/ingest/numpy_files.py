"""Bytes of .npy and .npz -> arrays: every size is checked before anything is read or unpacked."""

import io
import math
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import (
    MAX_BYTES,
    MAX_TEXT_BYTES,
    check_values,
    cut_short,
    is_of_one_file,
    open_regular,
    too_large,
)
from ecgfast.ingest.sidecar import not_allowed

_HEAD_BYTES = 1 << 14  # NumPy reads headers of up to 10,000 bytes
_LARGEST_SIDE = 1 << 62
_FEWEST_VALUES = 50  # in a row that counts as a record: a tiny row names millions of records
_MAX_MEMBERS = 1000
_MEMBER = b"PK\x01\x02"  # the signature of each entry of a .zip's directory


class _Header(NamedTuple):
    """Of a .npy: what its array is, and at which byte it begins."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def batch_size(path: Path) -> int | None:
    """Return the number of records in a batch .npy, or None for a file that counts as one record.

    A file whose header cannot be read, or whose rows are no records, counts as one, so that reading
    it says why; one that was cut short counts its whole records and one more, for the same reason.

    Args:
        path: the .npy file; only its header is read.
    Raises:
        OSError: the share fails.
    """
    try:
        with open_regular(path) as file:
            header = _parsed(file.read(_HEAD_BYTES), path.name)
            held = os.fstat(file.fileno()).st_size - header.start
    except FormatError:
        return None
    except OSError as error:
        if is_of_one_file(error):
            return None
        raise
    if not _is_batch(header):
        return None
    return min(header.shape[0], held // (header.num_bytes // header.shape[0]) + 1)


def read_npy(path: Path, row: int | None) -> NDArray[Any]:
    """Read a whole .npy, or only the bytes of one row of a batch.

    Args:
        path: of the file.
        row: position in a batch, None for a file of one record.
    Raises:
        FormatError: it is no array, it is cut short, or the array is too large.
    """
    name = path.name
    with open_regular(path) as file:
        shape, fortran, dtype, start = header = _parsed(file.read(_HEAD_BYTES), name)
        held = os.fstat(file.fileno()).st_size - start
        if row is None or fortran:
            _check_held(header, held, name)
            file.seek(start)
            whole = _array(file.read(header.num_bytes), header, name)
            return whole if row is None else whole[row]
        part = _Header(shape[1:], False, dtype, start)
        _check_values(part, name)
        file.seek(start + row * part.num_bytes)
        content = file.read(part.num_bytes)
    if len(content) < part.num_bytes:
        raise cut_short(f"{name}: ends before record {row} of {shape[0]}; the copy is cut short")
    return _array(content, part, name)


def read_npz(path: Path) -> dict[str, Any]:
    """Return the arrays of a .npz: "signal" as it is, all others as Python values.

    Args:
        path: of the file.
    Raises:
        FormatError: it is no archive of arrays, or one of them is too large.
    """
    name = path.name
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        _check_bytes(size, name)
        content = file.read(size)  # from here on, no error is the share's
    if content.count(_MEMBER) > _MAX_MEMBERS:  # before the directory becomes objects
        raise too_large(f"{name}: got over {_MAX_MEMBERS:,} arrays, allowed {_MAX_MEMBERS:,}")
    meta: dict[str, Any] = {}
    left = MAX_TEXT_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for key, member in _members(archive, name).items():
                meta[key], used = _read_member(archive, member, key, left, name)
                left -= used
    except FormatError:
        raise
    except Exception as error:  # zipfile and zlib have a dozen classes for damage
        raise _damaged(f"{name}: not a NumPy archive: {_one_line(error)}") from error
    if "signal" not in meta:
        raise FormatError(
            f"{name}: got arrays {sorted(meta)}, one must be named 'signal'",
            reason="the array has another shape or type",
        )
    return meta


def _members(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    """Return the arrays of an archive; what it declares of their sizes is checked here."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        key, suffix = os.path.splitext(member.filename)
        if suffix != ".npy":
            continue
        if key in members:
            raise _damaged(
                f"{name}: array {key!r:.80} occurs twice, allowed once; write the file again"
            )
        members[key] = member
    beside = sum(member.file_size for key, member in members.items() if key != "signal")
    if beside > MAX_TEXT_BYTES:
        raise _too_long(f"{beside:,} bytes", name)
    return members


def _too_long(got: str, name: str) -> FormatError:
    return too_large(
        f"{name}: got {got} beside the signal, allowed {MAX_TEXT_BYTES >> 20} MiB in all arrays "
        "together; leave some out"
    )


def _damaged(message: str) -> FormatError:
    return FormatError(message, reason="the file is damaged")


def _read_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, key: str, left: int, name: str
) -> tuple[Any, int]:
    """Read the array `key`, of which no more is unpacked than the archive and its header declare.

    Returns:
        the signal as an array, others as Python values; the bytes that it takes of `left`, the
        rest of `MAX_TEXT_BYTES`.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _damaged(f"{name}: array {key!r} is packed in a way that NumPy does not write")
    with archive.open(member) as file:
        head = file.read(_HEAD_BYTES)
        header = _parsed(head, name)
        _check_held(header, member.file_size - header.start, name)
        used = 0 if key == "signal" else _check_label(header, key, left, name)
        rest = header.start + header.num_bytes - len(head)
        content = head[header.start :] + file.read(max(rest, 0))
    array = _array(content[: header.num_bytes], header, name)
    return (array if key == "signal" else array.tolist()), used


def _parsed(head: bytes, name: str) -> _Header:
    """Parse the first bytes of a .npy: a header that promises gigabytes of itself is cut here."""
    if not head:
        raise _damaged(f"{name}: is empty, allowed a NumPy array file; copy it again")
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        reader = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        with warnings.catch_warnings(action="ignore"):  # of Python 2's headers, on stderr
            shape, fortran, dtype = reader(file)
        if not all(type(side) is int and 0 <= side < _LARGEST_SIDE for side in shape):
            raise ValueError("a side of the array is negative, or no number")
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are never loaded")
    except Exception as error:  # the header is a Python literal: damage can raise anything
        raise _damaged(f"{name}: not a NumPy array file: {_one_line(error)}") from error
    if len(shape) == 4 and shape[1] == 1:  # a batch of pictures of one channel, as EchoNext has it
        shape = (shape[0], *shape[2:])
    return _Header(shape, fortran, dtype, file.tell())


def _is_batch(header: _Header) -> bool:
    return (
        len(header.shape) == 3
        and header.shape[0] > 0
        and header.dtype.itemsize > 0
        and math.prod(header.shape[1:]) >= _FEWEST_VALUES
    )


def _check_values(header: _Header, name: str) -> None:
    *signals, timesteps = header.shape or (1,)
    check_values(timesteps, math.prod(signals), name)
    _check_bytes(header.num_bytes, name)  # numbers have up to 16 bytes, texts any number


def _check_bytes(num_bytes: int, name: str) -> None:
    if num_bytes > MAX_BYTES:
        raise too_large(f"{name}: got {num_bytes:,} bytes, allowed {MAX_BYTES:,}")


def _check_held(header: _Header, held: int, name: str) -> None:
    """Refuse an array that its file cannot hold, or that is too large."""
    if held < header.num_bytes:
        raise _too_few(header, max(held, 0), name)
    _check_values(header, name)


def _check_label(header: _Header, key: str, left: int, name: str) -> int:
    """Refuse an array beside the signal that is no number, text or short list; return its size."""
    if header.dtype.kind not in "biufU":
        raise not_allowed(
            name,
            f"array {key!r} holds {header.dtype}, allowed numbers and text; leave it out, or write "
            "it as text",
        )
    count = math.prod(max(side, 1) for side in header.shape)  # empty lists take memory too
    if max(count, header.num_bytes) > left:
        raise _too_long(f"array {key!r:.80} of shape {header.shape}", name)
    return max(count, header.num_bytes)


def _array(content: bytes, header: _Header, name: str) -> NDArray[Any]:
    shape, fortran, dtype, _ = header
    if len(content) < header.num_bytes or dtype.itemsize == 0:
        raise _too_few(header, len(content), name)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _too_few(header: _Header, held: int, name: str) -> FormatError:
    return cut_short(
        f"{name}: not a NumPy array file of shape {header.shape}: it holds {held} bytes of "
        f"{header.num_bytes}; the copy is cut short"
    )


def _one_line(error: Exception) -> str:
    """Return an error of a library as one line."""
    return " ".join(str(error).split()) or type(error).__name__
