"""Damages one record of a store on disk, for the tests of all engines."""

from pathlib import Path

from ecgfast.store.format import shard_name
from ecgfast.store.reader import open_store


def flip_a_bit(store: Path, record: int) -> None:
    """Flip one bit in the middle of a record's chunk, in the store's first shard."""
    buffer, offsets, lengths = open_store(store).read_chunks([record])
    chunk = buffer[offsets[0] : offsets[0] + lengths[0]].tobytes()
    shard = store / shard_name(0)
    data = bytearray(shard.read_bytes())
    data[data.index(chunk) + len(chunk) // 2] ^= 4
    shard.write_bytes(data)
