"""Units of work: whoever does them, in whatever order and however often, the bytes are the same."""

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from convert_child import alive, beside, child, children_of, finish, is_worker, write_source
from recordings import KEY, convert_quietly, snapshot, write_wfdb

import ecgfast
from ecgfast.convert import ConvertOptions, convert_units, plan_convert, seal_convert
from ecgfast.convert import seal as sealing
from ecgfast.convert.units import convert_unit
from ecgfast.errors import ConfigError, EcgfastError, ResumeError
from ecgfast.records import INVALID
from ecgfast.store.verify import verify_store

# SHA-256 of files of `write_whole_numbers`' store, as commit 996fe0c wrote them in format 1.
FORMAT_1 = {
    "signal/c.0.0.0": "a107971cc7b474bd6a3cd74c8cd71adb0099c074eb2b50313ae58c2dd7baefea",
    "signal/c.1.0.0": "408321deff64c1280f647a638c3d967a518ba2d2186da179ec037e7dd8c8032a",
    "scale_uv/c.1.0": "64d2481383b867b11840d32d426ac6d8725d412fdcf3103f1b68832b2eacaa1f",
    "lead_mean/c.0.0": "1c1889f6e99cb6dd176e0c31ed669313b5d351142367e1985894bb6fc24c482c",
    "lead_std/c.1.0": "2775da4f46af0b368828ac4c65f1d3d3c0a91847c11c7ad50496970e2b9217d4",
}


def whole_numbers(number: int) -> np.ndarray:
    """(12, 5000) int16 that no rounding decides: the same on every machine."""
    steps = np.arange(12 * 5000, dtype=np.int64).reshape(12, 5000) + 977 * number
    return ((steps * 2_654_435_761 >> 7) % 41 + (steps * steps // 7919) % 300 - 150).astype(
        np.int16
    )


def write_whole_numbers(folder: Path) -> Path:
    """1,100 headers over four signal files, two units, none refused."""
    for number in range(4):
        write_wfdb(folder / f"d{number}", whole_numbers(number))
    headers = [(folder / f"d{number}.hea").read_text() for number in range(4)]
    for number in range(1096):
        (folder / f"r{number:04d}.hea").write_text(headers[number % 4])
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def serial(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("serial") / "store"
    convert_quietly([source], out)
    return beside(out)


def test_without_refusals_the_files_are_those_of_format_1(tmp_path: Path) -> None:
    convert_quietly([write_whole_numbers(tmp_path / "in")], tmp_path / "store")
    signals = tmp_path / "store/signals.zarr"
    assert {name: digest(signals / name) for name in FORMAT_1} == FORMAT_1
    assert ecgfast.open_store(tmp_path / "store").num_slots == 1100


class Reversed(ThreadPoolExecutor):
    """Does what it is given from the last to the first, when it is given enough."""

    def __init__(self, enough: int) -> None:
        super().__init__(1)
        self._enough, self._held = enough, list[tuple[Future[Any], tuple[Any, ...]]]()

    def submit(self, *call: Any, **_: Any) -> Future[Any]:
        self._held.append((Future(), call))
        if len(self._held) == self._enough:
            for future, (function, *args) in reversed(self._held):
                super().submit(self._do, future, function, args)
        return self._held[-1][0]

    def _do(self, future: Future[Any], function: Callable[..., Any], args: list[Any]) -> None:
        try:
            future.set_result(function(*args))
        except Exception as error:  # as every executor: who waits raises it
            future.set_exception(error)


def spawned(workers: int) -> Executor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def loky() -> Executor:
    from joblib.externals.loky import ProcessPoolExecutor as Loky

    executor: Executor = Loky(2)
    return executor


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(lambda: Reversed(3), id="reversed"),
        pytest.param(lambda: ThreadPoolExecutor(3), id="three threads"),
        pytest.param(lambda: spawned(1), id="one process"),
        pytest.param(lambda: spawned(3), id="three processes"),
        pytest.param(loky, id="loky"),
    ],
)
def test_any_executor_gives_the_same_bytes(
    engine: Callable[[], Executor], source: Path, serial: dict[str, bytes], tmp_path: Path
) -> None:
    with engine() as executor:
        convert_quietly([source], tmp_path / "run/store", executor=executor, workers=None)
    assert beside(tmp_path / "run/store") == serial


