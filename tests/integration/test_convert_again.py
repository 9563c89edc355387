"""A convert that is run again: finished stores, other options, and stores as sources."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from convert_child import NUM_RECORDS, beside, child, finish, wait_for, write_source
from recordings import convert_quietly, ecg_like, snapshot, write_wfdb

import ecgfast
from ecgfast import log
from ecgfast.errors import ConfigError, CorruptStoreError, ResumeError
from ecgfast.store.format import with_crc32c
from ecgfast.store.shards import INDEX_BYTES
from ecgfast.store.verify import verify_store


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


def test_other_options_are_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run" / "store"
    out.parent.mkdir()
    finish(child(source, out, workers=1, limit=4 << 20))
    with pytest.raises(ResumeError, match="begun with codec = ecgpack, got none"):
        convert_quietly([source], out, codec="none")
    with pytest.raises(ResumeError, match="sources"):
        convert_quietly([source / "part"], out)
    convert_quietly([source], out)
    with pytest.raises(ConfigError, match="finished store made from other"):
        convert_quietly([source], out, window="all")
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "file").write_text("mine")
    with pytest.raises(ConfigError, match="neither empty nor a store"):
        convert_quietly([source], stranger)
    assert os.listdir(stranger) == ["file"]


def test_finished_store_is_left_alone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run" / "store"
    first = convert_quietly([source], out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert convert_quietly([source], out) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_finished_store_warns_of_new_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(log.logger, "warning", warnings.append)
    source, out = tmp_path / "source", tmp_path / "run" / "store"
    for number, record in enumerate(ecg_like(3, seed=0)):
        write_wfdb(source / f"r{number}", record, comments=[f"patient: {number}"])
        if number != 1:
            convert_quietly([source], out, workers=1)
    assert len(ecgfast.open_store(out)) == 1
    assert len(warnings) == 1
    assert "hold 3 inputs" in warnings[0]
    assert "made from 1 " in warnings[0]


def test_finished_store_needs_no_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(log.logger, "warning", warnings.append)
    source, out = tmp_path / "source", tmp_path / "run" / "store"
    write_wfdb(source / "r0", ecg_like(1, seed=0)[0], comments=["patient: 1"])
    first = convert_quietly([source], out, workers=1)
    for path in source.iterdir():
        path.unlink()
    assert convert_quietly([source], out, workers=1) == first
    assert len(warnings) == 1
    assert "holds no ECG file" in warnings[0]
    source.rmdir()
    assert convert_quietly([source], out, workers=1) == first
    assert len(warnings) == 1


def test_a_plan_of_another_version_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run" / "store"
    out.parent.mkdir()
    finish(child(source, out, workers=1, limit=4 << 20))
    plan = out.parent / "store.convert/plan.json"
    content = json.loads(plan.read_text())
    del content["layout"]  # as the first version wrote it, with other lines beside it
    plan.write_text(json.dumps(content))
    before = beside(out)
    with pytest.raises(ResumeError, match=r"another version .* layout 1, allowed 8; finish it"):
        convert_quietly([source], out)
    assert beside(out) == before


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_transcode(source: Path, tmp_path: Path, codec: str) -> None:
    first, second = tmp_path / "first/store", tmp_path / "second/store"
    convert_quietly([source], first)
    before = snapshot(first)
    out = tmp_path / "killed/store"
    out.parent.mkdir()
    with child(first, out, codec=codec) as process:
        wait_for(out.parent / "store.convert/unit-000000.arrow", process)
        process.kill()
    summary = convert_quietly([first], out, codec=codec, workers=2)
    convert_quietly([first], second, codec=codec)
    assert beside(out) == beside(second)
    assert snapshot(first) == before
    ours, theirs = ecgfast.open_store(first), ecgfast.open_store(out)
    assert summary.num_records == len(theirs) == NUM_RECORDS
    assert theirs.codec == codec
    np.testing.assert_array_equal(theirs.read(range(300)), ours.read(range(300)))
    np.testing.assert_array_equal(theirs.lead_std, ours.lead_std)
    packed = pa.array(range(NUM_RECORDS))  # without holes
    at = ours.records.column_names.index("row")
    assert theirs.records.equals(ours.records.set_column(at, "row", packed))
    assert (ours.num_slots, theirs.num_slots) == (NUM_RECORDS + 20, NUM_RECORDS)
    assert verify_store(out) == []
    with pytest.raises(ConfigError, match="transcoded alone"):
        convert_quietly([first], tmp_path / "third", window="all")


def test_transcode_refuses_a_damaged_store(source: Path, tmp_path: Path) -> None:
    first, out = tmp_path / "first/store", tmp_path / "second/store"
    convert_quietly([source], first, codec="none")
    shard = first / "signals.zarr/signal/c.0.0.0"
    data = shard.read_bytes()
    index = np.frombuffer(data[-INDEX_BYTES:-4], "<u8").reshape(-1, 2).copy()
    index[[3, 4]] = index[[4, 3]]
    shard.write_bytes(data[:-INDEX_BYTES] + with_crc32c(index.tobytes()))
    with pytest.raises(CorruptStoreError, match="is not what the manifest says"):
        convert_quietly([first], out, codec="zstd")
    assert not (out / "manifest.json").exists()
    shard.write_bytes(data)
    (first / "quarantine.csv").write_text("record_id,format,reason\nx,wfdb,none\n")
    with pytest.raises(CorruptStoreError, match=r"quarantine\.csv is damaged"):
        convert_quietly([first], out, codec="zstd")
