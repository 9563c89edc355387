"""PyTorch's index of a checkpoint, ``.metadata``: which tensor lies where.

It is a pickle, and unpickling one calls what it names. Here its opcodes are read as data: nothing
is imported or called, and what does not look like an index of our tensors is refused.
"""

import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.distributed.checkpoint.filesystem import (
    FileSystemReader,
    _StorageInfo,  # what an index holds; it has no public name
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

T = TypeVar("T")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)
}
_LARGEST_SIZE = 1 << 48  # of a tensor in one direction


class IndexFormatError(ValueError):
    """An index says something that no index of ours does."""


class IndexedReader(FileSystemReader):
    """Reads tensors where an index says; PyTorch's own reader would unpickle it.

    Args:
        folder: of the checkpoint.
        index: from `read_index`.
    """

    def __init__(self, folder: str, index: Metadata) -> None:
        super().__init__(folder)
        self._index = index

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        """The index, whichever rank's is asked for."""
        del args, kwargs
        return self._index


def read_index(data: bytes, sizes: Mapping[str, int]) -> Metadata:
    """Read an index.

    Args:
        data: content of ``.metadata``.
        sizes: bytes of each file of the checkpoint.
    Raises:
        IndexFormatError: it is no index, or names something outside these files.
    """
    try:
        facts = _fields(_parse(data), "Metadata")
        return Metadata(
            state_dict_metadata={
                _typed(name, str): _tensor(tensor)
                for name, tensor in _pairs(facts["state_dict_metadata"])
            },
            storage_data={
                _place(key): _storage(value, sizes) for key, value in _pairs(facts["storage_data"])
            },
            storage_meta=StorageMeta(),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise IndexFormatError(f"its index is none of ours ({error!s:.80})") from error


@dataclass(frozen=True, eq=False)
class _Name:
    """A class or function that the pickle names."""

    module: str
    name: str


@dataclass(eq=False)
class _Made:
    """What would come of calling it, and the state that it would be given."""

    by: object
    arguments: object
    state: object = None


@dataclass(eq=False)
class _Dict:
    """Keys and values in their order: hashing nested keys could take for ever."""

    pairs: list[tuple[object, object]]


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {"SHORT_BINUNICODE", "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _parse(data: bytes) -> object:
    """Follow a pickle's opcodes, of those that an index needs, without doing what they say."""
    stack: list[Any] = []
    memo: list[Any] = []
    marks: list[int] = []

    def taken(count: int | None = None) -> list[Any]:
        """The last so many values, or all since the mark."""
        start = marks.pop() if count is None else len(stack) - count
        if start < 0 or start > len(stack):
            raise IndexFormatError("a value is missing")
        values = stack[start:]
        del stack[start:]
        return values

    for opcode, argument, _ in pickletools.genops(data):
        kind = opcode.name
        if kind in _LITERALS:
            stack.append(argument)
        elif kind in _CONSTANTS:
            stack.append(_CONSTANTS[kind])
        elif kind == "MEMOIZE":
            memo.append(stack[-1])
        elif kind in ("BINGET", "LONG_BINGET"):
            stack.append(memo[_typed(argument, int)])
        elif kind == "MARK":
            marks.append(len(stack))
        elif kind in _TUPLES:
            stack.append(tuple(taken(_TUPLES[kind])))
        elif kind in ("TUPLE", "EMPTY_TUPLE"):
            stack.append(tuple(taken(0 if kind == "EMPTY_TUPLE" else None)))
        elif kind in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if kind == "EMPTY_LIST" else _Dict([]))
        elif kind in ("APPEND", "APPENDS"):
            values = taken(1 if kind == "APPEND" else None)
            _typed(stack[-1], list).extend(values)
        elif kind in ("SETITEM", "SETITEMS"):
            values = taken(2 if kind == "SETITEM" else None)
            _typed(stack[-1], _Dict).pairs.extend(zip(values[::2], values[1::2], strict=True))
        elif kind == "STACK_GLOBAL":
            stack.append(_Name(*(_typed(text, str) for text in taken(2))))
        elif kind in ("REDUCE", "NEWOBJ"):
            stack.append(_Made(*taken(2)))
        elif kind == "BUILD":
            (state,) = taken(1)
            _typed(stack[-1], _Made).state = state
        elif kind not in ("PROTO", "FRAME", "STOP"):
            raise IndexFormatError(f"it has the opcode {kind}")
    (whole,) = stack
    return whole


def _fields(value: object, name: str, module: str = Metadata.__module__) -> dict[str, Any]:
    """State of an object of a class that the index must name here."""
    made = _typed(value, _Made)
    by = _typed(made.by, _Name)
    if (by.module, by.name) != (module, name):
        raise IndexFormatError(f"{by.module}.{by.name} instead of {name}")
    return {_typed(key, str): field for key, field in _pairs(made.state)}


def _pairs(value: object) -> list[tuple[object, object]]:
    return _typed(value, _Dict).pairs


def _tensor(value: object) -> TensorStorageMetadata:
    facts = _fields(value, "TensorStorageMetadata")
    state = _typed(_typed(facts["properties"], _Made).state, tuple)
    dtype = _typed(state[0], _Name)
    if dtype.module != "torch":
        raise IndexFormatError(f"{dtype.module}.{dtype.name} as a dtype")
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=DTYPES[dtype.name]),
        size=_size(facts["size"]),
        chunks=[_chunk(chunk) for chunk in _typed(facts["chunks"], list)],
    )


def _chunk(value: object) -> ChunkStorageMetadata:
    facts = _fields(value, "ChunkStorageMetadata")
    return ChunkStorageMetadata(offsets=_size(facts["offsets"]), sizes=_size(facts["sizes"]))


def _place(value: object) -> MetadataIndex:
    facts = _fields(value, "MetadataIndex")
    offset, index = facts.get("offset"), facts.get("index")
    return MetadataIndex(
        fqn=_typed(facts["fqn"], str),
        offset=None if offset is None else _size(offset),
        index=None if index is None else _count(index),
    )


def _storage(value: object, sizes: Mapping[str, int]) -> _StorageInfo:
    facts = _fields(value, "_StorageInfo", _StorageInfo.__module__)
    name = _typed(facts["relative_path"], str)
    offset, length = _count(facts["offset"]), _count(facts["length"])
    if facts.get("transform_descriptors") or offset + length > sizes[name]:
        raise IndexFormatError(f"{name!r:.40} is not {offset + length} plain bytes long")
    return _StorageInfo(relative_path=name, offset=offset, length=length)


def _size(value: object) -> torch.Size:
    made = _typed(value, _Made)
    by = _typed(made.by, _Name)
    (numbers,) = _typed(made.arguments, tuple)
    if (by.module, by.name) != ("torch", "Size"):
        raise IndexFormatError(f"{by.module}.{by.name} instead of a size")
    return torch.Size([_count(number) for number in _typed(numbers, tuple)])


def _count(value: object) -> int:
    number = _typed(value, int)
    if not 0 <= number < _LARGEST_SIZE:
        raise IndexFormatError(f"a size of {number}")
    return number


def _typed(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind) or type(value) is not kind:  # True is no number here
        raise IndexFormatError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value
