"""The index of a checkpoint, read as data: what Python's own unpickling gives, or a refusal."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from ecgfast.runs.checkpoint_index import IndexFormatError, read_index

SHAPES = [(), (3,), (3, 2), (3, 2, 4), (3, 2, 4, 5), (0,), (300, 70_000), (2**48 - 1,)]


def tensor(shape: tuple[int, ...], dtype: Any, *offsets: int) -> TensorStorageMetadata:
    """One of `shape`, in a chunk per offset along every direction."""
    size = torch.Size(shape)
    chunks = [
        ChunkStorageMetadata(offsets=torch.Size([o for _ in shape]), sizes=size) for o in offsets
    ]
    return TensorStorageMetadata(properties=TensorProperties(dtype=dtype), size=size, chunks=chunks)


def index(tensors: dict[str, TensorStorageMetadata], *, key: Any = None, **storage: Any) -> bytes:
    key = key or MetadataIndex("a", torch.Size([1, 0]), 7)
    where = {"relative_path": "file", "offset": 8, "length": 4} | storage
    whole = Metadata(
        state_dict_metadata=dict(tensors),
        planner_data={name: (name,) for name in tensors},
        storage_data={key: _StorageInfo(**where)},
        storage_meta=StorageMeta(),
    )
    return pickle.dumps(whole, protocol=4)


@pytest.mark.parametrize("number", [1, 40])
def test_it_reads_what_unpickling_gives(number: int) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.int64)
    shapes = [shape for shape in SHAPES for _ in range(number)] if number > 1 else SHAPES[2:3]
    data = index(
        {
            f"tensor {i}": tensor(shape, dtypes[i % 4], *range(1 + i % 3))
            for i, shape in enumerate(shapes)
        }
    )
    found, expected = read_index(data, {"file": 12}), pickle.loads(data)
    assert found.state_dict_metadata == expected.state_dict_metadata
    assert found.storage_data == expected.storage_data
    (key,) = found.storage_data
    assert (key.fqn, key.offset, key.index) == ("a", torch.Size([1, 0]), 7)


def test_a_place_without_an_offset() -> None:
    data = index({"a": tensor((2,), torch.float32, 0)}, key=MetadataIndex("a"))
    (key,) = read_index(data, {"file": 12}).storage_data
    assert (key.offset, key.index) == (None, None)


@pytest.mark.parametrize(("size", "fits"), [(10, False), (11, False), (12, True), (13, True)])
def test_a_tensor_ends_within_its_file(size: int, fits: bool) -> None:
    data = index({"a": tensor((2,), torch.float32, 0)})
    if fits:
        assert read_index(data, {"file": size}).storage_data
        return
    with pytest.raises(IndexFormatError, match="'file' is not 12 plain bytes long"):
        read_index(data, {"file": size})


@pytest.mark.parametrize(("transformed", "plain"), [(None, True), (False, True), (True, False)])
def test_transformed_bytes_are_refused(transformed: bool | None, plain: bool) -> None:
    data = index({"a": tensor((2,), torch.float32, 0)}, transform_descriptors=transformed)
    if plain:
        assert read_index(data, {"file": 12}).storage_data
        return
    with pytest.raises(IndexFormatError, match="plain bytes"):
        read_index(data, {"file": 12})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (index({}, offset=True), "a bool where a int belongs"),
        (index({}, offset=-1), "a size of -1"),
        (index({}, length=2**48), "a size of 281474976710656"),
        (index({}, relative_path="other"), "other"),
        (index({}, relative_path=b"file"), "it has the opcode"),
        (index({"a": tensor((2,), np.float32, 0)}), "numpy.float32 as a dtype"),
        (b"\x80\x04\x85.", "a value is missing"),
        (b"\x80\x04NN(\x86t.", "a value is missing"),
        (b"\x80\x04(t.", "a tuple where a _Made belongs"),
        (b"\x80\x04G" + bytes(8) + b".", "it has the opcode BINFLOAT"),
        (b"\x80\x04NN.", "too many values"),
        (b"no pickle", "none of ours"),
    ],
)
def test_what_no_index_of_ours_holds_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(IndexFormatError, match=message):
        read_index(data, {"file": 12})


@pytest.mark.parametrize(
    ("old", "names", "message"),
    [
        (b"numpy", (b"aumpy", b"zumpy"), "umpy.float32 as a dtype"),
        (b"ChunkStorageMetadata", (b"AhunkStorageMetadata", b"ZhunkStorageMetadata"), "instead of"),
        (b"Size", (b"Aize", b"Zize"), "instead of a size"),
    ],
)
def test_other_names_are_refused(old: bytes, names: tuple[bytes, ...], message: str) -> None:
    dtype = np.float32 if old == b"numpy" else torch.float32
    data = index({"a": tensor((2,), dtype, 0)})
    for name in names:
        with pytest.raises(IndexFormatError, match=message):
            read_index(data.replace(old, name), {"file": 12})