@pytest.mark.slow  # a scheduler and two workers take ten seconds to start
def test_dask_gives_the_same_bytes(source: Path, serial: dict[str, bytes], tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor(pure=False, retries=3)
        convert_quietly([source], tmp_path / "run/store", executor=executor, workers=None)
    assert beside(tmp_path / "run/store") == serial


def planned(source: Path, out: Path) -> Path:
    out.parent.mkdir()
    out.with_name("store.key").write_text(KEY)
    out.with_name("store.key").chmod(0o600)
    assert plan_convert([source], out, ConvertOptions()) is not None
    return out


def test_parts_of_which_two_are_done_twice_at_once(
    source: Path, serial: dict[str, bytes], tmp_path: Path
) -> None:
    out = planned(source, tmp_path / "run/store")
    with pytest.raises(ConfigError, match="--part must be I/N with 0 <= I < N, got 3/3"):
        convert_units(out, part=(3, 3))
    code = (
        "import sys\nfrom ecgfast.convert import convert_units\n"
        "convert_units(sys.argv[1], part=(int(sys.argv[2]), 3), workers=1)"
    )
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, str(out), str(part)])
        for part in (0, 0, 1, 2, 2)
    ]
    assert [job.wait(timeout=300) for job in jobs] == [0] * 5
    summary = seal_convert(out)
    assert (summary.num_inputs, summary.num_records) == (2320, 2300)
    assert beside(out) == serial
    assert convert_units(out) == 0
    assert seal_convert(out) == summary


def test_a_seal_names_the_units_that_are_missing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = planned(source, tmp_path / "run/store")
    monkeypatch.setattr(sealing, "_PATIENCE_S", 0.0)
    convert_units(out, part=(1, 3), workers=1)
    with pytest.raises(EcgfastError, match=r"2 of 3 units are missing: 0, 2; run .* --stage units"):
        seal_convert(out)
    assert not (out / "manifest.json").exists()
    convert_units(out, part=(0, 2), workers=1)
    assert seal_convert(out).num_records == 2300
    with pytest.raises(ResumeError, match="has no plan"):  # a twin that comes too late
        convert_unit(out, 0)


def test_a_seal_waits_for_a_share_that_shows_files_late(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = planned(source, tmp_path / "run/store")
    convert_units(out, workers=1)
    caplog.set_level("INFO", "ecgfast")
    unit = tmp_path / "run/store.convert/unit-000001.arrow"
    unit.rename(tmp_path / "late")
    later = threading.Timer(0.5, (tmp_path / "late").rename, [unit])
    later.start()
    assert seal_convert(out).num_records == 2300
    assert caplog.text.count("waiting up to 60 s for 1 of 3 units") == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("plan.json", '"numpy": "1.0"', r"was begun with numpy 1\.0, here is .*; install that one"),
        ("key", "6f" * 32, "was begun with key = "),
    ],
)
def test_another_version_or_key_is_refused_before_it_writes(
    source: Path, tmp_path: Path, file: str, text: str, message: str
) -> None:
    out = planned(source, tmp_path / "run/store")
    if file == "key":
        out.with_name("store.key").write_text(text)
    else:
        plan = out.with_name("store.convert") / file
        plan.write_text(plan.read_text().replace(f'"numpy": "{np.__version__}"', text))
    before = snapshot(tmp_path / "run")
    with pytest.raises(ResumeError, match=message):
        convert_units(out, workers=1)
    assert snapshot(tmp_path / "run") == before


