"""All engines: the same batches for any number of ranks, from any point at which a run stopped."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from changed_stores import flip_a_bit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import convert_quietly, make_store, write_cohort

from ecgfast.data.batch import Batch
from ecgfast.data.dali import build as dali_build
from ecgfast.data.loader import Loader, build_loader
from ecgfast.errors import CorruptStoreError
from ecgfast.store.format import CODECS
from ecgfast.store.reader import StoreReader, open_store
from ecgfast.vocabulary import Codec, EngineName

NUM_RECORDS, EPOCHS = 23, 3
ENGINES = ["cpu", "resident", *(["dali"] if dali_build.is_installed() else [])]


@pytest.fixture(scope="module", params=["ecgpack", "zstd"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    path, _ = make_store(tmp_path_factory.mktemp("store"), NUM_RECORDS, codec=request.param)
    return open_store(path)


def stream(loader: Loader) -> Iterator[Batch]:
    """Batches of one epoch after another, up to the end of the last."""
    while loader.state_dict()["epoch"] < EPOCHS:
        yield from loader


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.epoch, a.record_index.tolist()) == (b.epoch, b.record_index.tolist())
        assert torch.equal(a.patches.view(torch.int16), b.patches.view(torch.int16))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    engines=st.tuples(st.sampled_from(ENGINES), st.sampled_from(ENGINES)),
    world_size=st.integers(1, 3),
    batch_size=st.integers(1, 5),
    drop_last=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
    stop=st.integers(0, EPOCHS * NUM_RECORDS),
)
@pytest.mark.usefixtures("dali_cache")
def test_any_engine_goes_on_where_any_other_stopped(
    store: StoreReader,
    engines: tuple[str, str],
    world_size: int,
    batch_size: int,
    drop_last: bool,
    seed: int,
    stop: int,
) -> None:
    """Three epochs, every rank, compared with an unbroken run of engine cpu bit for bit."""
    for rank in range(world_size):

        def loader(engine: str, rank: int = rank) -> Loader:
            return build_loader(
                store,
                engine=engine,  # type: ignore[arg-type]  # cpu, dali or resident
                batch_size=batch_size,
                seed=seed,
                rank=rank,
                world_size=world_size,
                drop_last=drop_last,
                num_threads=2,
            )

        unbroken = list(stream(loader("cpu")))
        first, second = (loader(engine) for engine in engines)
        begun = list(itertools.islice(stream(first), stop))
        second.load_state_dict(first.state_dict())
        assert_equal(begun + list(stream(second)), unbroken)


@pytest.mark.usefixtures("dali_cache")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
def test_threads_change_nothing(store: StoreReader, engine: str, num_threads: int) -> None:
    expected = list(build_loader(store, engine="cpu", batch_size=4, num_threads=1))
    got = build_loader(store, engine=engine, batch_size=4, num_threads=num_threads)  # type: ignore[arg-type]  # cpu, dali or resident
    assert_equal(list(got), expected)


@pytest.mark.usefixtures("dali_cache")
@pytest.mark.parametrize("engine", ENGINES)
def test_batches_stay_what_they_were_while_the_engine_runs_on(
    store: StoreReader, engine: str
) -> None:
    loader = build_loader(store, engine=engine, batch_size=2)  # type: ignore[arg-type]  # cpu, dali or resident
    seen = [(batch.patches, batch.patches.clone()) for batch in stream(loader)]
    del loader
    assert all(torch.equal(kept, copy) for kept, copy in seen)


@pytest.mark.usefixtures("dali_cache")
@pytest.mark.parametrize("engine", ENGINES)
def test_holes_of_a_store_change_nothing(tmp_path: Path, engine: EngineName) -> None:
    """The same records in the same order, from arrays in which refused inputs left rows empty."""
    for name, torn in (("whole", []), ("holes", [0, 4, 5, 9])):
        signal = write_cohort(tmp_path / name / "in", 12)
        for number in (0, 4, 5, 9):
            path = tmp_path / name / f"in/r{number:05d}.dat"
            path.write_bytes(b"") if number in torn else path.with_suffix(".hea").unlink()
        convert_quietly([tmp_path / name / "in"], tmp_path / name / "store")
    whole, holes = (open_store(tmp_path / name / "store") for name in ("whole", "holes"))
    assert (len(whole), whole.num_slots, len(holes), holes.num_slots) == (8, 8, 8, 12)
    assert (holes.read(range(8)) == signal[[1, 2, 3, 6, 7, 8, 10, 11]]).all()
    expected = stream(build_loader(whole, engine="cpu", batch_size=3, seed=5))
    got = stream(build_loader(holes, engine=engine, batch_size=3, seed=5))
    assert_equal(list(got), list(expected))


@pytest.mark.parametrize("codec", CODECS)
def test_engine_cpu_names_a_damaged_record(tmp_path: Path, codec: Codec) -> None:
    path, _ = make_store(tmp_path, 8, codec=codec)
    flip_a_bit(path, 6)
    with pytest.raises(CorruptStoreError, match=r"record 6 in .*is damaged"):
        list(build_loader(open_store(path), engine="cpu", batch_size=4))


def test_a_dali_that_cannot_be_built_leaves_auto_with_engine_cpu(
    store: StoreReader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a machine with DALI, a store beyond the budget and no compiler."""
    if not dali_build.is_installed():
        pytest.skip("DALI is not installed")
    monkeypatch.setattr("ecgfast.data.loader.choose_engine", lambda *_: ("dali", "too large"))
    monkeypatch.setattr("ecgfast.data.dali.build.search_path", lambda: "/nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(store.path.parent / "empty-cache"))
    loader = build_loader(store, engine="auto", batch_size=4)
    assert "cpu instead of dali" in caplog.text
    assert "needs cmake" in caplog.text
    assert len(list(loader)) == NUM_RECORDS // 4
