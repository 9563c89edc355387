"""The shard index: what it packs it parses, and damage is found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgfast.errors import CorruptStoreError
from ecgfast.store.format import SHARD_RECORDS, with_crc32c
from ecgfast.store.shards import INDEX_BYTES, NOT_WRITTEN, pack_shard_index, parse_shard_index


def parse(index: bytes, num_chunks: int, data_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    return parse_shard_index(
        index, rows=np.arange(num_chunks), data_bytes=data_bytes, where="shard"
    )


@given(lengths=st.lists(st.integers(1, 200_000), min_size=1, max_size=SHARD_RECORDS))
def test_index_round_trip(lengths: list[int]) -> None:
    offsets, parsed = parse(
        pack_shard_index(range(len(lengths)), lengths), len(lengths), sum(lengths)
    )
    assert parsed.tolist() == lengths
    assert offsets.tolist() == [sum(lengths[:n]) for n in range(len(lengths))]


@pytest.mark.parametrize("position", [0, 7, 8, INDEX_BYTES // 2, INDEX_BYTES - 1])
def test_flipped_bit(position: int) -> None:
    index = bytearray(pack_shard_index([0, 1], [100, 200]))
    index[position] ^= 1
    with pytest.raises(CorruptStoreError, match="checksum"):
        parse(bytes(index), 2, 300)


def test_missing_chunk_is_an_error() -> None:
    index = pack_shard_index([0, 1], [100, 200])
    with pytest.raises(CorruptStoreError, match="chunk 2 is missing"):
        parse(index, 3, 300)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 301), (300, 1), (2**63, 2**63), (0, 0), (2**64 - 2, 5)]
)
def test_range_outside_the_file(offset: int, length: int) -> None:
    table = np.full((SHARD_RECORDS, 2), NOT_WRITTEN, "<u8")
    table[0] = offset, length
    with pytest.raises(CorruptStoreError, match="outside"):
        parse(with_crc32c(table.tobytes()), 1, 300)


def test_the_index_byte_by_byte() -> None:
    index = pack_shard_index([0, 1], [3, 5])
    numbers = np.frombuffer(index[:-4], "<u8")
    assert numbers[:4].tolist() == [0, 3, 3, 5]
    assert index[32:-4] == b"\xff" * (1022 * 16)
    assert len(index) == 1024 * 16 + 4


def test_holes_are_no_chunks() -> None:
    index = pack_shard_index([1, 7, 1023], [3, 5, 4])
    numbers = np.frombuffer(index[:-4], "<u8").reshape(-1, 2)
    assert numbers[[1, 7, 1023]].tolist() == [[0, 3], [3, 5], [8, 4]]
    assert (numbers == NOT_WRITTEN).all(axis=1).sum() == 1021
    rows = np.array([7, 1023])
    offsets, lengths = parse_shard_index(index, rows=rows, data_bytes=12, where="shard")
    assert (offsets.tolist(), lengths.tolist()) == ([3, 8], [5, 4])
    with pytest.raises(CorruptStoreError, match="chunk 6 is missing"):
        parse_shard_index(index, rows=np.array([1, 6, 7]), data_bytes=12, where="shard")


@pytest.mark.parametrize("missing", [1, 16, 1024 * 16 + 4])
def test_an_index_that_is_too_short(missing: int) -> None:
    table = pack_shard_index([0, 1], [100, 200])[:-4]
    with pytest.raises(CorruptStoreError, match="checksum of the shard index is wrong"):
        parse(with_crc32c(table[: max(0, len(table) - missing)]), 2, 300)