@pytest.fixture(scope="module")
def torn(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 % of the headers torn, and all of the second unit."""
    folder = tmp_path_factory.mktemp("torn") / "part"
    folder.mkdir()
    for path in (source / "part").iterdir():
        os.link(path, folder / path.name)
    headers = sorted(folder.glob("r*.hea"))
    for path in {*random.Random(0).sample(headers, 70), *headers[1024:2048]}:
        path.unlink()
        path.write_text("torn")
    return folder.parent


def test_holes_read_as_invalid_and_records_as_their_files(torn: Path, tmp_path: Path) -> None:
    convert_quietly([torn], tmp_path / "a/store")
    convert_quietly([torn], tmp_path / "b/store", workers=2)
    assert beside(tmp_path / "a/store") == beside(tmp_path / "b/store")
    store = ecgfast.open_store(tmp_path / "a/store")
    assert verify_store(store.path) == []
    assert not (store.path / "signals.zarr/signal/c.1.0.0").exists()
    group = zarr.open_group(store.path / "signals.zarr", mode="r")
    rows = store.records["row"].to_pylist()
    assert group.attrs["holes"] == 2320 - len(rows) == store.num_slots - len(store)
    holes = sorted({*range(2320)} - {*rows})
    assert {1024, 2047} <= {*holes}
    for hole in holes[::97]:
        assert (group["signal"][hole] == INVALID).all()
    for record in (0, 500, len(rows) - 1):
        name = f"part/r{rows[record]:05d}"
        data = np.fromfile(torn / f"part/d{signal_file(torn / name)}.dat", "<i2").reshape(-1, 12).T
        np.testing.assert_array_equal(store.read([record])[0], data)
        np.testing.assert_array_equal(group["signal"][rows[record]], data)
        np.testing.assert_array_equal(group["lead_std"][rows[record]], store.lead_std[record])


def signal_file(record: Path) -> str:
    return record.with_suffix(".hea").read_text().splitlines()[1].split()[0][1:-4]


def test_a_recording_can_lie_in_two_units(tmp_path: Path) -> None:
    """1,020 records of one window, then one of 9 windows, of which the fourth is refused."""
    signal = np.concatenate([whole_numbers(n) for n in range(9)], axis=1)
    signal[:, 15_100:15_400] = INVALID
    write_wfdb(tmp_path / "in/long", signal)
    write_wfdb(tmp_path / "in/a", whole_numbers(3))
    header = (tmp_path / "in/a.hea").read_text()
    for number in range(1019):
        (tmp_path / f"in/a{number:04d}.hea").write_text(header)
    summary = convert_quietly([tmp_path / "in"], tmp_path / "a/store", window="all", workers=2)
    assert (summary.num_inputs, summary.num_converted, summary.num_records) == (1021, 1021, 1028)
    with Reversed(2) as executor:
        convert_quietly(
            [tmp_path / "in"], tmp_path / "b/store", window="all", executor=executor, workers=None
        )
    assert beside(tmp_path / "a/store") == beside(tmp_path / "b/store")
    store = ecgfast.open_store(tmp_path / "a/store")
    assert store.records["row"].to_pylist()[1019:] == [1019, 1020, 1021, 1022, *range(1024, 1029)]
    starts = [0, 5000, 10_000, 20_000, 25_000, 30_000, 35_000, 40_000]
    assert store.records["start_timestep"].to_pylist()[1020:] == starts
    for record, start in enumerate(starts, 1020):
        np.testing.assert_array_equal(store.read([record])[0], signal[:, start : start + 5000])


@pytest.mark.slow  # ten converts, each killed some times
def test_workers_and_parents_killed_at_any_moment(torn: Path, tmp_path: Path) -> None:
    convert_quietly([torn], tmp_path / "whole/store")
    expected, rng, kills = beside(tmp_path / "whole/store"), random.Random(3), 0
    for number in range(10):
        out = tmp_path / f"run{number}/store"
        out.parent.mkdir()
        patience = 2.5
        while True:
            with child(torn, out) as process:
                try:
                    process.wait(timeout=rng.uniform(0.3, patience))
                except subprocess.TimeoutExpired:
                    workers = [pid for pid in children_of(process.pid) if is_worker(pid)]
                    victim = rng.choice([process.pid, *workers])
                    os.kill(victim, 9)
                    kills += 1
                code, errors = finish(process)
            if code == 0:
                break
            assert code == -9 or errors.splitlines()[-1].startswith("a worker process was killed")
            patience *= 1.2
        assert beside(out) == expected
    assert kills >= 10


@pytest.fixture
def killed(source: Path, tmp_path: Path) -> set[int]:
    """Children of a convert that was killed when its workers were at work."""
    out = tmp_path / "run/store"
    out.parent.mkdir()
    with child(source, out, workers=2) as process:
        workers: set[int] = set()
        while len(workers) < 2:
            assert process.poll() is None, finish(process)
            workers = {pid for pid in children_of(process.pid) if is_worker(pid)}
        while not list((out / "signals.zarr/signal").glob(".c.*.tmp")):
            assert process.poll() is None, finish(process)
        process.kill()
        process.communicate()
    return workers


def test_no_orphan_outlives_a_killed_parent_by_two_seconds(killed: set[int]) -> None:
    until = time.monotonic() + 2
    while any(map(alive, killed)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in killed if alive(pid)]
