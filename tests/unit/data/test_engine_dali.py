"""Engine dali with its CPU operator: built from clean, the bits of engine cpu, exact resume."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from damage import flip_a_bit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import make_store

from ecgfast.data import dali_plugin, toolchain
from ecgfast.data.batch import Batch
from ecgfast.data.loader import Loader, build_loader
from ecgfast.errors import BackendUnavailableError, CorruptStoreError
from ecgfast.store.reader import StoreReader, open_store

pytest.importorskip("nvidia.dali")
CPU_TARGET = dali_plugin.Target(dali="0", cuda="cpu", arch="")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One build for all test processes of a run, and none in the user's own cache."""
    return tmp_path_factory.getbasetemp().parent / "dali-cache"


@pytest.fixture(autouse=True)
def _use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module", params=["ecgpack", "zstd"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StoreReader:
    path, _ = make_store(tmp_path_factory.mktemp("store"), 23, codec=request.param)
    return open_store(path)


def loaders(store: StoreReader, **options: object) -> tuple[Loader, Loader]:
    shared = {"batch_size": 4, "seed": 7, "num_threads": 2, **options}
    return tuple(build_loader(store, engine=name, **shared) for name in ("cpu", "dali"))  # type: ignore[arg-type,return-value]


def assert_equal(first: Sequence[Batch], second: Sequence[Batch]) -> None:
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.patches.view(torch.int16), b.patches.view(torch.int16))
        assert a.record_index.tolist() == b.record_index.tolist()
        assert a.epoch == b.epoch


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_three_epochs_have_the_bits_of_engine_cpu(store: StoreReader, world_size: int) -> None:
    for rank in range(world_size):
        cpu, dali = loaders(store, rank=rank, world_size=world_size, batch_size=3)
        for _ in range(3):
            assert_equal(list(cpu), list(dali))


def test_a_short_last_batch(store: StoreReader) -> None:
    cpu, dali = loaders(store, batch_size=10, drop_last=False)
    batches = list(dali)
    assert [len(batch.patches) for batch in batches] == [10, 10, 3]
    assert_equal(list(cpu), batches)


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(consumed=st.integers(0, 5))
def test_a_pipeline_rebuilt_in_mid_epoch_goes_on_exactly(store: StoreReader, consumed: int) -> None:
    unbroken, dali = loaders(store)
    expected = list(unbroken) + list(unbroken)
    batches = iter(dali)
    begun = [next(batches) for _ in range(consumed)]
    _, resumed = loaders(store)
    resumed.load_state_dict(dali.state_dict())
    assert_equal(expected, begun + list(resumed) + list(resumed))


def test_batches_stay_what_they_were_while_the_pipeline_runs_on(store: StoreReader) -> None:
    cpu, dali = loaders(store, batch_size=2)
    assert_equal(list(cpu), list(dali))  # all batches are kept, DALI's buffers are reused


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path, _ = make_store(tmp_path, 8)
    flip_a_bit(path, 6)
    _, dali = loaders(open_store(path), shuffle=False)
    with pytest.raises(CorruptStoreError, match="record 6 is damaged"):
        list(dali)


def test_a_build_from_clean_and_the_second_call_builds_nothing(tmp_path: Path) -> None:
    target = dali_plugin.find_target(None)
    library = dali_plugin.build_plugin(target, tmp_path)
    built_at = library.stat().st_mtime_ns
    assert dali_plugin.build_plugin(target, tmp_path) == library
    assert library.stat().st_mtime_ns == built_at
    assert target.dali in library.parent.name
    leftovers = {path.name for path in tmp_path.iterdir()}
    assert leftovers == {library.parent.name, f"{library.parent.name}.lock"}


def test_another_target_has_another_folder() -> None:
    folders = {
        dali_plugin.Target(dali=dali, cuda=cuda, arch=arch).folder
        for dali, cuda, arch in [
            ("2.4.0", "13", "90"),
            ("2.4.0", "13", "80"),
            ("2.5.0", "13", "90"),
        ]
    }
    assert len(folders | {CPU_TARGET.folder}) == 4


def test_without_cmake_the_message_names_it_and_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "search_path", lambda: str(tmp_path))
    with pytest.raises(BackendUnavailableError, match=r"needs cmake.*pip install cmake"):
        dali_plugin.build_plugin(dali_plugin.find_target(None), tmp_path)


def test_a_failed_build_tells_what_the_compiler_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(BackendUnavailableError, match=r"could not be built: .*take engine=cpu"):
        dali_plugin.build_plugin(CPU_TARGET, tmp_path)
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.slow
def test_the_gpu_backend_builds_and_registers_without_a_gpu(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    found = dali_plugin.find_target(None)
    target = dali_plugin.Target(dali=found.dali, cuda="13", arch="90")
    library = dali_plugin.build_plugin(target, tmp_path)
    assert library.parent.name.startswith(f"dali-{found.dali}-cuda-13-sm90-")
    program = (
        "import sys; from nvidia.dali import ops, plugin_manager as m; m.load_library(sys.argv[1]);"
        "assert 'EcgDecode' in ops.cpu_ops() and 'EcgDecode' in ops.gpu_ops()"
    )
    subprocess.run([sys.executable, "-c", program, str(library)], check=True)
