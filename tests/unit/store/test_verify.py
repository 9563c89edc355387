"""`verify` finds every flipped byte, and `read` never gives wrong data in silence."""

from pathlib import Path

import numpy as np
import pytest
from changed_stores import change_cell, change_lead_value, change_table
from recordings import make_store

import ecgfast
from ecgfast.errors import CorruptStoreError, FormatError
from ecgfast.store.format import CODECS, LEAD_ARRAYS
from ecgfast.store.verify import verify_store
from ecgfast.vocabulary import Codec

NUM_FLIPS = 1000
NUM_RECORDS = 6


def test_sound_store(tmp_path: Path) -> None:
    path, _ = make_store(tmp_path, NUM_RECORDS)
    seen: list[tuple[int, int]] = []
    assert verify_store(path, lambda done, total: seen.append((done, total))) == []
    assert seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize("codec", CODECS)
def test_random_byte_flips(codec: Codec, tmp_path: Path) -> None:
    path, signal = make_store(tmp_path, NUM_RECORDS, codec=codec)
    sound = ecgfast.open_store(path)
    truth = {name: getattr(sound, name) for name in ("scale_uv", "lead_mean", "lead_std")}
    records = sound.records
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    # Half of the flips by file, so that the small ones get their share, half by byte.
    sizes = np.array([file.stat().st_size for file in files])
    rng = np.random.default_rng(7)
    by_file = rng.integers(0, len(files), NUM_FLIPS // 2)
    by_byte = rng.choice(len(files), NUM_FLIPS - NUM_FLIPS // 2, p=sizes / sizes.sum())
    for chosen in np.concatenate([by_file, by_byte])[: NUM_FLIPS // len(CODECS) + 1]:
        file = files[chosen]
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        file.write_bytes(flipped)
        assert verify_store(path), file
        try:
            damaged = ecgfast.open_store(path)
            np.testing.assert_array_equal(damaged.read(range(NUM_RECORDS)), signal)
            for name, values in truth.items():
                np.testing.assert_array_equal(getattr(damaged, name), values)
            assert damaged.records.equals(records)
        except CorruptStoreError:
            pass  # an error, as it should be
        file.write_bytes(whole)
    assert verify_store(path) == []


def test_names_shard_and_record(tmp_path: Path) -> None:
    path, _ = make_store(tmp_path, NUM_RECORDS, codec="none")
    shard = path / "signals.zarr/signal/c.0.0.0"
    data = bytearray(shard.read_bytes())
    data[3 * 120_004 + 9] ^= 1
    shard.write_bytes(data)
    problems = verify_store(path)
    assert problems[0] == f"{shard.relative_to(path)}: the digest is wrong; the file is damaged"
    assert problems[1].startswith("record 3 in signals.zarr/signal/c.0.0.0")
    assert len(problems) == 2


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    path, _ = make_store(tmp_path, NUM_RECORDS)
    (path / "quarantine.csv").unlink()
    (path / "signals.zarr/signal/stray").write_bytes(b"x")
    problems = verify_store(path)
    assert "quarantine.csv is missing" in problems
    assert "signals.zarr/signal/stray does not belong to the store" in problems


@pytest.mark.parametrize("name", [".records.parquet.next.tmp", ".manifest.json.tmp"])
def test_what_a_killed_label_leaves_is_no_damage(store: Path, name: str) -> None:
    """The next one removes it."""
    (store / name).write_bytes(b"half a table")
    assert verify_store(store) == []


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not a store"):
        verify_store(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A sound store; each test below changes what it says and makes its digests fit again."""
    return make_store(tmp_path, NUM_RECORDS)[0]


def test_a_sound_store_stays_sound_when_it_is_sealed_again(store: Path) -> None:
    change_table(store, lambda table: table)
    change_lead_value(store, "scale_uv", 0, 0, 5)
    assert verify_store(store) == []


def test_a_patient_in_two_splits_is_found(store: Path) -> None:
    patients = ecgfast.open_store(store).records["patient_id"]
    assert patients[0] == patients[1]
    change_cell(store, "split", 0, "train")
    change_cell(store, "split", 1, "test")
    assert verify_store(store) == ["records.parquet: a patient is in more than one split"]


def test_an_unknown_split_is_found(store: Path) -> None:
    for row in (0, 1):  # both records of a patient
        change_cell(store, "split", row, "holdout")
    assert verify_store(store) == ["records.parquet: unknown split 'holdout'"]


def test_a_record_id_twice_is_found(store: Path) -> None:
    change_cell(store, "record_id", 5, ecgfast.open_store(store).records["record_id"][2].as_py())
    assert verify_store(store) == ["records.parquet: 1 record_ids occur more than once"]


def test_a_row_that_is_no_record_is_found(store: Path) -> None:
    change_cell(store, "row", 2, 7)
    assert verify_store(store) == [
        "records.parquet: the column row does not name the rows of the records"
    ]


def test_a_table_of_other_length_is_found(store: Path) -> None:
    change_table(store, lambda table: table.slice(0, NUM_RECORDS - 1))
    (problem,) = verify_store(store)
    assert problem.endswith("records.parquet has 5 rows, the signals 6")


@pytest.mark.parametrize(("array", "value"), [("scale_uv", 0), ("lead_std", -1)])
def test_an_impossible_scale_or_deviation_is_found(store: Path, array: str, value: float) -> None:
    change_lead_value(store, array, 5, 11, value)
    assert verify_store(store) == ["scale_uv holds a zero, or lead_std a negative value"]


@pytest.mark.parametrize("array", LEAD_ARRAYS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_found(store: Path, array: str, value: float) -> None:
    change_lead_value(store, array, 0, 3, value)
    assert verify_store(store) == [
        "scale_uv, offset_adc, lead_mean or lead_std holds a value that is not finite"
    ]


def test_a_shard_of_which_nothing_can_be_read(store: Path) -> None:
    shard = store / "signals.zarr/signal/c.0.0.0"
    shard.write_bytes(shard.read_bytes()[:-1])
    *problems, last = verify_store(store)
    assert "signals.zarr/signal/c.0.0.0 has" in problems[0]
    assert [text.split()[1] for text in problems[1:]] == [str(n) for n in range(NUM_RECORDS)]
    assert last == "signals.zarr/signal/c.0.0.0: the records behind 5 were not looked at"


def test_labels_joined_up_to_the_last_step(store: Path) -> None:
    """The next table has the manifest's digest and the old one not; all else is looked at."""
    table = store / "records.parquet"
    (store / "records.parquet.next").write_bytes(table.read_bytes())
    table.write_bytes(b"old")
    assert verify_store(store) == []
    (store / "signals.zarr/zarr.json").unlink()
    assert verify_store(store) == ["signals.zarr/zarr.json is missing"]
