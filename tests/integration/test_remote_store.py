"""Stores that convert makes behind an address: the bytes of a local one, or no store yet."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from recordings import KEY, convert_quietly, snapshot, write_cohort
from s3_server import Fault, between, bucket

import ecgfast
from ecgfast.convert import convert, convert_units, plan_convert, remote, seal_convert
from ecgfast.convert import seal as sealing
from ecgfast.convert.plan import ConvertOptions, read_plan
from ecgfast.errors import BusyError, ConfigError, EcgfastError, FormatError
from ecgfast.store.objects import BrokenConnectionError, Objects, objects_at
from ecgfast.store.verify import verify_store

obstore = pytest.importorskip("obstore", reason="obstore is not installed")
SHARD = "signals.zarr/signal/c.0.0.0"


def write_inputs(folder: Path) -> Path:
    """Three units, of few signal files; some inputs are refused."""
    write_cohort(folder, 3)
    headers = [path.read_text() for path in sorted(folder.glob("*.hea"))]
    for number in range(3, 2060):
        (folder / f"r{number:05d}.hea").write_text(headers[number % 3])
    (folder / "bad.hea").write_text("nonsense")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("source") / "in")


@pytest.fixture(scope="module")
def local(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "store"
    convert_quietly([source], out)
    return out


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """One unit."""
    write_cohort(tmp_path / "few", 6)
    return tmp_path / "few"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_text(KEY)
    return tmp_path / "key"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


BESIDE = {"store.sources.csv", "store.fingerprints"}


def test_the_bytes_are_those_of_a_local_store(
    source: Path, local: Path, key: Path, here: Path, tmp_path: Path
) -> None:
    made = tmp_path / "bucket/store"
    summary = convert([source], made.as_uri(), key_file=key, workers=2)
    assert str(summary).startswith("2,061 inputs = 2,060 converted + 1 quarantined; 2,060 records")
    assert f"in {made.as_uri()}" in str(summary)
    assert snapshot(made) == snapshot(local)
    assert names(here) == BESIDE
    assert names(made.parent) == {"store"}
    sources = (here / "store.sources.csv").read_bytes()
    assert sources == local.with_name("store.sources.csv").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert convert([source], made.as_uri(), key_file=key, workers=2) == summary
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    assert names(here) == BESIDE


def test_a_finished_store_is_left_alone(few: Path, key: Path, here: Path, tmp_path: Path) -> None:
    url = (tmp_path / "bucket/store").as_uri()
    convert([few], url, key_file=key, workers=1)
    before = snapshot(tmp_path / "bucket")
    with pytest.raises(ConfigError, match=f"--out {url} holds a finished store made from other"):
        convert([few], url, key_file=key, workers=1, window="all")
    assert convert_units(url) == 0
    assert seal_convert(url).num_records == 6
    assert snapshot(tmp_path / "bucket") == before
    assert names(here) == BESIDE


def test_machines_that_share_the_current_folder(
    source: Path,
    local: Path,
    key: Path,
    here: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = (tmp_path / "bucket/store").as_uri()
    plan = plan_convert([source], url, ConvertOptions(), key_file=key)
    assert plan is not None
    assert len(plan.units) == 3
    assert convert_units(url, part=(1, 2), workers=1) == 1
    monkeypatch.setattr(sealing, "_PATIENCE_S", 0.0)
    with pytest.raises(EcgfastError, match="2 of 3 units are missing"):
        seal_convert(url)
    assert convert_units(url, part=(0, 2), workers=1) == 2
    assert not list((here / "store").rglob("c.*")), "files of shards are still here"
    seal_convert(url)
    assert snapshot(tmp_path / "bucket/store") == snapshot(local)
    assert names(here) == BESIDE


def test_labels_are_joined_before_the_store_is_put(
    few: Path, key: Path, here: Path, tmp_path: Path
) -> None:
    lines = [f"r{number:05d},{30 + 5 * number}" for number in range(6)]
    (tmp_path / "echo.csv").write_text("record_id,ejection_fraction\n" + "\n".join(lines) + "\n")
    made = tmp_path / "bucket/store"
    (tmp_path / "wrong.csv").write_text("record_id,ejection_fraction\nnobody,30\n")
    with pytest.raises(ConfigError):
        convert([few], made.as_uri(), key_file=key, workers=1, labels=tmp_path / "wrong.csv")
    assert not (made / "manifest.json").exists()
    convert([few], made.as_uri(), key_file=key, workers=1, labels=tmp_path / "echo.csv")
    convert_quietly([few], tmp_path / "other/store", labels=tmp_path / "echo.csv")
    assert snapshot(made) == snapshot(tmp_path / "other/store")


def test_a_store_is_transcoded_there(local: Path, here: Path, tmp_path: Path) -> None:
    convert([local], (tmp_path / "bucket/plain").as_uri(), codec="none", workers=1)
    convert([local], tmp_path / "plain", codec="none", workers=1)
    assert snapshot(tmp_path / "bucket/plain") == snapshot(tmp_path / "plain")


@pytest.mark.parametrize("name", ["records.parquet", "manifest.json"])
def test_an_interrupted_seal_leaves_no_store(
    name: str,
    few: Path,
    key: Path,
    here: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, put = tmp_path / "bucket/store", Objects.put

    def breaks(self: Objects, each: str, *rest: object, **more: object) -> bool:
        if each == name:
            raise BrokenConnectionError("gone")
        return put(self, each, *rest, **more)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(Objects, "put", breaks)
    with pytest.raises(EcgfastError, match="gone"):
        convert([few], made.as_uri(), key_file=key, workers=1)
    monkeypatch.undo()
    monkeypatch.chdir(here)
    with pytest.raises(FormatError, match=r"no manifest\.json"):
        ecgfast.open_store(made.as_uri())
    convert([few], made.as_uri(), key_file=key, workers=1)
    convert_quietly([few], tmp_path / "other/store")
    assert snapshot(made) == snapshot(tmp_path / "other/store")
    assert names(here) == BESIDE
    assert names(made.parent) == {"store"}


def test_another_plan_may_not_make_the_same_store(
    few: Path, key: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "bucket/store"
    plan_convert([few], made.as_uri(), ConvertOptions(), key_file=key)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")  # as another machine
    with pytest.raises(BusyError, match=r"is being made by another convert.*remove .*\.convert"):
        convert([few], made.as_uri(), key_file=key, workers=1, window="all")
    assert not list(made.rglob("c.*"))
    monkeypatch.chdir(tmp_path)
    convert([few], made.as_uri(), key_file=key, workers=1)  # the same plan: the same bytes
    monkeypatch.chdir(here)
    assert convert([few], made.as_uri(), key_file=key, workers=1).num_records == 6
    convert_quietly([few], tmp_path / "other/store")
    assert snapshot(made) == snapshot(tmp_path / "other/store")
    assert names(made.parent) == {"store"}


def test_a_store_that_another_convert_finished_between_two_looks(
    few: Path, key: Path, here: Path, tmp_path: Path
) -> None:
    url = (tmp_path / "bucket/store").as_uri()
    plan_convert([few], url, ConvertOptions(), key_file=key)
    objects_at(url).put("manifest.json", b"{}")
    with pytest.raises(BusyError, match="was finished by another convert meanwhile"):
        remote.claim(read_plan(here / "store"))
    assert names(tmp_path / "bucket") == {"store", "store.convert"}


def test_what_is_refused(few: Path, key: Path, here: Path, tmp_path: Path) -> None:
    url = (tmp_path / "bucket/store").as_uri()
    for out, options, text in (
        ("https://server/store", {"key_file": key}, "--out must be a folder, or an address such"),
        ("s3://bucket", {"key_file": key}, "such as s3://BUCKET/STORE"),
        (url, {}, "needs --key-file, a file that you keep"),
        (url, {"key_file": key, "append": True}, "--append needs a store in a folder"),
    ):
        with pytest.raises(ConfigError, match=text):
            convert([few], out, workers=1, **options)
    (tmp_path / "bucket/store").mkdir(parents=True)
    (tmp_path / "bucket/store/notes.txt").touch()
    with pytest.raises(ConfigError, match=r"is neither empty nor a store, got notes\.txt in it"):
        convert([few], url, key_file=key, workers=1)
    assert names(tmp_path / "bucket/store") == {"notes.txt"}


@pytest.mark.parametrize("other", ["finished", "planned", "its table"])
def test_another_store_of_that_name_here_stays_as_it_is(
    other: str, few: Path, key: Path, here: Path, tmp_path: Path
) -> None:
    if other == "planned":
        plan_convert([few], here / "store", ConvertOptions(), key_file=key)
    elif other == "finished":
        convert([few], here / "store", key_file=key, workers=1)
    else:
        (here / "store.sources.csv").write_text("mine")
    before = snapshot(here)
    with pytest.raises(ConfigError, match="under the name store: use another folder"):
        convert([few], (tmp_path / "bucket/store").as_uri(), key_file=key, workers=1)
    assert snapshot(here) == before


def test_a_folder_of_the_name_of_what_is_made_elsewhere(
    few: Path, key: Path, here: Path, tmp_path: Path
) -> None:
    url = (tmp_path / "bucket/store").as_uri()
    plan_convert([few], url, ConvertOptions(), key_file=key)
    with pytest.raises(EcgfastError, match=f"was begun with url = {url}, got ;"):
        convert([few], here / "store", key_file=key, workers=1)


def test_what_arrives_damaged_twice(
    few: Path, key: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, put = tmp_path / "bucket/store", Objects.put

    def flips(self: Objects, name: str, content: bytes | Path, *, create: bool = False) -> bool:
        if name == SHARD and isinstance(content, Path):
            content = content.read_bytes()[:-1] + b"x"
        return put(self, name, content, create=create)

    monkeypatch.setattr(Objects, "put", flips)
    with pytest.raises(EcgfastError, match=r"c\.0\.0\.0 was put there 2 times and read back with"):
        convert([few], made.as_uri(), key_file=key, workers=1)
    monkeypatch.undo()
    monkeypatch.chdir(here)
    convert([few], made.as_uri(), key_file=key, workers=1)
    assert verify_store(made.as_uri()) == []


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    pytest.importorskip("moto.server", reason="moto is not installed")
    with bucket("ecg") as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables


def started(
    source: Path, url: str, key: Path, here: Path, *words: str, endpoint: str = ""
) -> subprocess.Popen[str]:
    here.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "ecgfast", "convert", str(source), "--out", url, *words]
    environment = os.environ | ({"AWS_ENDPOINT": endpoint} if endpoint else {})
    return subprocess.Popen(
        [*command, "--key-file", str(key)],
        cwd=here,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def fetched(url: str, out: Path) -> dict[str, bytes]:
    from ecgfast.store.fetch import fetch_store

    return snapshot(fetch_store(url, out))


@pytest.mark.slow
def test_a_convert_to_s3_that_is_killed_again_and_again(
    source: Path, local: Path, key: Path, s3: dict[str, str], tmp_path: Path
) -> None:
    url, here, draw = "s3://ecg/killed/store", tmp_path / "here", random.Random(7)
    kills = 0
    while kills < 40:
        process = started(source, url, key, here, "--workers", "2")
        try:
            error = process.communicate(timeout=draw.uniform(2, 6) + kills)[1]
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            assert objects_at(url).size("manifest.json") is None or not (here / "store").exists()
    assert process.returncode == 0, error
    assert kills > 0, "it was done before it could be killed"
    assert fetched(url, tmp_path / "copy") == snapshot(local)
    assert names(here) == BESIDE
    assert not [name for name in objects_at("s3://ecg/killed").names() if "convert" in name]


@pytest.mark.slow
def test_two_converts_at_once(
    source: Path, local: Path, key: Path, s3: dict[str, str], tmp_path: Path
) -> None:
    same, url = "s3://ecg/two/store", "s3://ecg/other/store"
    both = [started(source, same, key, tmp_path / name) for name in ("one", "two")]
    errors = [process.communicate()[1] for process in both]
    assert 0 in [process.returncode for process in both], errors
    for process, error in zip(both, errors, strict=True):
        assert process.returncode == 0 or "finished by another convert" in error, error
    assert fetched(same, tmp_path / "copy") == snapshot(local)
    first = started(source, url, key, tmp_path / "three")
    while objects_at("s3://ecg/other").size("store.convert") is None:
        assert first.poll() is None
        time.sleep(0.01)
    second = started(source, url, key, tmp_path / "four", "--window", "all")
    error, _ = second.communicate()[1], first.communicate()
    assert (second.returncode, first.returncode) == (2, 0), error
    assert "is being made by another convert" in error
    assert fetched(url, tmp_path / "copy 2") == snapshot(local)


def once(command: str, kind: str) -> Fault:
    """The first request for each object of a store goes wrong."""

    def fault(method: str, path: str, before: int) -> str:
        return kind if method == command and "store/" in path and before < 1 else ""

    return fault


@pytest.mark.slow
@pytest.mark.parametrize(("command", "kind"), [("PUT", "503"), ("GET", "torn"), ("PUT", "wrong")])
def test_faults_on_the_way(
    command: str, kind: str, few: Path, key: Path, s3: dict[str, str], tmp_path: Path
) -> None:
    url = f"s3://ecg/{command}-{kind}/store"
    with between(s3["AWS_ENDPOINT"], once(command, kind)) as endpoint:
        process = started(few, url, key, tmp_path / "here", "--workers", "1", endpoint=endpoint)
        _, error = process.communicate()
    convert_quietly([few], tmp_path / "local/store")
    assert process.returncode == 0, error
    assert fetched(url, tmp_path / "copy") == snapshot(tmp_path / "local/store")
