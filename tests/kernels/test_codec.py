"""Every encoder writes the same bytes and every decoder gives the input back."""

from collections.abc import Iterator

import numpy as np
import pytest
from codec_records import KINDS, make, native_backends, records, set_backend
from ecgfast_kernels import codec
from ecgfast_kernels.codec.format import FLAG_RAW, FLAG_TRUNC, FLAG_WIDE
from ecgfast_kernels.codec.reference import decode_chunk
from ecgfast_kernels.codec.reference_encode import encode_chunk
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray

BACKENDS = native_backends()
# The fixture only names the backend; one use for all examples is what we want.
RELAXED = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    set_backend(request.param)
    yield request.param
    set_backend("")


def decode_one(chunk: bytes, shape: tuple[int, ...]) -> NDArray[np.int16]:
    return codec.decode(chunk, [0], [len(chunk)], num_leads=shape[0], num_timesteps=shape[1])[0]


@RELAXED
@given(record=records(max_timesteps=5000))
def test_reference_round_trip(record: NDArray[np.int16]) -> None:
    np.testing.assert_array_equal(decode_chunk(encode_chunk(record)), record)


@RELAXED
@given(record=records())
def test_native_round_trip(backend: str, record: NDArray[np.int16]) -> None:
    chunk = codec.encode(record[None])[0]
    np.testing.assert_array_equal(decode_one(chunk, record.shape), record)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("shape", [(1, 250), (5, 500), (12, 1750), (16, 750)])
def test_backends_agree(kind: str, shape: tuple[int, int], backend: str) -> None:
    record = make(kind, *shape, seed=len(kind))
    chunk = encode_chunk(record)
    assert codec.encode(record[None]) == [chunk]
    np.testing.assert_array_equal(decode_one(chunk, shape), record)
    np.testing.assert_array_equal(decode_chunk(chunk), record)


def test_backend_agrees_on_a_wide_table(backend: str) -> None:
    record = make("loud", 16, 20_000)
    chunk = codec.encode(record[None])[0]
    assert chunk[3] == FLAG_WIDE
    np.testing.assert_array_equal(decode_one(chunk, record.shape), record)
    np.testing.assert_array_equal(decode_chunk(chunk), record)
    assert chunk == encode_chunk(record)


@pytest.mark.parametrize(
    ("kind", "flags", "quantum"),
    [
        ("noise", FLAG_RAW, 65536),
        ("zeros", 0, 65536),
        ("walk", 0, 65536),
        ("rounded", 0, 319816),
        ("cut", FLAG_TRUNC, 319816),
    ],
)
def test_header_says_how_values_lie(kind: str, flags: int, quantum: int) -> None:
    chunk = codec.encode(make(kind, 12, 1000)[None])[0]
    assert chunk[3] == flags
    assert int.from_bytes(chunk[8:12], "little") == quantum


def test_predictions_pay() -> None:
    limb = make("limb", 12, 5000)
    alone = sum(len(codec.encode(lead[None, None])[0]) for lead in limb)
    assert len(codec.encode(limb[None])[0]) < 0.7 * alone


def test_many_records_any_order_any_threads() -> None:
    signal = np.stack([make(k, 12, 500, seed) for seed, k in enumerate(sorted(KINDS) * 5)])
    chunks = codec.encode(signal)
    assert codec.encode(signal, num_threads=3) == chunks
    buffer = b"between".join(chunks)
    lengths = np.array([len(chunk) for chunk in chunks])
    offsets = np.cumsum(lengths + 7) - lengths - 7
    shuffled = np.random.default_rng(0).permutation(len(signal))
    for threads in (1, 4):
        out = np.full(signal.shape, 99, np.int16)
        decoded = codec.decode(
            buffer,
            offsets[shuffled],
            lengths[shuffled],
            num_leads=12,
            num_timesteps=500,
            out=out,
            num_threads=threads,
        )
        assert decoded is out
        np.testing.assert_array_equal(out, signal[shuffled])


def test_no_records() -> None:
    assert codec.encode(np.empty((0, 12, 5000), np.int16)) == []
    assert codec.decode(b"", [], [], num_leads=12, num_timesteps=5000).shape == (0, 12, 5000)


def test_views_are_encoded_as_they_read() -> None:
    signal = make("walk", 12, 1000)[None]
    assert codec.encode(signal[:, ::-1, ::2]) == codec.encode(signal[:, ::-1, ::2].copy())


@pytest.mark.parametrize("shape", [(1, 0, 250), (1, 17, 250), (1, 12, 251), (1, 12, 65_750)])
def test_encode_refuses_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(codec.CodecError, match="must be"):
        codec.encode(np.zeros(shape, np.int16))


def test_arguments_are_checked() -> None:
    chunk = codec.encode(np.zeros((1, 12, 250), np.int16))[0]
    shape = {"num_leads": 12, "num_timesteps": 250}
    with pytest.raises(codec.CodecError, match="int16"):
        codec.encode(np.zeros((1, 12, 250), np.float32))  # type: ignore[arg-type]  # refused
    with pytest.raises(codec.CodecError, match="outside the buffer"):
        codec.decode(chunk, [1], [len(chunk)], **shape)
    with pytest.raises(codec.CodecError, match="outside the buffer"):
        codec.decode(chunk, [-1], [len(chunk)], **shape)
    with pytest.raises(codec.CodecError, match="out must be"):
        codec.decode(chunk, [0], [len(chunk)], **shape, out=np.empty((1, 250, 12), np.int16))
    with pytest.raises(codec.CodecError, match="offsets and lengths"):
        codec.decode(chunk, [0, 0], [len(chunk)], **shape)
