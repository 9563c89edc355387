"""Stores of format 1, which have no holes and list every file in their manifest, stay usable."""

import hashlib
import hmac
import json
from pathlib import Path

import numpy as np
import pytest
from changed_stores import flip_a_bit
from format_1 import to_format_1
from recordings import convert_quietly, make_store, snapshot

import ecgfast
from ecgfast.errors import CorruptStoreError
from ecgfast.evaluate.cohort import describe
from ecgfast.labels.commands import label_store
from ecgfast.store.verify import verify_store

NUM_RECORDS = 1030  # two shards


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    return make_store(tmp_path_factory.mktemp("made"), NUM_RECORDS)


@pytest.fixture
def store(made: tuple[Path, np.ndarray], tmp_path: Path) -> Path:
    for name in ("store", "store.key", "store.sources.csv"):
        copy(made[0].with_name(name), tmp_path / name)
    return to_format_1(tmp_path / "store")


def copy(source: Path, target: Path) -> None:
    files = snapshot(source) if source.is_dir() else {"": source.read_bytes()}
    for name, data in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(data)
        (target / name).chmod(0o600)


def test_it_is_read_and_verified(store: Path, made: tuple[Path, np.ndarray]) -> None:
    reader, newer = ecgfast.open_store(store), ecgfast.open_store(made[0])
    assert (reader.manifest["version"], reader.num_slots) == (1, NUM_RECORDS)
    order = [1029, 0, 1024, 1023]
    np.testing.assert_array_equal(reader.read(order), made[1][order])
    np.testing.assert_array_equal(reader.lead_std, newer.lead_std)
    assert (reader.num_bytes, reader.slots.tolist()) == (newer.num_bytes, [*range(NUM_RECORDS)])
    assert reader.records.equals(newer.records.drop_columns(["row"]))
    reader.check_digests()
    assert verify_store(store) == []
    assert f"inputs    {NUM_RECORDS} = {NUM_RECORDS} converted" in describe(reader)


def test_its_damage_is_found(store: Path) -> None:
    flip_a_bit(store, 7)
    with pytest.raises(CorruptStoreError, match=r"record 7 in signals\.zarr/signal/c\.0\.0\.0"):
        ecgfast.open_store(store).read([7])
    problems = verify_store(store)
    assert problems[0] == "signals.zarr/signal/c.0.0.0: the digest is wrong; the file is damaged"


def test_it_is_transcoded_into_the_new_format(store: Path, made: tuple[Path, np.ndarray]) -> None:
    out = store.with_name("copy")
    convert_quietly([store], out, codec="zstd")
    newer = ecgfast.open_store(out)
    assert newer.manifest["version"] == 2
    assert newer.records["row"].to_pylist() == [*range(NUM_RECORDS)]
    np.testing.assert_array_equal(newer.read([5, 1029]), made[1][[5, 1029]])
    assert verify_store(out) == []


def test_it_is_labelled_and_stays_what_it_is(store: Path) -> None:
    before = ecgfast.open_store(store)
    csv = store.with_name("labels.csv")
    csv.write_text("patient_id,lvh\np3,1\n")
    assert label_store(store, csv).num_matched == 2
    after = ecgfast.open_store(store)
    assert after.records["lvh"].null_count == NUM_RECORDS - 2
    assert (after.manifest["version"], after.identity) == (1, before.identity)
    assert verify_store(store) == []


def test_the_command_that_made_it_finds_it_finished(
    store: Path, made: tuple[Path, np.ndarray]
) -> None:
    """The request that a manifest keeps is of the options by the names that they had then."""
    manifest = json.loads((store / "manifest.json").read_text())
    spec = {
        **{"sources": [str(made[0].with_name("in"))], "codec": "ecgpack", "window": "first"},
        **{"short": "quarantine", "quality": "flag", "keep_identifiers": False},
        **{"patient_ids": "site", "one_ecg_per_patient": False, "split_seed": 0, "columns": []},
        **{"ages_over_89": False, "key": manifest["key_fingerprint"], "format_version": 1},
    }
    key = bytes.fromhex(store.with_name("store.key").read_text())
    text = b"request\0" + json.dumps(spec, sort_keys=True).encode()
    manifest["request"] = hmac.digest(key, text, "sha256").hex()
    del manifest["digest"]
    sealed = json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"
    manifest["digest"] = hashlib.sha256(sealed).hexdigest()
    (store / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    before = snapshot(store)
    convert_quietly([made[0].with_name("in")], store)
    assert snapshot(store) == before
