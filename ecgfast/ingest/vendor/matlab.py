"""Format MATLAB 4 and 5 (.mat): one array of a record, with a sidecar.

    ecg.mat    a matrix (12, T) or (T, 12), named or a field of a struct: val, ECG.data
    ecg.json   the sidecar (`sidecar`)

The signal files of the PhysioNet challenges are MATLAB 4; beside their .hea, WFDB reads them.
Source: The MathWorks, "MAT-File Format".
"""

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import check_values, cut_short, too_large
from ecgfast.ingest.format import Format
from ecgfast.ingest.sidecar import read_sidecar, record_of
from ecgfast.ingest.vendor.binary import limits_of_damage, read_whole
from ecgfast.records import EcgRecord

_MAX_BYTES = 1 << 28  # packed, and unpacked
_MAX_ARRAYS = 1000
_TEXT, _ENDIAN, _START = b"MATLAB 5.0 MAT-file", slice(126, 128), 128
_ORDERS = {b"IM": "<", b"MI": ">"}
_MATRIX, _COMPRESSED, _STRUCT = 14, 15, 2
_NUMERIC = range(6, 16)  # classes
_DTYPES = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4"},
    **{7: "f4", 9: "f8", 12: "i8", 13: "u8"},
}
_HEADER_4 = struct.Struct("<5i")  # type, rows, columns, imaginary, bytes of the name
_DTYPES_4 = {0: "<f8", 10: "<f4", 20: "<i4", 30: "<i2", 40: "<u2", 50: "u1"}
_LONGEST_NAME = 64


class _Array(NamedTuple):
    """A matrix: its name, sides, and the bytes and type of its numbers, column by column."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    content: bytes


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read the ECG of a MATLAB file.

    Args:
        path: of the file.
        record_id: of the record.
        row: None.
    Returns:
        int16 ADC units where the matrix holds integers that fit, also where MATLAB calls them
        double and stores integers; else float32 microvolt.
    Raises:
        FormatError: the file is damaged, names no matrix, or matrix and sidecar are no ECG.
        OSError: it cannot be read.
    """
    meta = read_sidecar(path)
    content = read_whole(path, _MAX_BYTES)
    with limits_of_damage(path.name):
        found = list(_arrays_4(content) if _is_4(content) else _arrays_5(content, path.name))
        array = _values(_chosen(found, meta.get("array"), path.name), path.name)
    return record_of(array, meta, name=path.name, record_id=record_id, code="matlab")


def _chosen(arrays: list[_Array], wanted: object, name: str) -> _Array:
    """Return the matrix that the sidecar names, else the only one that is no vector or number."""
    found = [
        each
        for each in arrays
        if len(each.shape) == 2 and (each.name == wanted if wanted else min(each.shape) > 1)
    ]
    if len(found) != 1:
        raise FormatError(
            f"{name}: got {len(found)} matrices of numbers, allowed 1; name it in the sidecar: "
            '{"array": "val", ...}',
            reason="the array has another shape or type",
        )
    return found[0]


def _values(array: _Array, name: str) -> NDArray[Any]:
    dtype = np.dtype(array.dtype)
    check_values(math.prod(array.shape), 1, name)
    num_bytes = math.prod(array.shape) * dtype.itemsize
    if len(array.content) < num_bytes:
        raise cut_short(f"{name}: holds {len(array.content)} bytes of a matrix of {num_bytes}")
    values = np.frombuffer(array.content[:num_bytes], dtype)
    return values.astype(dtype.newbyteorder("="), copy=False).reshape(array.shape, order="F")


def _is_4(head: bytes) -> bool:
    """Whether the first bytes are a plausible header of MATLAB 4, which has no signature."""
    if len(head) < _HEADER_4.size:
        return False
    kind, rows, columns, imaginary, length = _HEADER_4.unpack_from(head)
    name = head[_HEADER_4.size :][: max(length, 0)]
    plausible = kind in _DTYPES_4 and rows > 0 and columns > 0 and imaginary == 0
    is_name = (
        name[:-1].replace(b"_", b"").isalnum() and name.endswith(b"\0") and len(name) == length
    )
    return plausible and 1 < length <= _LONGEST_NAME and is_name


def _arrays_4(content: bytes) -> Iterator[_Array]:
    at = 0
    for _ in range(_MAX_ARRAYS):
        if not _is_4(content[at : at + _HEADER_4.size + _LONGEST_NAME]):
            return
        kind, rows, columns, _, length = _HEADER_4.unpack_from(content, at)
        at += _HEADER_4.size
        name, start = content[at : at + length - 1].decode("ascii"), at + length
        at = start + rows * columns * np.dtype(_DTYPES_4[kind]).itemsize
        yield _Array(name, (rows, columns), _DTYPES_4[kind], content[start:at])


def _arrays_5(content: bytes, source: str) -> Iterator[_Array]:
    """Yield the matrices of a file, of which no more is unpacked than a record may have."""
    order = _ORDERS[content[_ENDIAN]]
    left = _MAX_BYTES
    for number, (kind, part) in enumerate(_elements(content[_START:], order, source)):
        if number == _MAX_ARRAYS:
            raise too_large(f"{source}: got over {_MAX_ARRAYS:,} arrays, allowed {_MAX_ARRAYS:,}")
        element = part
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(part, left)
            left -= len(unpacked)
            if left <= 0:
                raise too_large(f"{source}: unpacks to over {_MAX_BYTES:,} bytes, allowed as many")
            kind, element = next(_elements(unpacked, order, source))
        if kind == _MATRIX:
            yield from _matrix(element, order, source, "")


def _elements(content: bytes, order: str, source: str) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each element; small ones have four bytes within their tag."""
    at = 0
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        start = at + 8
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        if start + size > len(content):
            raise cut_short(f"{source}: ends within an array; the copy is cut short")
        yield kind, content[start : start + size]
        packed = kind == _COMPRESSED  # is not filled up to 8 bytes
        at = start + size if packed else max(at + 8, start + size + -(start + size) % 8)


def _matrix(content: bytes, order: str, source: str, outer: str) -> Iterator[_Array]:
    """Yield a matrix of real numbers, or those of a struct's fields."""
    elements = _elements(content, order, source)
    (_, flags), (_, sides), (_, name), *rest = islice(elements, 5)
    kind = struct.unpack(f"{order}I", flags[:4])[0] & 0xFF
    whole_name = outer + name.decode("ascii", errors="replace")
    if kind in _NUMERIC and rest and rest[0][0] in _DTYPES:
        shape = tuple(np.frombuffer(sides, f"{order}i4").tolist())
        if min(shape, default=-1) >= 0:
            yield _Array(whole_name, shape, order + _DTYPES[rest[0][0]], rest[0][1])
    elif kind == _STRUCT and not outer and len(rest) > 1:
        (_, length), (_, names) = rest
        width = struct.unpack(f"{order}i", length[:4])[0]
        count = min(len(names) // max(width, 1), _MAX_ARRAYS)
        for number, (_, field) in enumerate(islice(elements, count)):
            text = names[number * width : (number + 1) * width].split(b"\0")[0]
            inner = text.decode("ascii", errors="replace")
            yield from _matrix(field, order, source, f"{whole_name}.{inner}")


def _is_matlab(head: bytes) -> bool:
    return (head.startswith(_TEXT) and head[_ENDIAN] in _ORDERS) or _is_4(head)


FORMAT = Format(
    name="MATLAB 4 and 5 (.mat with .json)",
    tried=True,
    keeps="numbers; of the sidecar what NumPy arrays keep",
    recognises=lambda head: _is_matlab(head.content),
    read=read,
    has_sidecar=True,
)
