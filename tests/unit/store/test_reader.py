"""Random access: any order, whole stores, several shards, and clear errors."""

import hashlib
import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from changed_stores import change_cell, change_table
from recordings import convert_quietly, make_store, write_cohort

import ecgfast
from ecgfast.errors import CorruptStoreError, FormatError
from ecgfast.store import shards
from ecgfast.store.format import CODECS, LEAD_ARRAYS, decode_chunks, with_crc32c
from ecgfast.store.reader import StoreReader
from ecgfast.store.shards import INDEX_BYTES
from ecgfast.store.verify import verify_store
from ecgfast.vocabulary import Codec

NUM_RECORDS = 1100  # two shards


@pytest.fixture(scope="module", params=CODECS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, np.ndarray, Codec]:
    path, signal = make_store(tmp_path_factory.mktemp("made"), NUM_RECORDS, codec=request.param)
    return path, signal, request.param


def test_any_order(made: tuple[Path, np.ndarray, Codec]) -> None:
    path, signal, codec = made
    store = ecgfast.open_store(path)
    order = [1099, 0, 1024, 1023, 5, 5, 4]
    np.testing.assert_array_equal(store.read(order), signal[order])
    assert store.read([]).shape == (0, 12, 5000)
    assert (len(store), store.codec) == (NUM_RECORDS, codec)


def test_whole_store(made: tuple[Path, np.ndarray, Codec]) -> None:
    path, signal, codec = made
    buffer, offsets, lengths = ecgfast.open_store(path).load_chunks()
    np.testing.assert_array_equal(decode_chunks(codec, buffer, offsets, lengths), signal)
    # Packed: neighbours are read together, nothing else comes with them.
    assert buffer.size < lengths.sum() + 64


def test_selection_of_chunks(made: tuple[Path, np.ndarray, Codec]) -> None:
    path, signal, codec = made
    chosen = np.random.default_rng(0).permutation(NUM_RECORDS)[:300]
    chunks = ecgfast.open_store(path).load_chunks(chosen)
    np.testing.assert_array_equal(decode_chunks(codec, *chunks), signal[chosen])


def test_lead_arrays(made: tuple[Path, np.ndarray, Codec]) -> None:
    path, signal, _ = made
    store = ecgfast.open_store(path)
    np.testing.assert_array_equal(store.scale_uv, np.full((NUM_RECORDS, 12), 5, np.float32))
    np.testing.assert_array_equal(store.offset_adc, np.zeros((NUM_RECORDS, 12), np.float32))
    wide = signal.astype(np.float64)
    np.testing.assert_allclose(store.lead_mean, wide.mean(axis=2), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(store.lead_std, wide.std(axis=2), rtol=1e-6)
    assert store.records.num_rows == NUM_RECORDS


@pytest.mark.parametrize("wrong", [[-1], [NUM_RECORDS], [0.5], 3, [[1, 2]]])
def test_wrong_indices(made: tuple[Path, np.ndarray, Codec], wrong: object) -> None:
    with pytest.raises(IndexError, match="record numbers"):
        ecgfast.open_store(made[0]).read(wrong)  # type: ignore[arg-type]  # refused


def test_pickle_and_threads(
    made: tuple[Path, np.ndarray, Codec], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, signal, _ = made
    monkeypatch.setattr(shards, "_OPEN_FILES", 1)  # every switch of shard closes the other file
    store = pickle.loads(pickle.dumps(ecgfast.open_store(path)))
    rng = np.random.default_rng(1)
    orders = [rng.integers(0, NUM_RECORDS, 8) for _ in range(100)]
    with ThreadPoolExecutor(4) as pool:
        for order, read in zip(orders, pool.map(store.read, orders), strict=True):
            np.testing.assert_array_equal(read, signal[order])


def test_many_threads_share_one_reader_with_few_open_files(
    made: tuple[Path, np.ndarray, Codec], monkeypatch: pytest.MonkeyPatch
) -> None:
    close = os.close

    def close_slowly(fd: int) -> None:
        time.sleep(0.001)  # the other threads continue meanwhile
        close(fd)

    monkeypatch.setattr(shards, "_OPEN_FILES", 1)  # of the two shards, one is closed at any time
    monkeypatch.setattr(os, "close", close_slowly)
    store = ecgfast.open_store(made[0])
    expected = {record: chunk_of(store, record) for record in (0, 1099)}
    together = Barrier(8)

    def read_many(thread: int) -> None:
        together.wait()
        for number in range(50):
            record = (0, 1099)[(thread + number) % 2]
            assert chunk_of(store, record) == expected[record]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read_many, range(8)))


