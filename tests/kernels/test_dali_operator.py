"""The DALI operator on the CPU against the NumPy reference: integers, patches, damage, misuse."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from codec_records import CORNERS, damage, signal_of
from ecgfast_kernels import codec
from ecgfast_kernels.codec.reference import decode_chunk
from numpy.typing import NDArray

from ecgfast.bench.codec import ecg_like
from ecgfast.data.dali import build as dali_build

dali: Any = pytest.importorskip("nvidia.dali", reason="DALI is not installed")
Arrays = list[NDArray[Any]]


@pytest.fixture(autouse=True)
def _operator(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp().parent / "dali-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    dali_build.load_plugin(None)


def run(
    shape: tuple[int, int], batches: list[Arrays], *, batch_size: int = 1
) -> Iterator[tuple[NDArray[Any], NDArray[np.int32]]]:
    """Feed arrays to a pipeline of nothing but the operator; yields output and status."""
    types = {"uint8": dali.types.UINT8, "int64": dali.types.INT64, "float32": dali.types.FLOAT}
    pipeline = dali.Pipeline(batch_size=batch_size, num_threads=2, device_id=None)
    with pipeline:
        inputs = dali.fn.external_source(
            source=([[array] * batch_size for array in batch] for batch in batches),
            num_outputs=len(batches[0]),
            dtype=[types[str(array.dtype)] for array in batches[0]],
        )
        decoded = dali.fn.ecg_decode(*inputs, num_leads=shape[0], num_timesteps=shape[1])
        pipeline.set_outputs(*decoded)
    for _ in batches:
        out, status = pipeline.run()
        yield np.array(out.at(0)), np.array(status.at(0))


def arrays(chunks: list[bytes]) -> Arrays:
    lengths = np.array([len(chunk) for chunk in chunks], np.int64)
    buffer = np.frombuffer(b"".join(chunks), np.uint8)
    return [buffer, np.cumsum(lengths) - lengths, lengths]


@pytest.mark.parametrize("shape", [(12, 1000), (1, 250), (16, 500)])
def test_integers_are_those_of_the_reference(shape: tuple[int, int]) -> None:
    signal = np.stack([signal_of(kind, *shape) for kind in CORNERS])
    chunks = codec.encode(signal)
    ((out, status),) = run(shape, [arrays(chunks)])
    assert not status.any()
    np.testing.assert_array_equal(out, [decode_chunk(chunk) for chunk in chunks])
    np.testing.assert_array_equal(out, signal)


def test_patches_are_those_of_the_formula_in_numpy() -> None:
    batches, expected = [], []
    for size in (5, 1, 3):  # each batch has a length of its own
        signal = ecg_like(size, seed=size, num_timesteps=1000)
        signal[0, 5] = 17  # a flat lead: its factor is 0
        mean, std = codec.lead_statistics(signal)
        rstd = np.divide(1, std, out=np.zeros_like(std), where=std > 0)
        batches.append([*arrays(codec.encode(signal)), mean, rstd])
        z = ((signal.astype(np.float32) - mean[..., None]) * rstd[..., None]).astype(np.float16)
        padded = np.zeros((size, 48, 256), np.float16)
        padded[..., :250] = z.reshape(size, 48, 250)
        expected.append(padded)
    for (out, status), truth in zip(run((12, 1000), batches), expected, strict=True):
        assert not status.any()
        np.testing.assert_array_equal(out.view(np.int16), truth.view(np.int16))


@pytest.mark.parametrize("kind", ["ecg", "noise", "rounded"])
def test_damage_gets_the_status_of_the_reference_and_spares_its_neighbours(kind: str) -> None:
    shape, rng = (12, 750), np.random.default_rng(4)
    signal = signal_of(kind, *shape)
    (good,) = codec.encode(signal[None])
    chunks = [damage(good, rng) if i % 2 else good for i in range(60)]
    ((out, status),) = run(shape, [arrays(chunks)])
    for i, chunk in enumerate(chunks):
        try:
            decode_chunk(chunk, shape=shape)
            code = 0
        except codec.CodecError as error:
            code = error.code
        assert status[i] == code
    assert np.count_nonzero(status) > 20
    assert (out[::2] == signal).all()


def test_places_outside_the_buffer_are_refused() -> None:
    signal = ecg_like(2, seed=1, num_timesteps=500)
    buffer, offsets, lengths = arrays(codec.encode(signal))
    offsets[1] = 1 << 40
    ((out, status),) = run((12, 500), [[buffer, offsets, lengths]])
    assert status.tolist() == [0, 100]
    np.testing.assert_array_equal(out[0], signal[0])


def misuses() -> dict[str, tuple[Arrays, int]]:
    buffer, offsets, lengths = arrays(codec.encode(ecg_like(2, seed=1, num_timesteps=500)))
    moments = np.zeros((2, 12), np.float32)
    return {
        "input 1 must be": ([buffer, offsets.astype(np.float32), lengths], 1),
        "input 2 must be": ([buffer, offsets, lengths[:1]], 1),
        "input 3 must be": ([buffer, offsets, lengths, moments[:, :5].copy(), moments], 1),
        "input 4 must be": ([buffer, offsets, lengths, moments, moments[:1]], 1),
        "must both be given": ([buffer, offsets, lengths, moments], 1),
        "batch_size must be 1": ([buffer, offsets, lengths], 2),
    }


@pytest.mark.parametrize("message", misuses())
def test_what_the_operator_would_misread_is_refused(message: str) -> None:
    batch, batch_size = misuses()[message]
    with pytest.raises(RuntimeError, match=message):
        list(run((12, 500), [batch], batch_size=batch_size))
