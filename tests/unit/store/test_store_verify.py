"""`verify` finds every flipped byte, and `read` never gives wrong data in silence."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from recordings import make_store

import ecgfast
from ecgfast.errors import CorruptStoreError, FormatError
from ecgfast.store.format import CODECS, Codec
from ecgfast.store.relabel import replace_records
from ecgfast.store.verify import verify_store

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
            pass  # said, not silent
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


def test_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not a store"):
        verify_store(tmp_path)


def test_a_patient_in_two_splits_is_found(tmp_path: Path) -> None:
    """The digests are right and the content is not."""
    path, _ = make_store(tmp_path, NUM_RECORDS)
    reader = ecgfast.open_store(path)
    records = reader.records
    assert records["patient_id"][0] == records["patient_id"][1]
    torn = pa.array(["train", "test", *records["split"].to_pylist()[2:]], pa.string())
    at = records.column_names.index("split")
    replace_records(reader, records.set_column(at, "split", torn), {})
    assert verify_store(path) == ["records.parquet: a patient is in more than one split"]
