"""Sources in object storage give the store that the same folder gives, and leave nothing behind."""

import errno
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import good_inputs
import pytest
from recordings import convert_quietly, ecg_like, snapshot, write_cohort, write_wfdb

from ecgfast.convert import ConvertOptions, convert_units, plan_convert, seal_convert
from ecgfast.errors import EcgfastError, FormatError
from ecgfast.ingest import InputFile, staging
from ecgfast.ingest.inventory import Inventory, walk
from ecgfast.ingest.staging import staged
from ecgfast.store.objects import Objects

pytest.importorskip("obstore", reason="obstore is not installed")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def kinds(source: Path) -> Path:
    """One good input of each kind beside them."""
    for number, write in enumerate(dict.fromkeys(good_inputs.KINDS)):
        if write is not good_inputs.scp:  # slow to write and read
            (source / f"{number:02d} ü%#+").mkdir()
            write(source / f"{number:02d} ü%#+")
    return source


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Recordings, one of them torn, and files of other kinds."""
    root = tmp_path / "in"
    write_cohort(root / "99/deep/er", 3)
    write_wfdb(root / "long", ecg_like(1, seed=5, num_timesteps=12_000)[0])
    (root / "99/torn.hea").write_bytes(good_inputs.header("torn"))
    (root / "99/torn.dat").write_bytes(b"12345")
    (root / "99/deep/empty.hea").touch()
    (root / "99/r.pdf").write_bytes(b"%PDF-1.4" + bytes(100_000))
    (root / "99/noname").write_bytes(b"text")
    (root / "99/r.atr").write_bytes(b"lost")
    (root / ".hidden").mkdir()
    (root / ".hidden/x.hea").touch()
    return root


def without_times(table: str) -> str:
    """A listing of object storage has no nanoseconds."""
    return re.sub(r",\d{19}$", "", table, flags=re.MULTILINE)


def without_request(store: Path) -> dict[str, Any]:
    """A store's files; of its manifest all but what depends on where its sources lie."""
    files: dict[str, Any] = dict(snapshot(store))
    manifest = json.loads(files["manifest.json"])
    return files | {"manifest.json": {**manifest, "request": "", "digest": ""}}


@pytest.mark.slow  # every format, four times
@pytest.mark.parametrize("window", ["first", "all"])
def test_every_kind_of_input_gives_the_same_store(
    kinds: Path, scratch: Path, tmp_path: Path, window: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_BLOCK_INPUTS", 3)
    convert_quietly([kinds], tmp_path / "local", window=window)
    convert_quietly([Path(kinds.as_uri())], tmp_path / "cloud", window=window)
    assert without_request(tmp_path / "cloud") == without_request(tmp_path / "local")
    for table in ("sources.csv", "passed_over.csv"):
        local, cloud = ((tmp_path / f"{name}.{table}").read_text() for name in ("local", "cloud"))
        cloud = cloud.replace(f"file://{kinds}", str(kinds))
        assert without_times(cloud) == without_times(local)
    assert list(scratch.iterdir()) == []


def test_a_batch_in_two_blocks_keeps_its_sidecar(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_BLOCK_INPUTS", 1)
    (tmp_path / "in").mkdir()
    good_inputs.npy(tmp_path / "in")
    summary = convert_quietly([Path((tmp_path / "in").as_uri())], tmp_path / "store")
    assert (summary.num_inputs, summary.num_quarantined) == (2, 0)


def test_an_append_takes_what_is_new(source: Path, scratch: Path, tmp_path: Path) -> None:
    url, out = Path((source / "99").as_uri()), tmp_path / "store"
    before = convert_quietly([url], out)
    write_cohort(source / "99/new", 2, seed=8)
    after = convert_quietly([url], out, append=True)
    assert after.num_records == before.num_records + 2
    assert convert_quietly([url], out, append=True).generation == 2


def inventory_of(folder: Path) -> list[InputFile]:
    return list(walk([Path(folder.as_uri())], Inventory()))


def test_scratch_holds_one_block(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_BLOCK_INPUTS", 4)
    for folder in "abcd":
        write_cohort(tmp_path / "in" / folder, 10)
    most = 0
    for item in staged(inventory_of(tmp_path / "in")):
        assert item.path.read_bytes()
        most = max(most, sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file()))
    assert 4 * 120_000 < most < 5 * 121_000


def test_a_walk_fetches_the_beginning_of_what_no_header_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cohort(tmp_path / "in", 2)
    (tmp_path / "in/scan.pdf").write_bytes(b"%PDF-1.4" + bytes(200_000))
    asked: dict[str, int] = {}
    read_ranges = Objects.read_ranges

    def counted(self: Objects, name: str, starts: list[int], ends: list[int]) -> list[memoryview]:
        asked[name] = ends[0]
        return read_ranges(self, name, starts, ends)

    monkeypatch.setattr(Objects, "read_ranges", counted)
    assert [item.record_id for item in inventory_of(tmp_path / "in")] == ["r00000", "r00001"]
    assert asked == {"scan.pdf": 1 << 16}


def test_an_input_that_has_gone_is_refused(source: Path, scratch: Path, tmp_path: Path) -> None:
    plan_convert([Path((source / "99").as_uri())], tmp_path / "store", ConvertOptions())
    (source / "99/deep/er/r00001.dat").unlink()
    (source / "99/deep/er/r00002.hea").unlink()
    convert_units(tmp_path / "store", workers=1)
    assert seal_convert(tmp_path / "store").num_records == 1
    assert (tmp_path / "store/quarantine.csv").read_text().count("a signal file is missing") == 1
    assert (tmp_path / "store/quarantine.csv").read_text().count("the file cannot be opened") == 1


@pytest.mark.parametrize("name", ["nothing", "in/long.hea"])
def test_an_address_without_recordings_is_one_error(
    source: Path, scratch: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(FormatError, match=r"holds no ECG file that is read"):
        convert_quietly([Path((tmp_path / name).as_uri())], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_full_scratch_is_one_error_and_a_second_run_completes(
    source: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, out = Path((source / "99").as_uri()), tmp_path / "store"
    plan_convert([url], out, ConvertOptions())

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(EcgfastError, match=r"disk full while writing .*free some space"):
            convert_units(out, workers=1)
    assert list(scratch.iterdir()) == []
    convert_units(out, workers=1)
    assert seal_convert(out).num_records == 3
