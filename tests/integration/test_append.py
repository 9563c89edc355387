"""A store that grows: old files stay, new ECGs come behind them, older generations stay open."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from recordings import convert_quietly, ecg_like, snapshot, write_wfdb

import ecgfast
from ecgfast.convert import ConvertOptions, convert_units, plan_convert, seal_convert
from ecgfast.errors import ConfigError, ResumeError
from ecgfast.labels.splits import draw
from ecgfast.store.verify import verify_store

SIGNALS = ecg_like(14, seed=5)
NEW_NAMES = ("a0", "m1", "z2")  # one sorts before all old ones


def write(folder: Path, name: str, number: int, *, patient: str | None = None) -> None:
    comments = [f"patient: {patient or name}"]
    write_wfdb(folder / name, SIGNALS[number], comments=comments)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(6):
        write(tmp_path / "in", f"r{number}", number)
    write_wfdb(tmp_path / "in/short", SIGNALS[6][:, :400])
    return tmp_path / "in"


def grow(source: Path) -> None:
    for number, name in enumerate(NEW_NAMES, 7):
        write(source, name, number)


def shard_files(store: Path) -> dict[str, bytes]:
    names = snapshot(store / "signals.zarr")
    return {name: data for name, data in names.items() if not name.endswith("zarr.json")}


def test_new_inputs_come_behind_the_last_shard(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    convert_quietly([source], store)
    before, rows = shard_files(store), ecgfast.open_store(store).records
    grow(source)
    summary = convert_quietly([source], store, append=True)
    assert (summary.num_records, summary.num_inputs, summary.generation) == (9, 10, 2)
    reader = ecgfast.open_store(store)
    assert {name: shard_files(store)[name] for name in before} == before
    assert reader.slots.tolist() == [0, 1, 2, 3, 4, 5, 1024, 1025, 1026]
    np.testing.assert_array_equal(reader.read(range(9)), SIGNALS[[0, 1, 2, 3, 4, 5, 7, 8, 9]])
    assert reader.records.slice(0, 6).equals(rows)
    assert reader.shard_table.table["generation"].to_pylist() == [1, 2]
    assert verify_store(store) == []
    assert not store.with_name("store.convert").exists()
    with store.with_name("store.sources.csv").open() as file:
        names = [line["record"] for line in csv.DictReader(file)]
    assert names == [*(f"r{number}" for number in range(6)), "short", *NEW_NAMES]


def test_nothing_new_is_no_generation(source: Path, tmp_path: Path) -> None:
    convert_quietly([source], tmp_path / "store")
    before = snapshot(tmp_path)
    assert convert_quietly([source], tmp_path / "store", append=True).generation == 1
    assert snapshot(tmp_path) == before


def test_an_older_generation_is_the_store_of_then(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    convert_quietly([source], store)
    then = ecgfast.open_store(store)
    assert (then.records.num_rows, len(then.quarantine) > 0, len(then.lead_mean)) == (6, True, 6)
    refused = then.quarantine
    grow(source)
    write_wfdb(source / "short2", SIGNALS[6][:, :400])
    convert_quietly([source], store, append=True)
    first = ecgfast.open_store(f"{store}@1")
    assert (first.identity, len(first), first.generation) == (then.identity, 6, 1)
    assert first.manifest["counts"] == then.manifest["counts"]
    assert first.records.equals(then.records)
    assert first.quarantine == refused
    np.testing.assert_array_equal(first.read(range(6)), SIGNALS[:6])
    np.testing.assert_array_equal(first.lead_mean, then.lead_mean)
    with pytest.raises(ConfigError, match="no generation 3, allowed 1, 2"):
        ecgfast.open_store(f"{store}@3")


def test_patients_stay_and_new_ones_draw_alone(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    convert_quietly([source], store)
    for number in range(40):
        write_wfdb(source / f"s{number}", SIGNALS[7 + number % 7], comments=[f"patient: q{number}"])
    write(source, "again", 13, patient="r2")
    convert_quietly([source], store, append=True)
    reader = ecgfast.open_store(store)
    names = (reader.records[name].to_pylist() for name in ("record_id", "split"))
    split = dict(zip(*names, strict=True))
    with store.with_name("store.sources.csv").open() as file:
        split = {line["record"]: split.get(line["record_id"]) for line in csv.DictReader(file)}
    assert split["again"] == split["r2"]
    number = draw(0, "q0")  # q0, q7, q14 ... are copies: one patient, who has the smallest id
    assert split["s7"] == ("test" if number < 0.15 else "valid" if number < 0.3 else "train")


def test_copies_of_old_records_are_found(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    convert_quietly([source], store)
    old = ecgfast.open_store(store).records
    write(source, "copy", 3, patient="somebody")
    scaled = (SIGNALS[4].astype(np.int32) * 2).clip(-32000, 32000).astype(np.int16)
    write_wfdb(source / "louder", scaled)
    convert_quietly([source], store, append=True)
    new = ecgfast.open_store(store).records.slice(6)
    ids = old["record_id"].to_pylist()
    assert new["duplicate_of"].to_pylist() == [ids[3], ids[4]]
    assert new["split"].to_pylist() == [old["split"][3].as_py(), old["split"][4].as_py()]
    assert ecgfast.open_store(store).records.slice(0, 6).equals(old)


def test_without_fingerprints_they_are_made_again(source: Path, tmp_path: Path) -> None:
    stores = [tmp_path / name for name in ("one", "two")]
    for store in stores:
        convert_quietly([source], store)
    write(source, "copy", 3)
    stores[1].with_name("two.fingerprints").unlink()
    for store in stores:
        convert_quietly([source], store, append=True)
    assert snapshot(stores[0]) == snapshot(stores[1])
    files = [store.with_name(f"{store.name}.fingerprints").read_bytes() for store in stores]
    assert files[0] == files[1]


def test_in_parts_it_is_the_same(source: Path, tmp_path: Path) -> None:
    stores = [tmp_path / name for name in ("one", "two")]
    for store in stores:
        convert_quietly([source], store)
    grow(source)
    convert_quietly([source], stores[0], append=True)
    plan = plan_convert([source], stores[1], ConvertOptions(), append=True)
    assert plan is not None
    assert list(plan.units) == [1]
    assert len(ecgfast.open_store(stores[1])) == 6  # until the seal
    assert verify_store(stores[1]) == []
    for part in (0, 1):
        convert_units(stores[1], part=(part, 2), workers=1)
    assert verify_store(stores[1]) == []
    seal_convert(stores[1])
    assert snapshot(stores[0]) == snapshot(stores[1])


def test_what_was_begun_is_resumed_or_named(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    convert_quietly([source], store)
    grow(source)
    plan_convert([source], store, ConvertOptions(), append=True)
    with pytest.raises(ResumeError, match=r"store was begun with sources.*store stays as it is"):
        convert_quietly([tmp_path / "other"], store, append=True)
    assert convert_quietly([source], store).generation == 1  # a plain convert leaves it
    assert convert_quietly([source], store, append=True).generation == 2


def test_changed_files_are_listed(source: Path, tmp_path: Path) -> None:
    store, table = tmp_path / "store", tmp_path / "store.changed.csv"
    convert_quietly([source], store)
    write(source, "r1", 12)
    os.utime(source / "r1.dat", ns=(1, 2**62))
    convert_quietly([source], store, append=True)
    with table.open() as file:
        assert [Path(line["source"]).name for line in csv.DictReader(file)] == ["r1.hea"]
    assert table.stat().st_mode & 0o777 == 0o600
    np.testing.assert_array_equal(ecgfast.open_store(store).read([1])[0], SIGNALS[1])


@pytest.mark.parametrize(
    ("option", "words"),
    [({"codec": "zstd"}, "--codec zstd: .* was made with ecgpack"), ({"short": "pad"}, "--short")],
)
def test_other_options_are_refused(
    source: Path, tmp_path: Path, option: dict[str, str], words: str
) -> None:
    convert_quietly([source], tmp_path / "store")
    before = snapshot(tmp_path / "store")
    with pytest.raises(ConfigError, match=words):
        convert_quietly([source], tmp_path / "store", append=True, **option)
    assert snapshot(tmp_path / "store") == before


def test_it_needs_a_store_and_its_key(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a finished store"):
        convert_quietly([source], tmp_path / "store", append=True)
    convert_quietly([source], tmp_path / "store")
    (tmp_path / "other.key").write_text("12" * 32)
    (tmp_path / "other.key").chmod(0o600)
    with pytest.raises(ConfigError, match="it is not the key of"):
        convert_quietly([source], tmp_path / "store", append=True, key_file=tmp_path / "other.key")
    with pytest.raises(ConfigError, match="--replace goes with --append"):
        convert_quietly([source], tmp_path / "store", replace=True)


def test_changed_files_are_taken_again(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    convert_quietly([source], store)
    write(source, "r1", 12)
    write(source, "short", 13)  # was refused
    for name in ("r1", "short"):
        os.utime(source / f"{name}.dat", ns=(1, 2**62))
    summary = convert_quietly([source], store, append=True, replace=True)
    assert (summary.num_records, summary.num_quarantined, summary.generation) == (7, 0, 3)
    reader = ecgfast.open_store(store)
    assert reader.slots.tolist() == [0, 2, 3, 4, 5, 1024, 1025]
    np.testing.assert_array_equal(reader.read([5, 6]), SIGNALS[[12, 13]])
    assert [each["generation"] for each in reader.history] == [2]  # what held r1 is gone
    assert verify_store(store) == []
    assert convert_quietly([source], store, append=True, replace=True).generation == 3


def died_at(step: int, source: Path, store: Path) -> bool:
    """Append in a process that dies at its n-th fsync; whether it died."""
    pid = os.fork()
    if pid == 0:
        left, fsync = step, os.fsync

        def dying(fd: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            fsync(fd)

        os.fsync = dying
        try:
            convert_quietly([source], store, append=True)
        except BaseException:  # pytest must not go on in here
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 9)
    return status == 9


def test_killed_at_any_step_the_store_is_the_old_or_the_new_one(
    source: Path, tmp_path: Path
) -> None:
    old, whole = tmp_path / "old/store", tmp_path / "whole/store"
    convert_quietly([source], old)
    grow(source)
    shutil.copytree(old.parent, whole.parent)
    convert_quietly([source], whole, append=True)
    step, numbers = 0, set()
    while True:
        step += 1
        trial = tmp_path / f"trial{step}/store"
        shutil.copytree(old.parent, trial.parent)
        if not died_at(step, source, trial):
            break
        reader = ecgfast.open_store(trial)
        numbers.add(reader.generation)
        expected = [0, 1, 2, 3, 4, 5, *((7, 8, 9) if reader.generation == 2 else ())]
        np.testing.assert_array_equal(reader.read(range(len(reader))), SIGNALS[expected])
        assert reader.records.num_rows == len(expected)
        assert [each for each in verify_store(trial) if "tmp" not in each] == []
        convert_quietly([source], trial, append=True)
        left = {n: d for n, d in snapshot(trial.parent).items() if not n.endswith(".lock")}
        # A copy that is made again; names of files that were never finished count nothing.
        left = {n: d for n, d in left.items() if n != "store.fingerprints" and ".tmp" not in n}
        assert left.keys() == snapshot(whole.parent).keys() - {"store.fingerprints"}
        assert {name: whole.parent.joinpath(name).read_bytes() for name in left} == left
        shutil.rmtree(trial.parent)
    assert step > 20
    assert numbers == {1, 2}
