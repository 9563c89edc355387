"""Paths beside a store; chunks of each codec: exact round trip, damage found."""

from pathlib import Path

import numpy as np
import pytest
from ecgfast_kernels.codec import CodecError
from recordings import ecg_like

from ecgfast.errors import ConfigError
from ecgfast.store.format import (
    CODECS,
    RECORD_BYTES,
    beside,
    decode_chunks,
    encode_chunks,
    num_shards,
    refuse_inside_store,
    with_crc32c,
)
from ecgfast.vocabulary import Codec


def packed(chunks: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = np.array([len(chunk) for chunk in chunks], np.int64)
    buffer = np.frombuffer(b"".join(chunks), np.uint8)
    return buffer.copy(), np.cumsum(lengths) - lengths, lengths


@pytest.fixture(scope="module")
def signal() -> np.ndarray:
    rng = np.random.default_rng(3)
    zeros = np.zeros((1, 12, 5000), np.int16)
    noise = rng.integers(-32768, 32768, (1, 12, 5000)).astype(np.int16)
    return np.concatenate([ecg_like(3, seed=1), zeros, noise])


@pytest.mark.parametrize("codec", CODECS)
def test_round_trip(codec: Codec, signal: np.ndarray) -> None:
    buffer, offsets, lengths = packed(encode_chunks(codec, signal))
    order = [4, 0, 3, 0]
    decoded = decode_chunks(codec, buffer, offsets[order], lengths[order])
    np.testing.assert_array_equal(decoded, signal[order])


@pytest.mark.parametrize("codec", CODECS)
def test_every_flip_is_found(codec: Codec, signal: np.ndarray) -> None:
    buffer, offsets, lengths = packed(encode_chunks(codec, signal))
    rng = np.random.default_rng(0)
    for position in rng.integers(offsets[1], offsets[2], 200):
        buffer[position] ^= 1 << rng.integers(8)
        with pytest.raises(CodecError) as caught:
            decode_chunks(codec, buffer, offsets, lengths)
        assert caught.value.index == 1
        buffer[position] = packed(encode_chunks(codec, signal[1:2]))[0][position - offsets[1]]


def test_unchecked_read_skips_the_checksum(signal: np.ndarray) -> None:
    buffer, offsets, lengths = packed(encode_chunks("none", signal))
    buffer[0] ^= 1
    assert decode_chunks("none", buffer, offsets, lengths, check=False)[0, 0, 0] != signal[0, 0, 0]


def test_short_chunk(signal: np.ndarray) -> None:
    buffer, offsets, lengths = packed(encode_chunks("none", signal))
    lengths[2] = 1000
    with pytest.raises(CodecError, match=f"expected {RECORD_BYTES}"):
        decode_chunks("none", buffer, offsets, lengths, check=False)


def test_known_checksum() -> None:
    # The check value of CRC-32C (Castagnoli) in every catalogue of CRCs.
    assert with_crc32c(b"123456789") == b"123456789" + (0xE3069283).to_bytes(4, "little")


def test_num_shards() -> None:
    assert [num_shards(n) for n in (1, 1024, 1025)] == [1, 1, 2]


def test_beside_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert beside(Path("a/store"), ".key") == Path("a/store.key")
    (tmp_path / "store/in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "store/in")
    assert beside(Path("."), ".key") == tmp_path / "store/in.key"
    assert beside(Path(".."), ".key") == tmp_path / "store.key"
    with pytest.raises(ConfigError, match="must be a folder with a name, got '/'"):
        beside(Path("/"), ".key")


def test_an_output_inside_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store/signals.zarr").mkdir(parents=True)
    refuse_inside_store(tmp_path / "store.key", "--key")
    for inside in ("store", "store/report", "store/a/b"):
        with pytest.raises(ConfigError, match=f"--out .*{inside} lies in the store"):
            refuse_inside_store(tmp_path / inside, "--out")