def chunk_of(store: StoreReader, record: int) -> bytes:
    buffer, offsets, lengths = store.read_chunks([record])
    return buffer[offsets[0] :][: lengths[0]].tobytes()


def copy_of(store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "copy"))


def test_damaged_record_is_named(made: tuple[Path, np.ndarray, Codec], tmp_path: Path) -> None:
    path = copy_of(made[0], tmp_path)
    shard = path / "signals.zarr/signal/c.1.0.0"
    _, offsets, _ = ecgfast.open_store(path)._shards.locate(np.array([1030]))
    data = bytearray(shard.read_bytes())
    data[offsets[0] + 50] ^= 4
    shard.write_bytes(data)
    store = ecgfast.open_store(path)
    np.testing.assert_array_equal(store.read([1029, 1031]), made[1][[1029, 1031]])
    with pytest.raises(CorruptStoreError, match=r"record 1030 in signals.zarr/signal/c.1.0.0"):
        store.read([3, 1030])


def test_missing_and_short_shards(made: tuple[Path, np.ndarray, Codec], tmp_path: Path) -> None:
    path = copy_of(made[0], tmp_path)
    shard = path / "signals.zarr/signal/c.1.0.0"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CorruptStoreError, match="less than its index"):
        ecgfast.open_store(path).read([1030])
    shard.unlink()
    with pytest.raises(CorruptStoreError, match="missing"):
        ecgfast.open_store(path).read([1030])
    np.testing.assert_array_equal(ecgfast.open_store(path).read([7]), made[1][[7]])


