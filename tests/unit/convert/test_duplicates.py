"""The same ECG twice is found, whatever was done to it; two ECGs of one heart are not."""

import struct
from pathlib import Path

import numpy as np
import pytest
import xxhash
from ecgfast_kernels.codec.signals import NO_BEAT, Fingerprints, fingerprints
from numpy.typing import NDArray
from recordings import convert_quietly, heart, irregular, recording, write_wfdb
from scipy.signal import resample

import ecgfast
from ecgfast import log
from ecgfast.convert.duplicates import (
    Groups,
    _beats_agree,
    _directions,
    _near,
    join_same_content,
    join_same_signal,
)
from ecgfast.convert.measures import (
    LEAST_TIMESTEPS,
    content_digests,
    joined_fingerprints,
    packed_fingerprints,
    unpacked_fingerprints,
)
from ecgfast.errors import EcgfastError
from ecgfast.store.info import describe

LONG = recording(heart(0), irregular(30, seed=5), seconds=30, seed=6)
WHOLE = LONG[:, :5000]


def others() -> dict[str, NDArray[np.int16]]:
    """Other hearts, the same heart another day, and a paced heart that was recorded twice."""
    paced = np.arange(0.4, 10, 0.8)
    hearts = {
        f"other{n}": recording(heart(n), irregular(10, seed=n), seconds=10, seed=n)
        for n in range(1, 6)
    }
    return hearts | {
        "same_heart": recording(heart(0), irregular(10, seed=77), seconds=10, seed=78),
        "paced1": recording(heart(9), paced, seconds=10, seed=1),
        "paced2": recording(heart(9), paced, seconds=10, seed=2),
    }


