"""A store in an S3 (of moto, on this machine): copied whole, and completed after a kill."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import good_inputs
import pytest
from recordings import convert_quietly, snapshot, write_cohort
from s3_server import bucket

import ecgfast

obstore = pytest.importorskip("obstore", reason="obstore is not installed")
pytest.importorskip("moto.server", reason="moto is not installed")
pytestmark = pytest.mark.slow  # a server, and processes


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards, so that a kill can come between them."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder / "in", 2)
    header = (folder / "in/r00000.hea").read_text()
    for number in range(2, 2060):
        (folder / f"in/r{number:05d}.hea").write_text(header)
    convert_quietly([folder / "in"], folder / "store")
    return folder / "store"


@pytest.fixture(scope="module")
def environment(store: Path) -> Iterator[dict[str, str]]:
    """Variables that lead to the bucket ecg, which holds the store under cohorts/one."""
    with bucket("ecg") as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        cohort = obstore.store.from_url("s3://ecg/cohorts/one")
        for path in store.rglob("*"):
            if path.is_file():
                obstore.put(cohort, path.relative_to(store).as_posix(), path)
        yield os.environ | variables


def fetch(url: str, out: Path) -> list[str]:
    return [sys.executable, "-m", "ecgfast", "fetch", url, str(out)]


def test_a_store_in_s3_is_copied(store: Path, environment: dict[str, str], tmp_path: Path) -> None:
    command = fetch("s3://ecg/cohorts/one", tmp_path / "copy")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "every file is what s3://ecg/cohorts/one lists" in done.stdout
    assert snapshot(tmp_path / "copy") == snapshot(store)


def test_a_copy_that_was_killed_is_completed(
    store: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    out, work = tmp_path / "copy", tmp_path / "copy.fetch"
    process = subprocess.Popen(fetch("s3://ecg/cohorts/one", out), env=environment)
    while not (work / "shards.parquet").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists(), "it was done before it could be killed"
    subprocess.run(fetch("s3://ecg/cohorts/one", out), env=environment, check=True)
    assert snapshot(out) == snapshot(store)
    assert not work.exists()


CACHED = """
import sys
from pathlib import Path
from ecgfast.store.fetch import cached_store
print(cached_store(Path("s3://ecg/cohorts/one"), Path(sys.argv[1])))
"""


def test_a_cache_that_was_killed_is_completed(
    store: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", CACHED, str(tmp_path)]
    process = subprocess.Popen(command, env=environment)
    while not list(tmp_path.glob("*/*.fetch/shards.parquet")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("*/one")), "it was done before it could be killed"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert snapshot(Path(done.stdout.strip())) == snapshot(store)
    assert [path.name for path in tmp_path.glob("*/*")] == ["one"]


def test_records_are_read_from_s3(store: Path, environment: dict[str, str]) -> None:
    code = "import ecgfast; print(ecgfast.open_store('s3://ecg/cohorts/one').read([1, 0]).sum())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == ecgfast.open_store(store).read([0, 1]).sum()


def test_a_convert_reads_s3(environment: dict[str, str], tmp_path: Path) -> None:
    """Recordings of one, two and more files: XML, an array and its sidecar, WFDB, its segments."""
    for write in (good_inputs.segments, good_inputs.npy, good_inputs.muse_xml):
        (tmp_path / "in" / write.__name__).mkdir(parents=True)
        write(tmp_path / "in" / write.__name__)
    write_cohort(tmp_path / "in/deep/er", 3)
    exports = obstore.store.from_url("s3://ecg/exports")
    for path in (tmp_path / "in").rglob("*"):
        if path.is_file():
            obstore.put(exports, path.relative_to(tmp_path / "in").as_posix(), path)
    convert_quietly([tmp_path / "in"], tmp_path / "local")
    shutil.copy(tmp_path / "local.key", tmp_path / "cloud.key")
    words = ["convert", "s3://ecg/exports", "--out", str(tmp_path / "cloud"), "--workers", "2"]
    subprocess.run([sys.executable, "-m", "ecgfast", *words], env=environment, check=True)
    local, cloud = snapshot(tmp_path / "local"), snapshot(tmp_path / "cloud")
    assert {name for name in local if local[name] != cloud.get(name)} == {"manifest.json"}
    assert local.keys() == cloud.keys()
    sources = (tmp_path / "cloud.sources.csv").read_text()
    assert "s3://ecg/exports/deep/er/r00000.hea" in sources


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("s3://ecg/cohorts/two", "error: there is no s3://ecg/cohorts/two/manifest.json"),
        ("s3://nobody/one", "error: (there is no )?s3://nobody/one/manifest.json"),
    ],
)
def test_where_no_store_is(
    url: str, text: str, environment: dict[str, str], tmp_path: Path
) -> None:
    command = fetch(url, tmp_path / "copy")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search(text, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