def test_not_a_store(made: tuple[Path, np.ndarray, Codec], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not a store"):
        ecgfast.open_store(tmp_path)
    path = copy_of(made[0], tmp_path)
    (path / "manifest.json").unlink()
    with pytest.raises(CorruptStoreError, match="unfinished"):
        ecgfast.open_store(path)


@pytest.mark.parametrize("array", LEAD_ARRAYS)
def test_a_damaged_lead_array_is_named(
    made: tuple[Path, np.ndarray, Codec], tmp_path: Path, array: str
) -> None:
    path = copy_of(made[0], tmp_path)
    name = f"signals.zarr/{array}/c.1.0"
    data = bytearray((path / name).read_bytes())
    data[1] ^= 1  # of the first record, not of the padding behind the last
    (path / name).write_bytes(data)
    with pytest.raises(CorruptStoreError, match=f"the checksum of {name} is wrong"):
        getattr(ecgfast.open_store(path), array)


def test_a_table_of_other_length_is_refused(
    made: tuple[Path, np.ndarray, Codec], tmp_path: Path
) -> None:
    path = copy_of(made[0], tmp_path)
    change_table(path, lambda table: table.slice(1))
    with pytest.raises(CorruptStoreError, match="has 1099 rows, the signals 1100"):
        _ = ecgfast.open_store(path).records


def swap_shards(path: Path) -> None:
    first, second = (path / f"signals.zarr/signal/c.{shard}.0.0" for shard in (0, 1))
    first.rename(path / "moved")
    second.rename(first)
    (path / "moved").rename(second)


@pytest.fixture(scope="module")
def whole_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two whole shards of equal size."""
    return make_store(tmp_path_factory.mktemp("whole"), 2048, codec="none")[0]


def test_swapped_shards_of_equal_size_are_noticed(whole_shards: Path, tmp_path: Path) -> None:
    path = copy_of(whole_shards, tmp_path)
    ecgfast.open_store(path).check_digests()
    swap_shards(path)
    with pytest.raises(CorruptStoreError, match=r"c\.1\.0\.0 is not what the manifest says"):
        ecgfast.open_store(path).check_digests([1024])


def test_swapped_shards_of_other_sizes_are_noticed_at_once(
    made: tuple[Path, np.ndarray, Codec], tmp_path: Path
) -> None:
    path = copy_of(made[0], tmp_path)
    swap_shards(path)
    with pytest.raises(CorruptStoreError, match=r"c\.1\.0\.0 has \d+ bytes, expected \d+"):
        ecgfast.open_store(path).read([1030])


def test_swapped_index_entries_are_noticed(
    made: tuple[Path, np.ndarray, Codec], tmp_path: Path
) -> None:
    path = copy_of(made[0], tmp_path)
    shard = path / "signals.zarr/signal/c.1.0.0"
    data = shard.read_bytes()
    index = np.frombuffer(data[-INDEX_BYTES:-4], "<u8").reshape(-1, 2).copy()
    index[[3, 4]] = index[[4, 3]]
    shard.write_bytes(data[:-INDEX_BYTES] + with_crc32c(index.tobytes()))
    store = ecgfast.open_store(path)
    np.testing.assert_array_equal(store.read([1027]), made[1][[1028]])  # no checksum knows a place
    store.check_digests([3])  # the other shard
    for _ in range(2):
        with pytest.raises(CorruptStoreError, match=r"c\.1\.0\.0 is not what the manifest says"):
            store.check_digests([3, 1027])


def test_a_shard_is_compared_once(made: tuple[Path, np.ndarray, Codec], tmp_path: Path) -> None:
    path = copy_of(made[0], tmp_path)
    store = ecgfast.open_store(path)
    shards = store._shards
    sizes = [(path / f"signals.zarr/signal/c.{shard}.0.0").stat().st_size for shard in (0, 1)]
    assert shards.check_digests(np.array([1, 2, 3])) == sizes[0]
    assert shards.check_digests(np.array([5, 1030])) == sizes[1]
    assert shards.check_digests(np.arange(NUM_RECORDS)) == 0


def test_lead_arrays_of_another_place_are_noticed(
    made: tuple[Path, np.ndarray, Codec], tmp_path: Path
) -> None:
    path = copy_of(made[0], tmp_path)
    shutil.copy(path / "signals.zarr/lead_std/c.0.0", path / "signals.zarr/lead_mean/c.0.0")
    with pytest.raises(CorruptStoreError, match=r"lead_mean/c\.0\.0 is not what the manifest says"):
        _ = ecgfast.open_store(path).lead_mean


def test_a_file_is_read_in_parts_and_not_beyond_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shard").write_bytes(bytes(range(100)))
    file, preadv = shards.ShardFile(tmp_path / "shard"), os.preadv
    assert file.sha256() == file.sha256() == hashlib.sha256(bytes(range(100))).hexdigest()
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: preadv(fd, [into[0][:7]], at))
    target = bytearray(90)
    file.read_parts([(memoryview(target), 10)])
    assert target == bytes(range(10, 100))
    with pytest.raises(CorruptStoreError, match="ends too early"):
        file.read_parts([(memoryview(target), 11)])


def test_chunks_far_apart_are_aligned_and_nothing_between_is_read(
    made: tuple[Path, np.ndarray, Codec],
) -> None:
    store = ecgfast.open_store(made[0])
    buffer, offsets, lengths = store.read_chunks([600, 3, 300])
    assert offsets[1] == 0  # by place in the file
    assert (offsets % 16 == 0).all()
    assert lengths.sum() <= buffer.size < lengths.sum() + 32
    assert [len(part) for part in store.read_chunks([])] == [0, 0, 0]


@pytest.fixture(scope="module")
def with_holes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Of 8 inputs the first, fourth and last are refused."""
    folder = tmp_path_factory.mktemp("holes")
    signal = write_cohort(folder / "in", 8)
    for number in (0, 3, 7):
        (folder / f"in/r{number:05d}.dat").write_bytes(b"torn")
    convert_quietly([folder / "in"], folder / "store")
    return folder / "store", signal[[1, 2, 4, 5, 6]]


def test_records_are_numbered_without_holes(with_holes: tuple[Path, np.ndarray]) -> None:
    path, signal = with_holes
    store = ecgfast.open_store(path)
    assert (len(store), store.num_slots, store.slots.tolist()) == (5, 8, [1, 2, 4, 5, 6])
    np.testing.assert_array_equal(store.read([4, 0, 2]), signal[[4, 0, 2]])
    np.testing.assert_allclose(store.lead_mean, signal.mean(axis=2), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(store.scale_uv, np.full((5, 12), 5, np.float32))
    assert store.records["row"].to_pylist() == [1, 2, 4, 5, 6]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read([3]), signal[[3]])


@pytest.mark.parametrize(
    ("row", "message"),
    [(3, r"c\.0\.0\.0: chunk 3 is missing"), (1, "name other rows"), (8, "name other rows")],
)
def test_rows_that_are_holes_or_none_are_damage(
    with_holes: tuple[Path, np.ndarray], tmp_path: Path, row: int, message: str
) -> None:
    path = copy_of(with_holes[0], tmp_path)
    change_cell(path, "row", 4 if row == 8 else 1, row)
    with pytest.raises(CorruptStoreError, match=message):
        ecgfast.open_store(path).read([0, 1])


def test_a_store_with_holes_that_does_not_say_where_is_damage(
    with_holes: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path = copy_of(with_holes[0], tmp_path)
    change_table(path, lambda table: table.drop_columns(["row"]))
    with pytest.raises(CorruptStoreError, match="does not say which rows are records"):
        _ = ecgfast.open_store(path).lead_std
    assert any("does not say which rows" in problem for problem in verify_store(path))
