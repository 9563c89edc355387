"""Withdrawn consent: no byte of the records stays, the others keep their rows."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from recordings import convert_quietly, ecg_like, snapshot, write_wfdb

import ecgfast
from ecgfast.errors import ConfigError, CorruptStoreError, ResumeError
from ecgfast.labels.consent import erase
from ecgfast.store.erase import erase_records
from ecgfast.store.patients import Pseudonyms
from ecgfast.store.verify import verify_store

SIGNALS = ecg_like(8, seed=11)
PSEUDONYMS = Pseudonyms(bytes.fromhex("5e" * 32))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Records r0 to r6 of p0, p0, p1, p2, p2, p3 and nobody, who copies r2; a refused one."""
    patients = ("p0", "p0", "p1", "p2", "p2", "p3")
    for number, patient in enumerate(patients):
        write_wfdb(tmp_path / f"in/r{number}", SIGNALS[number], comments=[f"patient: {patient}"])
    write_wfdb(tmp_path / "in/r6", SIGNALS[2])
    write_wfdb(tmp_path / "in/short", SIGNALS[7][:, :400])
    convert_quietly([tmp_path / "in"], tmp_path / "out/store")
    return tmp_path / "out/store"


def ids(store: Path, *names: str) -> Path:
    path = store.parent.parent / "ids.txt"
    path.write_text("\n".join(names) + "\n")
    return path


def chunks(store: Path, records: list[int]) -> list[bytes]:
    buffer, offsets, lengths = ecgfast.open_store(store).read_chunks(records)
    return [buffer[a : a + n].tobytes() for a, n in zip(offsets, lengths, strict=True)]


def traces(store: Path, records: list[int]) -> list[bytes]:
    """What would give them away: chunks, ids, digests, lead values."""
    reader = ecgfast.open_store(store)
    rows = reader.records.take(records)
    texts = [*rows["record_id"].to_pylist(), *rows["content"].to_pylist()]
    leads = [reader.lead_std[record].tobytes() for record in records]
    return [*chunks(store, records), *leads, *(text.encode() for text in texts)]


def found(folder: Path, wanted: list[bytes]) -> list[str]:
    files = snapshot(folder)
    return [name for name, data in files.items() if any(each in data for each in wanted)]


def test_no_byte_of_them_is_left(store: Path) -> None:
    wanted = [
        *traces(store, [0, 1, 2, 6]),
        b"in/r0",
        b",p0,",
        PSEUDONYMS.of("patient", "p0").encode(),
    ]
    assert {name.rpartition("/")[2] for name in found(store.parent, wanted)} >= {
        "c.0.0.0", "c.0.0", "store.sources.csv",
    }  # fmt: skip
    before = ecgfast.open_store(store).records
    summary = erase(store, patients=ids(store, "p0", "p1", "nobody"))
    assert (summary.erased.num_records, summary.num_patients) == (4, 2)
    assert (summary.num_copies, summary.num_unknown) == (1, 1)
    assert found(store.parent, wanted) == []
    assert verify_store(store) == []
    reader = ecgfast.open_store(store)
    assert reader.records.equals(before.take([3, 4, 5]))
    assert reader.slots.tolist() == [3, 4, 5]
    np.testing.assert_array_equal(reader.read([0, 1, 2]), SIGNALS[[3, 4, 5]])
    assert reader.manifest["counts"] == {
        "inputs": 4, "converted": 3, "quarantined": 1, "records": 3, "duplicates": 0
    }  # fmt: skip
    with store.with_name("store.sources.csv").open() as file:
        assert [line["record"] for line in csv.DictReader(file)] == ["r3", "r4", "r5", "short"]


def test_the_array_has_holes_for_every_reader(store: Path) -> None:
    import zarr

    erase(store, patients=ids(store, "p2"))
    signal = zarr.open_group(store / "signals.zarr", mode="r")["signal"]
    assert signal.shape == (8, 12, 5000)
    assert (signal[3:5] == -32768).all()
    np.testing.assert_array_equal(signal[5], SIGNALS[5])


def test_what_comes_later_is_appended_and_compared(store: Path, tmp_path: Path) -> None:
    erase(store, patients=ids(store, "p0"))
    write_wfdb(tmp_path / "new/copy", SIGNALS[5])
    assert convert_quietly([tmp_path / "new"], store, append=True).num_duplicates == 2
    assert verify_store(store) == []


def test_an_append_does_not_bring_them_back(store: Path, tmp_path: Path) -> None:
    erase(store, patients=ids(store, "p0"))
    write_wfdb(tmp_path / "in/r9", SIGNALS[7])
    assert convert_quietly([tmp_path / "in"], store, append=True).num_records == 6
    assert store.with_name("store.erased").stat().st_mode & 0o777 == 0o600