def at_rate(signal: NDArray[np.int16], rate: int) -> NDArray[np.int16]:
    """Another sampling of the same ECG, by FFT: convert itself uses a filter."""
    return np.rint(resample(signal, signal.shape[1] * rate // 500, axis=1)).astype(np.int16)


def rescaled(signal: NDArray[np.int16]) -> NDArray[np.int16]:
    gain = np.linspace(0.4, 2.5, 12)[:, None]
    return np.rint(signal * gain + np.arange(-300, 300, 50)[:, None]).astype(np.int16)


COPIES = {  # signal, rate
    "same": (WHOLE, 500),
    "rescaled": (rescaled(WHOLE), 500),
    "coarse": (WHOLE // 8, 500),
    "100Hz": (at_rate(WHOLE, 100), 100),
    "250Hz": (at_rate(WHOLE, 250), 250),
    "400Hz": (at_rate(WHOLE, 400), 400),
    "1000Hz": (at_rate(WHOLE, 1000), 1000),
    "cut8s": (WHOLE[:, 731:4731], 500),
    "middle": (LONG[:, 2333:7333], 500),
    "middle_250Hz": (at_rate(LONG[:, 1501:6501], 250), 250),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str | None, list[str]]]:
    """By name: duplicate_of, and the flags."""
    folder = tmp_path_factory.mktemp("copies")
    write_wfdb(folder / "in/a_long", LONG)
    for name, (signal, rate) in COPIES.items():
        write_wfdb(folder / "in" / f"copy_{name}", signal, rate=rate)
    for name, signal in others().items():
        write_wfdb(folder / "in" / name, signal)
    convert_quietly([folder / "in"], folder / "store", short="pad", keep_identifiers=True)
    records = ecgfast.open_store(folder / "store").records.to_pylist()
    return {row["record_id"]: (row["duplicate_of"], row["flags"].split(";")) for row in records}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found(found: dict[str, tuple[str | None, list[str]]], name: str) -> None:
    duplicate_of, flags = found[f"copy_{name}"]
    assert duplicate_of == "a_long"
    assert "duplicate" in flags


@pytest.mark.parametrize("name", ["a_long", *others()])
def test_another_ecg_is_none(found: dict[str, tuple[str | None, list[str]]], name: str) -> None:
    duplicate_of, flags = found[name]
    assert duplicate_of is None
    assert "duplicate" not in flags


def test_content_is_the_digest_of_the_digits() -> None:
    signal = np.stack([WHOLE, WHOLE, np.zeros_like(WHOLE)])
    signal[1, 11, 4999] += 1
    first, second, empty = content_digests(signal, signal.std(axis=2).astype(np.float32))
    samples = b"".join(struct.pack("<5000h", *lead) for lead in WHOLE.tolist())
    assert first == xxhash.xxh3_128(samples).hexdigest()
    assert len(first) == 32
    assert second not in (first, None)
    assert empty is None


def test_content_knows_no_codec_and_no_key(tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/r", WHOLE)
    write_wfdb(tmp_path / "in/zeros", np.zeros((12, 5000), np.int16))
    columns = []
    for codec, key in (("ecgpack", "11"), ("zstd", "22")):
        (tmp_path / f"{codec}.key").write_text(key * 32)
        convert_quietly([tmp_path / "in"], tmp_path / codec, codec=codec)
        records = ecgfast.open_store(tmp_path / codec).records
        flags, content = records["flags"].to_pylist(), records["content"].to_pylist()
        columns.append(dict(zip(flags, content, strict=True)))
    assert columns[0] == columns[1]
    assert [value is None for value in columns[0].values()].count(True) == 1


def test_groups_are_transitive() -> None:
    groups = Groups(6)
    groups.join(4, 5)
    groups.join(1, 5)
    groups.join(3, 0)
    assert groups.firsts().tolist() == [0, 1, 2, 0, 1, 1]


def test_no_content_joins_nothing() -> None:
    groups = Groups(5)
    join_same_content(groups, np.array([-1, 7, -1, 7, 3]))
    assert groups.firsts().tolist() == [0, 1, 2, 1, 4]


def _found(signals: NDArray[np.int16]) -> Fingerprints:
    return fingerprints(signals, least_timesteps=LEAST_TIMESTEPS)


def _unpacked(signals: NDArray[np.int16]) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    packed = joined_fingerprints(packed_fingerprints(_found(signals)))
    return unpacked_fingerprints(packed.copy())


def test_many_copies_cost_no_comparison(tmp_path: Path) -> None:
    groups = Groups(300)
    join_same_content(groups, np.zeros(300, np.int64))
    correlation, beats = (np.repeat(each, 300, axis=0) for each in _unpacked(WHOLE[None]))

    def read(records: NDArray[np.int64]) -> NDArray[np.int16]:
        raise AssertionError(f"read {records}")

    join_same_signal(groups, correlation, beats, np.arange(300), read, tmp_path)
    assert not groups.firsts().any()


def test_forty_copies_behind_eight_neighbours(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    copies = np.stack([WHOLE * 4 + rng.integers(-2, 3, (12, 1)) for _ in range(40)])
    copies = copies.astype(np.int16)
    groups = Groups(40)
    join_same_signal(
        groups, *_unpacked(copies), np.arange(40), lambda records: copies[records], tmp_path
    )
    assert not groups.firsts().any()


@pytest.mark.parametrize(("num_beats", "joined"), [(3, False), (4, True)])
def test_two_records_of_four_beats_can_be_one_ecg(
    num_beats: int, joined: bool, tmp_path: Path
) -> None:
    signals = np.stack([WHOLE, WHOLE + np.int16(1)])
    correlation, beats = _unpacked(signals)
    beats[:, num_beats:] = NO_BEAT
    groups = Groups(2)
    join_same_signal(
        groups, correlation, beats, np.arange(2), lambda records: signals[records], tmp_path
    )
    assert groups.firsts().tolist() == [0, 0 if joined else 1]


def _all_near(correlation: NDArray[np.int8], folder: Path) -> list[list[int]]:
    (pairs,) = _near(correlation, np.arange(len(correlation)), folder)
    return [list(pair) for pair in pairs.tolist()]


def test_each_record_is_compared_with_the_eight_nearest(tmp_path: Path) -> None:
    """Of ten on a line, the first and the last one alone have eight that are nearer."""
    correlation = np.zeros((10, 28), np.int8)
    correlation[:, 5] = 3 * np.arange(10)
    expected = {(one, other) for one in range(10) for other in range(one + 1, 10)} - {(0, 9)}
    assert set(map(tuple, _all_near(correlation, tmp_path))) == expected


def test_near_is_a_tenth_of_all_correlations(tmp_path: Path) -> None:
    """Root mean square, in steps of 1/127: 12.7."""
    rng = np.random.default_rng(0)
    correlation = rng.integers(-60, 60, (80, 28)).astype(np.int8)
    for n, apart in enumerate((12, 13, 8, -8)):
        correlation[40 + n] = correlation[n] + np.int8(apart) * rng.choice([-1, 1], 28)
    assert [3, 43] in _all_near(correlation, tmp_path)
    apart = correlation[:, None].astype(float) - correlation[None]
    near = np.argwhere(np.sqrt((apart**2).mean(axis=2)) <= 12.7)
    expected = near[near[:, 0] < near[:, 1]]
    assert expected.tolist() == [[0, 40], [2, 42], [3, 43]]
    np.testing.assert_array_equal(_all_near(correlation, tmp_path), expected)


def test_directions_are_principal_components(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, np.linspace(2, 25, 28), (300, 28)) + np.linspace(-20, 40, 28)
    correlation = np.clip(np.rint(values), -127, 127).astype(np.int8)
    centred = correlation - correlation.mean(axis=0)
    expected = centred @ np.linalg.svd(centred)[2][:8].T
    points = _directions(correlation, np.arange(300), tmp_path)
    np.testing.assert_allclose(
        np.abs(points - points.mean(axis=0)), np.abs(expected), rtol=1e-6, atol=1e-6
    )


def of_beats(*records: list[int]) -> NDArray[np.uint16]:
    beats = np.full((len(records), 32), NO_BEAT, np.uint16)
    for n, record in enumerate(records):
        beats[n, : len(record)] = record
    return beats


FOUR = [100, 900, 1750, 2500]
NINE = [100, 900, 1750, 2500, 3390, 4300, 5033, 5901, 6666]


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        (FOUR, [300, 1100, 1950, 2700], True),
        (FOUR, [300, 1108, 1950, 2700], True),  # 8 ms: 4 to each side
        (FOUR, [300, 1109, 1950, 2700], False),
        (FOUR, [292, 1100, 1950, 2700], True),
        (FOUR, [291, 1100, 1950, 2700], False),
        (FOUR, [300, 1100, 1950, 2850], False),  # three
        (FOUR[:3], [300, 1100, 1950], False),
        (FOUR, [7, 300, 1100, 1950, 2700, 9999], True),
        (NINE, [*NINE[:5], 9000, 9111, 9333, 9777], True),  # half of nine
        (NINE, [*NINE[:4], 8000, 9111, 9333, 9777, 9888], False),
        (NINE[:8], [*NINE[:4], 8000, 9111, 9333, 9777, 9888], True),  # of the fewer beats
        (NINE, FOUR, True),
    ],
)
def test_how_many_beats_agree(one: list[int], other: list[int], agree: bool) -> None:
    assert _beats_agree(of_beats(one), of_beats(other)).tolist() == [agree]
    assert _beats_agree(of_beats(other), of_beats(one)).tolist() == [agree]


def test_beats_of_many_pairs() -> None:
    """Whatever their number of beats, and more pairs than are compared at a time."""
    rng = np.random.default_rng(0)
    pairs, expected = [], []
    for _ in range(600):
        one = np.sort(rng.choice(9000, rng.integers(3, 14), replace=False))
        other = one + rng.integers(0, 14, one.size)
        pairs.append((one.tolist(), other.tolist()))
        lags = np.sort((one[:, None] - other).ravel())
        most = max(int(((lags >= lag) & (lags <= lag + 8)).sum()) for lag in lags)
        expected.append(most >= max(4, -(-one.size // 2)))
    assert 100 < sum(expected) < 500
    first, second = (of_beats(*each) for each in zip(*pairs, strict=True))
    assert _beats_agree(first, second).tolist() == expected


def test_windows_of_one_recording_are_not_compared(tmp_path: Path) -> None:
    beats = np.arange(0.4, 20, 0.8)
    steady = recording(heart(9), beats, seconds=10, seed=1)
    write_wfdb(tmp_path / "in/twice", np.concatenate([steady, steady[:, ::1] + 1], axis=1))
    convert_quietly([tmp_path / "in"], tmp_path / "store", window="all")
    assert describe(tmp_path / "store").num_duplicates == 0


@pytest.mark.parametrize("whole", ["a", "z"])  # before and behind its segments
def test_segments_belong_to_their_record(tmp_path: Path, whole: str) -> None:
    folder = tmp_path / "in/patient"
    write_wfdb(folder / "s1", LONG[:, :6000])
    write_wfdb(folder / "s2", LONG[:, 6000:])
    (folder / f"{whole}.hea").write_text(f"{whole}/2 12 500 15000\ns1 6000\ns2 9000\n")
    write_wfdb(tmp_path / "other/elsewhere/s1", others()["other1"])
    write_wfdb(tmp_path / "other/zcopy", LONG[:, 6500:11500])
    # A folder's segments are no inputs, but here each header is named.
    sources = [folder / f"{name}.hea" for name in ("s1", "s2", whole)] + [tmp_path / "other"]
    summary = convert_quietly(sources, tmp_path / "store", keep_identifiers=True)
    records = ecgfast.open_store(tmp_path / "store").records.to_pylist()
    rows = {row["record_id"]: row for row in records}
    joined = whole
    named = {name: row["duplicate_of"] for name, row in rows.items()}
    assert named == {
        "elsewhere/s1": None,
        joined: None,
        "s1": joined,
        "s2": joined,
        "zcopy": joined,  # of a segment that is part of it
    }
    assert "segment" in rows["s2"]["flags"].split(";")
    assert "duplicate" not in rows["s2"]["flags"].split(";")
    assert "duplicate" in rows["zcopy"]["flags"].split(";")
    assert summary.num_duplicates == 3


def test_segments_of_a_folder_are_stored_once(tmp_path: Path) -> None:
    write_wfdb(tmp_path / "in/s1", LONG[:, :6000])
    write_wfdb(tmp_path / "in/s2", LONG[:, 6000:])
    (tmp_path / "in/m.hea").write_text("m/2 12 500 15000\ns1 6000\ns2 9000\n")
    summary = convert_quietly([tmp_path / "in"], tmp_path / "store", window="all")
    assert (summary.num_inputs, summary.num_records, summary.num_duplicates) == (1, 3, 0)
    assert (summary.num_files, summary.passed_over) == (5, {})
    signal = ecgfast.open_store(tmp_path / "store").read(np.arange(3))
    np.testing.assert_array_equal(np.concatenate(list(signal), axis=1), LONG)


def test_strict_ends_with_an_error_and_a_finished_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        write_wfdb(tmp_path / "in" / name, WHOLE)
    (tmp_path / "labels.csv").write_text("record_id,case\na,1\nb,0\nc,1\n")
    labels = tmp_path / "labels.csv"
    monkeypatch.setattr(log, "_strict", True)
    for _ in range(2):  # a finished store too
        with pytest.raises(EcgfastError, match="2 records duplicate other records") as error:
            convert_quietly([tmp_path / "in"], tmp_path / "store", labels=labels)
        store = ecgfast.open_store(tmp_path / "store")
        first, second, _ = store.records["record_id"].to_pylist()
        assert f"the first is {second}, the same ECG as {first};" in str(error.value)
        assert "without --strict" in str(error.value)
        assert store.records["case"].to_pylist() == [1, 0, 1]
    copied = convert_quietly([tmp_path / "store"], tmp_path / "copy", codec="none")
    assert copied.num_duplicates == 2  # they were there before
    monkeypatch.setattr(log, "_strict", False)
    summary = convert_quietly([tmp_path / "in"], tmp_path / "store", labels=labels)
    assert (summary.num_records, summary.num_duplicates) == (3, 2)
    assert describe(summary.store).num_duplicates == 2
