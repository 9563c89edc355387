"""The loader: what it visits, in which order, with which bits, and how it resumes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ecgfast.data.loader import Loader, _default_threads, build_loader, choose_engine
from ecgfast.data.normalise import Normalisation
from ecgfast.data.torch_view import EcgDataset
from ecgfast.errors import BackendUnavailableError, ConfigError, ResumeError
from ecgfast.store.reader import StoreReader
from ecgfast.vocabulary import EngineName


def _visited(loader: Loader, epochs: int = 1) -> list[list[int]]:
    return [batch.record_index.tolist() for _ in range(epochs) for batch in loader]


def test_patches_are_the_normalised_signal_rounded_once(small_store: StoreReader) -> None:
    loader = build_loader(small_store, batch_size=8, seed=3)
    mean, rstd = Normalisation().mean_and_rstd(small_store)
    for batch in loader:
        rows = batch.record_index.numpy()
        x = small_store.read(rows).astype(np.float32)
        z = ((x - mean[rows][..., None]) * rstd[rows][..., None]).astype(np.float16)
        expected = z.reshape(len(rows), 240, 250)
        np.testing.assert_array_equal(batch.patches[..., :250].numpy(), expected)
        assert not batch.patches[..., 250:].any()


@pytest.mark.parametrize("engine", ["cpu", "resident"])
def test_batches_of_some_leads_are_parts_of_whole_ones(
    small_store: StoreReader, engine: EngineName
) -> None:
    some = Normalisation(leads=("II", "V1"))
    whole = build_loader(small_store, batch_size=8, engine=engine)
    parts = build_loader(small_store, batch_size=8, engine=engine, normalise=some)
    for batch, part in zip(whole, parts, strict=True):
        assert torch.equal(part.record_index, batch.record_index)
        expected = batch.patches.view(8, 12, 20, 256)[:, [1, 6]].reshape(8, 40, 256)
        assert torch.equal(part.patches, expected)
    signal = EcgDataset(small_store, normalise=some)[3]["signal"]
    assert torch.equal(signal, EcgDataset(small_store)[3]["signal"][[1, 6]])


def test_an_epoch_visits_every_record_once(small_store: StoreReader) -> None:
    loader = build_loader(small_store, batch_size=7, drop_last=False)
    seen = [row for batch in _visited(loader) for row in batch]
    assert sorted(seen) == list(range(len(small_store)))
    assert len(loader) == -(-len(small_store) // 7)


def test_the_next_iteration_is_the_next_epoch(small_store: StoreReader) -> None:
    loader = build_loader(small_store, batch_size=8, seed=1)
    first, second = _visited(loader), _visited(loader)
    assert first != second
    again = build_loader(small_store, batch_size=8, seed=1)
    again.load_state_dict({"epoch": 1, "position": 0})
    assert second == _visited(again)


@pytest.mark.parametrize("consumed", [0, 1, 3])
def test_a_resumed_loader_goes_on_exactly(small_store: StoreReader, consumed: int) -> None:
    unbroken = _visited(build_loader(small_store, batch_size=4, seed=5), epochs=2)
    loader = build_loader(small_store, batch_size=4, seed=5)
    batches = iter(loader)
    begun = [next(batches).record_index.tolist() for _ in range(consumed)]
    state = loader.state_dict()
    resumed = build_loader(small_store, batch_size=4, seed=5)
    resumed.load_state_dict(state)
    rest = _visited(resumed, epochs=2)
    assert begun + rest == unbroken


def test_state_counts_what_was_consumed_not_what_was_prefetched(small_store: StoreReader) -> None:
    loader = build_loader(small_store, batch_size=4)
    next(iter(loader))
    assert loader.state_dict() == {"epoch": 0, "position": 4}


def test_ranks_split_the_global_batch(small_store: StoreReader) -> None:
    alone = _visited(build_loader(small_store, batch_size=8, seed=2))
    halves = [
        _visited(build_loader(small_store, batch_size=4, seed=2, rank=rank, world_size=2))
        for rank in (0, 1)
    ]
    assert [a + b for a, b in zip(*halves, strict=True)] == alone


def test_a_selection_keeps_store_rows(small_store: StoreReader) -> None:
    sites = np.array(small_store.records.column("site").to_pylist())
    loader = build_loader(small_store, batch_size=1, select="site=1", shuffle=False)
    assert _visited(loader) == [[row] for row in np.flatnonzero(sites == "1")]


def test_codecs_give_the_same_bits(small_store: StoreReader, small_store_zstd: StoreReader) -> None:
    pairs = zip(
        build_loader(small_store, batch_size=8),
        build_loader(small_store_zstd, batch_size=8),
        strict=True,
    )
    for packed, plain in pairs:
        assert torch.equal(packed.record_index, plain.record_index)
        assert torch.equal(packed.patches, plain.patches)


def test_a_consumer_may_stop_early(small_store: StoreReader) -> None:
    loader = build_loader(small_store, batch_size=2)
    for _ in loader:
        break
    assert len(_visited(loader)) == len(loader) - 1


def test_too_few_records_is_a_clear_error(small_store: StoreReader) -> None:
    with pytest.raises(ConfigError, match="one global batch has 4096"):
        build_loader(small_store, batch_size=4096)


def test_rank_outside_the_world_is_refused(small_store: StoreReader) -> None:
    with pytest.raises(ConfigError, match="rank 2, world_size 2"):
        build_loader(small_store, batch_size=4, rank=2, world_size=2)


def test_a_position_outside_the_epoch_is_refused(small_store: StoreReader) -> None:
    loader = build_loader(small_store, batch_size=4)
    with pytest.raises(ResumeError, match="position 99999 lies outside an epoch"):
        loader.load_state_dict({"epoch": 0, "position": 99999})


def test_buffers_are_reused_only_when_nothing_looks_at_them(small_store: StoreReader) -> None:
    loader = build_loader(small_store, batch_size=4, shuffle=False)
    first = next(iter(loader)).patches
    kept, before = first[0, 3], first[0, 3].clone()  # a view outlives its batch
    del first
    addresses = {batch.patches.data_ptr() for _ in range(3) for batch in loader}
    assert torch.equal(kept, before)
    assert len(addresses) < len(loader)


def test_threads_are_shared_by_the_ranks_of_this_machine_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [_default_threads(ranks) for ranks in (1, 4, 32)] == [16, 4, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # of 32 on four machines
    assert _default_threads(32) == 2


def test_auto_counts_what_is_selected_against_the_budget(
    small_store: StoreReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ecgfast_kernels.codec.cuda.is_built", lambda: True)
    monkeypatch.setattr("ecgfast.data.dali.build.is_installed", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 << 30)
    )
    budget = small_store.num_bytes / 2 / 2**30  # half of the store fits
    chosen = [
        choose_engine(small_store, count, torch.device("cuda"), budget)[0]
        for count in (len(small_store) // 2, len(small_store))
    ]
    assert chosen == ["resident", "dali"]
    assert choose_engine(small_store, len(small_store), torch.device("cuda"), None)[0] == "resident"
    assert choose_engine(small_store, 1, torch.device("cpu"), None)[0] == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that is asked for")
def test_a_gpu_that_is_not_there_is_said(small_store: StoreReader) -> None:
    with pytest.raises(BackendUnavailableError, match="'cuda' was asked for and this PyTorch sees"):
        build_loader(small_store, batch_size=1, device="cuda")


def test_a_batch_beyond_the_store_names_the_argument(small_store: StoreReader) -> None:
    with pytest.raises(ConfigError, match="widen the selection or lower batch_size"):
        build_loader(small_store, batch_size=4096)
