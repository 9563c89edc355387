"""Damaged and hostile chunks: each rule of docs/format.md, 2.4, in every decoder."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from codec_records import make, native_backends, set_backend
from ecgfast_kernels import codec
from ecgfast_kernels.codec.reference import chunk_crc, decode_chunk
from ecgfast_kernels.codec.reference_encode import encode_chunk

BACKENDS = native_backends()
SHAPE = (6, 500)
TABLE, FIRST = 16, 20  # byte offsets of the column table and of column 0
Damage = Callable[[bytearray], bytes]


def put(fmt: str, offset: int, value: int) -> Damage:
    def damage(chunk: bytearray) -> bytes:
        struct.pack_into(fmt, chunk, offset, value)
        return bytes(chunk)

    return damage


def raw(change: Damage) -> Damage:
    """The same, done to a RAW chunk."""
    return lambda _: change(bytearray(encode_chunk(make("noise", *SHAPE))))


def descriptor(value: int) -> Damage:
    return put("<B", FIRST + 2, value)


def planes_behind_the_end(_: bytearray) -> bytes:
    """The last column says of every lead that three planes of codes follow; none do."""
    chunk = bytearray(encode_chunk(np.zeros(SHAPE, np.int16)))
    last = len(chunk) - 2 - 3 * SHAPE[0]
    chunk[last + 2 : last + 2 + SHAPE[0]] = b"\x0c" * SHAPE[0]
    return bytes(chunk)


CASES: list[tuple[str, int, Damage]] = [
    ("empty", 1, lambda c: b""),
    ("half a header", 1, lambda c: bytes(c[:15])),
    ("no table", 1, lambda c: bytes(c[:18])),
    ("raw, cut", 1, raw(lambda c: bytes(c[:-1]))),
    ("magic", 2, put("<H", 0, 0x5046)),
    ("version", 2, put("<B", 2, 2)),
    ("flag 3", 2, put("<B", 3, 8)),
    ("group", 2, put("<B", 7, 16)),
    ("other T", 3, put("<H", 4, 250)),
    ("odd T", 3, put("<H", 4, 499)),
    ("T = 0", 3, put("<H", 4, 0)),
    ("other C", 3, put("<B", 6, 5)),
    ("C = 17", 3, put("<B", 6, 17)),
    ("Q = 0", 5, put("<I", 8, 0)),
    ("no quantum, cut", 5, put("<B", 3, 2)),
    ("raw with quantum", 5, raw(put("<I", 8, 319816))),
    ("raw and wide", 5, raw(put("<B", 3, 5))),
    ("raw, longer", 6, raw(lambda c: bytes(c) + b"\0")),
    ("longer", 6, lambda c: bytes(c) + b"\0\0\0\0"),
    ("shorter", 6, lambda c: bytes(c[:-4])),
    ("ends descend", 6, put("<H", TABLE, 0xFFFF)),
    ("lead 0 predicted", 7, put("<H", FIRST, 1)),
    ("lead 6 predicted", 7, put("<H", FIRST, 1 << 6)),
    ("lead beyond C predicted", 7, put("<H", FIRST, 1 << 7)),
    ("order 3", 8, descriptor(0x03)),
    ("too wide", 8, descriptor(0xF8)),
    ("too wide by one", 8, descriptor(0xAC)),
    ("groups too long", 9, descriptor(0xF0)),
    ("groups too short", 9, descriptor(0x00)),
    ("column too short", 9, put("<H", TABLE, 1)),
    ("planes behind the end", 9, planes_behind_the_end),
]


@pytest.mark.parametrize(("name", "code", "damage"), CASES, ids=[case[0] for case in CASES])
def test_rule(name: str, code: int, damage: Damage) -> None:
    chunk = damage(bytearray(encode_chunk(make("walk", *SHAPE))))
    if len(chunk) >= 16:  # a valid checksum over what is wrong
        signed = bytearray(chunk)
        struct.pack_into("<I", signed, 12, chunk_crc(chunk))
        chunk = bytes(signed)
    with pytest.raises(codec.CodecError) as error:
        decode_chunk(chunk, shape=SHAPE)
    assert error.value.code == code
    for backend in BACKENDS:
        set_backend(backend)
        with pytest.raises(codec.CodecError) as error:
            codec.decode(chunk, [0], [len(chunk)], num_leads=SHAPE[0], num_timesteps=SHAPE[1])
        assert (error.value.code, error.value.index) == (code, 0), backend
    if BACKENDS:
        set_backend("")


@pytest.mark.parametrize("kind", ["walk", "noise", "cut"])
def test_every_bit_is_guarded(kind: str) -> None:
    record = make(kind, 2, 250)
    chunk = encode_chunk(record)
    shape = {"num_leads": 2, "num_timesteps": 250}
    for bit in range(8 * len(chunk)):
        flipped = bytearray(chunk)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(codec.CodecError):
            codec.decode(flipped, [0], [len(flipped)], **shape)


def test_error_names_the_lowest_bad_chunk_and_spares_the_others() -> None:
    signal = np.stack([make("walk", 12, 500, seed) for seed in range(20)])
    chunks = [bytearray(chunk) for chunk in codec.encode(signal)]
    for bad in (7, 13):
        chunks[bad][100] ^= 4
    lengths = np.array([len(chunk) for chunk in chunks])
    offsets = np.cumsum(lengths) - lengths
    for threads in (1, 4):
        out = np.zeros_like(signal)
        with pytest.raises(codec.CodecError, match=r"chunk 7 .*crc32c") as error:
            codec.decode(
                b"".join(chunks),
                offsets,
                lengths,
                num_leads=12,
                num_timesteps=500,
                out=out,
                num_threads=threads,
            )
        assert (error.value.index, error.value.code) == (7, 4)


def test_checksum_can_be_skipped() -> None:
    record = make("walk", 12, 500)
    chunk = bytearray(encode_chunk(record))
    chunk[12] ^= 1
    shape = {"num_leads": 12, "num_timesteps": 500}
    decoded = codec.decode(chunk, [0], [len(chunk)], **shape, check=False)
    np.testing.assert_array_equal(decoded[0], record)
    np.testing.assert_array_equal(decode_chunk(bytes(chunk), check=False), record)