def test_earlier_generations_are_gone(store: Path, tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/r9", SIGNALS[7])
    convert_quietly([tmp_path / "in"], store, append=True)
    assert len(ecgfast.open_store(f"{store}@1")) == 7
    assert erase(store, patients=ids(store, "p0")).erased.generation == 3
    with pytest.raises(ConfigError, match=r"no generation 1, allowed 3; .* erased or replaced"):
        ecgfast.open_store(f"{store}@1")
    assert len(ecgfast.open_store(store)) == 6


def test_a_shard_of_holes_has_no_files(store: Path, tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/r9", SIGNALS[7], comments=["patient: p9"])
    convert_quietly([tmp_path / "in"], store, append=True)
    erase(store, patients=ids(store, "p9"))
    assert not list((store / "signals.zarr").glob("*/c.1.*"))
    assert verify_store(store) == []
    assert len(ecgfast.open_store(store)) == 7


def test_refused_inputs_go_by_their_record(store: Path) -> None:
    summary = erase(store, records=ids(store, "short", "r5"))
    assert (summary.erased.num_records, summary.erased.num_refused) == (1, 1)
    assert found(store.parent, [PSEUDONYMS.of("record", "short").encode(), b"in/short"]) == []
    assert ecgfast.open_store(store).manifest["counts"]["quarantined"] == 0
    assert verify_store(store) == []


def test_readable_ids_of_sites(tmp_path: Path) -> None:
    for number, site in enumerate(("A", "B", "B")):
        comments = ["patient: 7", f"site: {site}"]
        write_wfdb(tmp_path / f"in/r{number}", SIGNALS[number], comments=comments)
    convert_quietly([tmp_path / "in"], tmp_path / "out/store")
    store = tmp_path / "out/store"
    before = snapshot(store.parent)
    with pytest.raises(ConfigError, match=r"line 1: 2 sites have a patient of this id.*SITE/ID"):
        erase(store, patients=ids(store, "7"))
    assert snapshot(store.parent) == before
    assert erase(store, patients=ids(store, "B/7")).erased.num_records == 2
    assert ecgfast.open_store(store).records["site"].to_pylist() == ["A"]


def test_what_cannot_be_done_changes_nothing(store: Path, tmp_path: Path) -> None:
    before = snapshot(store.parent)
    with pytest.raises(ConfigError, match=r"all 7 records of .* would be erased; remove the store"):
        erase(store, patients=ids(store, "p0", "p1", "p2", "p3"))
    with pytest.raises(ConfigError, match="needs --patients FILE or --records FILE"):
        erase(store)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(ConfigError, match=r"got an empty file, allowed .* one id a line"):
        erase(store, patients=empty)
    assert not erase(store, patients=ids(store, "nobody")).erased.num_records
    assert snapshot(store.parent) == before


@pytest.mark.parametrize("name", ["store@1", "store@2", "link"])
def test_the_store_is_given_by_its_own_path(store: Path, tmp_path: Path, name: str) -> None:
    """Else rows of later generations were lost, or tables beside the store kept their ids."""
    write_wfdb(tmp_path / "in/r7", SIGNALS[7], comments=["patient: p4"])
    convert_quietly([tmp_path / "in"], store, append=True)
    store.with_name("link").symlink_to(store)
    before = snapshot(store.parent)
    with pytest.raises(ConfigError, match=rf"give {store}$"):
        erase(store.with_name(name), patients=ids(store, "p0"))
    assert snapshot(store.parent) == before


def test_rows_of_later_generations_are_not_lost(store: Path, tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/r7", SIGNALS[7], comments=["patient: p4"])
    convert_quietly([tmp_path / "in"], store, append=True)
    first = ecgfast.open_store(f"{store}@1")
    with pytest.raises(ConfigError, match="changed as a whole"):
        erase_records(first, {first.records["record_id"][0].as_py()})
    assert len(ecgfast.open_store(store)) == 8


def test_it_waits_for_an_append(store: Path, tmp_path: Path) -> None:
    from ecgfast.convert import ConvertOptions, plan_convert

    write_wfdb(tmp_path / "in/r9", SIGNALS[7])
    plan_convert([tmp_path / "in"], store, ConvertOptions(), append=True)
    with pytest.raises(ResumeError, match="has a convert that is not finished"):
        erase(store, patients=ids(store, "p0"))


def died_at(step: int, store: Path, patients: Path) -> bool:
    """Erase in a process that dies at its n-th fsync; whether it died."""
    pid = os.fork()
    if pid == 0:
        left = step
        fsync = os.fsync

        def dying(fd: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            fsync(fd)

        os.fsync = dying
        try:
            erase(store, patients=patients)
        except BaseException:  # pytest must not go on in here
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 9)
    return status == 9


def test_killed_at_any_step_it_is_finished(store: Path, tmp_path: Path) -> None:
    wanted, patients = traces(store, [0, 1]), ids(store, "p0")
    whole = tmp_path / "whole/store"
    shutil.copytree(store.parent, whole.parent)
    erase(whole, patients=patients)
    step = 0
    while True:
        step += 1
        trial = tmp_path / f"trial{step}/store"
        shutil.copytree(store.parent, trial.parent)
        died = died_at(step, trial, patients)
        if not died:
            break
        if not (trial / "erasing.json").exists():  # nothing has begun, or all is done
            like = store if found(trial.parent, wanted) else whole
            assert (trial / "manifest.json").read_bytes() == (like / "manifest.json").read_bytes()
            assert verify_store(trial) == []
        else:
            assert "records are being erased" in verify_store(trial)[0]
            with pytest.raises(CorruptStoreError, match=r"run ecgfast erase .* again"):
                ecgfast.open_store(trial)
        erase(trial, patients=patients)
        left = {n: d for n, d in snapshot(trial.parent).items() if not n.endswith(".lock")}
        assert left == snapshot(whole.parent)
        shutil.rmtree(trial.parent)
    assert step > 20
