"""Engine resident on a CPU: the same bits as engine cpu, and damage found when it loads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from changed_stores import flip_a_bit
from numpy.typing import NDArray
from recordings import make_store

from ecgfast.data.batch import Source
from ecgfast.data.engines import CpuEngine, ResidentEngine, resident_bytes
from ecgfast.data.normalise import Normalisation
from ecgfast.errors import BackendUnavailableError, CorruptStoreError
from ecgfast.store.reader import StoreReader, open_store

CPU = torch.device("cpu")
SCHEDULE = [np.array(rows, np.int64) for rows in ([3, 1, 2, 11], [5, 6, 7, 7], [9])]


@pytest.fixture(scope="module", params=["ecgpack", "zstd", "none"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    path, _ = make_store(tmp_path_factory.mktemp("store"), 12, codec=request.param)
    return open_store(path)


def source(store: StoreReader, device: torch.device = CPU) -> Source:
    mean, rstd = Normalisation().mean_and_rstd(store)
    return Source(store=store, mean=mean, rstd=rstd, device=device)


def resident(store: StoreReader, index: NDArray[np.int64]) -> ResidentEngine:
    return ResidentEngine(source(store), index=index)


def test_batches_have_the_bits_of_engine_cpu(store: StoreReader) -> None:
    cpu = CpuEngine(source(store))
    index = np.array([11, 9, 7, 6, 5, 3, 2, 1], np.int64)  # held in an order of its own
    pairs = zip(cpu.batches(SCHEDULE), resident(store, index).batches(SCHEDULE), strict=True)
    for entry, ((expected, rows), (patches, record_index)) in zip(SCHEDULE, pairs, strict=True):
        assert torch.equal(expected.view(torch.int16), patches.view(torch.int16))
        assert rows.tolist() == record_index.tolist() == entry.tolist()


def test_an_empty_schedule_ends_at_once(store: StoreReader) -> None:
    assert list(resident(store, np.arange(12)).batches([])) == []


def test_a_record_that_is_not_held_is_our_own_bug(store: StoreReader) -> None:
    with pytest.raises(AssertionError, match="not held"):
        next(resident(store, np.arange(4)).batches([np.array([7])]))


def test_a_damaged_record_is_named_when_the_store_is_loaded(tmp_path: Path) -> None:
    path, _ = make_store(tmp_path, 12)
    sound = source(open_store(path))
    flip_a_bit(path, 5)
    with pytest.raises(CorruptStoreError, match="record 5"):
        ResidentEngine(replace(sound, store=open_store(path)), index=np.arange(12))


def test_without_the_cuda_decoder_a_gpu_is_refused_with_the_cure(
    store: StoreReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecgfast_kernels.codec.cuda.is_built", lambda: False)
    with pytest.raises(BackendUnavailableError, match="install nvcc"):
        ResidentEngine(source(store, torch.device("cuda")), index=np.arange(12))


def test_only_ecgpack_stays_packed(store: StoreReader) -> None:
    plain = len(store) * 12 * 5000 * 2
    packed = store.codec == "ecgpack"
    assert resident_bytes(store) == (store.num_bytes if packed else plain)
    assert packed == (resident_bytes(store) < plain / 2)
