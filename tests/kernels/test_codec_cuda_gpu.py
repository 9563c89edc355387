"""The CUDA decoder on a GPU: bit-equal on many records, on damaged ones, and in the engines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from codec_records import CORNERS, damage, signal_of, status_of
from ecgfast_kernels import codec
from ecgfast_kernels.codec import cuda as codec_cuda
from numpy.typing import NDArray
from torch import Tensor

from ecgfast.bench.codec import ecg_like

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
RANGE = 100  # ECGFAST_RANGE of codec.h


def upload(
    chunks: list[bytes], shape: tuple[int, int], *, gap: int = 0
) -> codec_cuda.ResidentChunks:
    lengths = np.array([len(chunk) for chunk in chunks], np.int64)
    offsets = np.cumsum(lengths + gap) - lengths
    data = b"".join(bytes(gap) + chunk for chunk in chunks)
    return codec_cuda.ResidentChunks(
        bytes=torch.frombuffer(bytearray(data), dtype=torch.uint8).cuda(),
        offsets=torch.from_numpy(offsets).cuda(),
        lengths=torch.from_numpy(lengths).cuda(),
        num_leads=shape[0],
        num_timesteps=shape[1],
    )


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.full(shape, 12345, dtype=dtype, device="cuda")


def decode(chunks: codec_cuda.ResidentChunks, records: Tensor) -> tuple[Tensor, Tensor]:
    out = poisoned((len(records), chunks.num_leads, chunks.num_timesteps), torch.int16)
    status = torch.zeros(len(records), dtype=torch.int32, device="cuda")
    codec_cuda.decode(chunks, records, out=out, status=status)
    return out, status


def decode_patches(
    chunks: codec_cuda.ResidentChunks, records: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    patches = chunks.num_leads * chunks.num_timesteps // 250
    out = poisoned((len(records), patches, 256), torch.float16)
    status = torch.zeros(len(records), dtype=torch.int32, device="cuda")
    codec_cuda.decode_patches(chunks, records, mean, rstd, out=out, status=status)
    return out, status


def everything(count: int) -> Tensor:
    return torch.arange(count, device="cuda")


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


def test_a_hundred_thousand_records_come_back() -> None:
    block = ecg_like(1000, seed=3)
    for turn in range(100):
        signal = np.roll(block, 37 * turn, axis=2) + np.int16(11 * turn)
        chunks = upload(codec.encode(signal, num_threads=8), signal.shape[1:])
        order = torch.randperm(len(signal), device="cuda")
        out, status = decode(chunks, order)
        assert not status.any()
        truth = torch.from_numpy(signal).cuda()
        assert torch.equal(out, truth[order]), turn
        mean, std = (torch.from_numpy(a).cuda() for a in codec.lead_statistics(signal))
        patches, status = decode_patches(chunks, order, mean, 1 / std)
        gathered = poisoned(tuple(patches.shape), torch.float16)
        codec_cuda.gather_patches(truth, order, mean, 1 / std, out=gathered, status=status)
        assert not status.any()
        assert same_bits(patches, gathered), turn


@pytest.mark.parametrize("shape", [(12, 5000), (1, 250), (3, 500), (16, 750), (2, 65_500)])
@pytest.mark.parametrize("kind", CORNERS)
def test_every_kind_of_signal_has_the_bits_of_the_cpu(kind: str, shape: tuple[int, int]) -> None:
    signal = signal_of(kind, *shape)[None]
    data = codec.encode(signal)
    out, status = decode(upload(data, shape, gap=5), everything(1))
    assert not status.any()
    np.testing.assert_array_equal(out.cpu().numpy(), signal)
    mean, std = codec.lead_statistics(signal)
    rstd = np.divide(1, std, out=np.zeros_like(std), where=std > 0)
    expected = codec.patches_from_int16(signal, mean, rstd)
    moments = (torch.from_numpy(mean).cuda(), torch.from_numpy(rstd).cuda())
    patches, _ = decode_patches(upload(data, shape, gap=9), everything(1), *moments)
    np.testing.assert_array_equal(patches.cpu().view(torch.int16).numpy(), expected.view(np.int16))


@pytest.mark.parametrize("kind", ["ecg", "noise", "rounded", "spikes"])
def test_damaged_chunks_get_the_reference_status_and_zeros(kind: str) -> None:
    shape, rng = (12, 1000), np.random.default_rng(1)
    (good,) = codec.encode(signal_of(kind, *shape)[None])
    data = [damage(good, rng) for _ in range(400)]
    out, status = decode(upload(data, shape, gap=3), everything(len(data)))
    values = out.cpu().numpy()
    for i, got in enumerate(status.tolist()):
        code = status_of(data[i], shape)
        assert got == code if code < 7 else 7 <= got <= 9
        if code in range(1, 6):
            assert not values[i].any()


def test_numbers_and_positions_outside_are_refused() -> None:
    signal = signal_of("ecg", 12, 500)[None]
    chunks = upload(codec.encode(signal), (12, 500))
    _, status = decode(chunks, torch.tensor([0, 1, -1, 1 << 40], device="cuda"))
    assert status.tolist() == [0, RANGE, RANGE, RANGE]
    chunks.offsets[0] = chunks.bytes.numel()
    assert decode(chunks, everything(1))[1].tolist() == [RANGE]


def test_pinned_host_memory_serves_as_well() -> None:
    signal = ecg_like(16, seed=1)
    chunks = upload(codec.encode(signal), signal.shape[1:])
    pinned = codec_cuda.ResidentChunks(
        bytes=chunks.bytes.cpu().pin_memory(),
        offsets=chunks.offsets,
        lengths=chunks.lengths,
        num_leads=12,
        num_timesteps=5000,
    )
    out, status = decode(pinned, everything(16))
    assert not status.any()
    np.testing.assert_array_equal(out.cpu().numpy(), signal)


def test_what_the_kernel_would_misread_is_refused() -> None:
    signal = ecg_like(2, seed=1)
    chunks = upload(codec.encode(signal), signal.shape[1:])
    with pytest.raises(codec_cuda.CudaCodecError, match="records must be contiguous int64"):
        decode(chunks, everything(2).int())
    with pytest.raises(codec_cuda.CudaCodecError, match="mean must be contiguous float32"):
        decode_patches(chunks, everything(2), torch.zeros(2, 12), torch.zeros(2, 12))


def test_a_launch_on_another_stream_is_ordered_by_it() -> None:
    signal = ecg_like(64, seed=2)
    chunks = upload(codec.encode(signal), signal.shape[1:])
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        out, _ = decode(chunks, everything(64))
        copy = out.cpu()
    np.testing.assert_array_equal(copy.numpy(), signal)


@pytest.fixture(scope="module", params=["ecgpack", "zstd"])
def store_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zarr", reason="writing the test's store needs zarr")
    from recordings import make_store

    path, _ = make_store(tmp_path_factory.mktemp("store"), 40, codec=request.param)
    return path


def batches(
    store_path: Path, engine: str, device: str
) -> list[tuple[NDArray[np.int16], list[int]]]:
    from ecgfast.data.loader import build_loader
    from ecgfast.store.reader import open_store

    loader = build_loader(
        open_store(store_path), batch_size=8, seed=5, engine=engine, device=device, drop_last=False
    )
    return [
        (batch.patches.cpu().view(torch.int16).numpy(), batch.record_index.tolist())
        for _ in range(2)
        for batch in loader
    ]


@pytest.mark.parametrize("engine", ["resident", "dali", "cpu"])
def test_engines_on_the_gpu_have_the_bits_of_engine_cpu(store_path: Path, engine: str) -> None:
    if engine == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    expected = batches(store_path, "cpu", "cpu")
    for (a, rows_a), (b, rows_b) in zip(expected, batches(store_path, engine, "cuda"), strict=True):
        assert rows_a == rows_b
        np.testing.assert_array_equal(a, b)


def test_records_beyond_the_budget_stay_on_the_host(store_path: Path) -> None:
    from ecgfast.data.batch import Source
    from ecgfast.data.engines import ResidentEngine
    from ecgfast.data.normalise import Normalisation
    from ecgfast.store.reader import open_store

    store, index = open_store(store_path), np.arange(40)
    mean, rstd = Normalisation().mean_and_rstd(store)
    source = Source(store=store, mean=mean, rstd=rstd, device=torch.device("cuda"))
    engines = [ResidentEngine(source, index=index, budget_gib=budget) for budget in (None, 1e-6)]
    (a, _), (b, _) = (next(engine.batches([index])) for engine in engines)
    assert same_bits(a, b)
