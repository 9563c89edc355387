"""Every real recording at hand, against the wfdb package."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wfdb
from recordings import ecg_like, write_wfdb

from ecgfast.errors import FormatError
from ecgfast.ingest import InputFile, read_record
from ecgfast.ingest.inventory import discover
from ecgfast.ingest.leads import lead_position
from ecgfast.records import INVALID, LEADS

FOLDERS = ("ludb", "ptbxl/hr_gt", "ptbxl/lr_gt", "ptbxl/faulty_traces", "cinc2020")
REFUSED_BY_WFDB = {"E00009", "E00015", "E00018", "E00793"}


Oracle = Callable[[Path], wfdb.Record]


def _input(path: Path, record_id: str = "r") -> InputFile:
    return InputFile(record_id=record_id, path=path, source=path.parent)


@pytest.fixture
def oracle(tmp_path: Path) -> Oracle:
    """Read ADC units with the wfdb package, after correcting record lines that it refuses."""

    def read(path: Path) -> wfdb.Record:
        name = path.with_suffix("")
        if path.stem in REFUSED_BY_WFDB:
            lines = path.read_text().splitlines()
            lines[0] = " ".join([path.stem, *lines[0].split()[1:4]])
            mended = tmp_path / path.name
            mended.write_text("\n".join(lines) + "\n")
            shutil.copy(path.with_suffix(".mat"), tmp_path)
            name = mended.with_suffix("")
        return wfdb.rdrecord(str(name), physical=False)

    return read


@pytest.mark.parametrize("folder", FOLDERS)
def test_adc_units_scales_and_rates_equal_the_wfdb_package(
    shared_data: Path, oracle: Oracle, folder: str
) -> None:
    items = discover([shared_data / folder])
    compared = 0
    for item in items:
        if item.record_id == "old_headers/E00009":
            continue  # has no signal file, see below
        record = read_record(item)
        theirs = oracle(item.path)
        order = np.argsort([lead_position(name) for name in theirs.sig_name])
        assert record.signal.dtype == np.int16
        np.testing.assert_array_equal(record.signal, theirs.d_signal.T[order])
        gain = np.array(theirs.adc_gain)[order]
        np.testing.assert_array_equal(record.scale_uv, (1000 / gain).astype(np.float32))
        np.testing.assert_array_equal(record.offset_adc, np.array(theirs.baseline)[order])
        assert record.sampling_rate_hz == theirs.fs
        compared += 1
    assert compared == len(items) - (folder == "cinc2020")


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("says_length", [True, False])
def test_format_212_at_every_length(tmp_path: Path, extra: int, says_length: bool) -> None:
    """With a 13th signal, an odd number of timesteps ends in half a pair; -2048 is invalid."""
    rng = np.random.default_rng(extra)
    names = [*LEADS, "pleth"][: 12 + extra]
    for num_timesteps in (1, 2, 3, 4, 5, 7, 50, 99, 1001):
        adc = rng.integers(-2048, 2048, (num_timesteps, len(names)))
        adc[rng.random(adc.shape) < 0.2] = -2048
        adc[-1, -1] = -1  # sets every bit of the last bytes
        facts = {"units": ["mV"] * len(names), "adc_gain": [200.0] * len(names)}
        wfdb.wrsamp("r", 500, sig_name=names, d_signal=adc, fmt=["212"] * len(names),
                    baseline=[0] * len(names), write_dir=str(tmp_path), **facts)  # fmt: skip
        header = tmp_path / "r.hea"
        if not says_length:
            header.write_text(header.read_text().replace(f" {num_timesteps}\n", "\n", 1))
        record = read_record(_input(header))
        theirs = wfdb.rdrecord(str(tmp_path / "r"), physical=False).d_signal.T[:12]
        expected = np.where(theirs == -2048, INVALID, theirs)
        np.testing.assert_array_equal(record.signal, expected)
        np.testing.assert_array_equal(record.signal, np.where(adc == -2048, INVALID, adc).T[:12])


def test_a_damaged_file_of_format_212_is_refused(tmp_path: Path) -> None:
    adc = np.random.default_rng(3).integers(-2000, 2000, (60, 12))
    wfdb.wrsamp("r", 500, ["mV"] * 12, list(LEADS), d_signal=adc, fmt=["212"] * 12,
                adc_gain=[200.0] * 12, baseline=[0] * 12, write_dir=str(tmp_path))  # fmt: skip
    data = tmp_path / "r.dat"
    content = bytearray(data.read_bytes())
    content[4] ^= 0x10  # the lowest of the four high bits of the fourth sample
    data.write_bytes(content)
    with pytest.raises(FormatError, match="checksum of aVR differs"):
        read_record(_input(tmp_path / "r.hea"))
    data.write_bytes(content[:-1])
    with pytest.raises(FormatError, match="holds 1079 bytes, its header promises 1080"):
        read_record(_input(tmp_path / "r.hea"))


def test_formats_212_and_16_behind_a_gap_in_two_files(tmp_path: Path) -> None:
    """The signals of a file begin where `+OFFSET` says."""
    adc = np.random.default_rng(4).integers(-2000, 2000, (61, 12))
    lines = []
    for name, storage, leads in (("a", "212", LEADS[:5]), ("b", "16", LEADS[5:])):
        part = adc[:, :5] if name == "a" else adc[:, 5:]
        count = len(leads)
        wfdb.wrsamp(name, 500, ["mV"] * count, list(leads), d_signal=part, fmt=[storage] * count,
                    adc_gain=[200.0] * count, baseline=[0] * count,
                    write_dir=str(tmp_path))  # fmt: skip
        data = tmp_path / f"{name}.dat"
        data.write_bytes(bytes(24) + data.read_bytes())
        signals = (tmp_path / f"{name}.hea").read_text().splitlines()[1:]
        lines += [line.replace(f" {storage} ", f" {storage}+24 ", 1) for line in signals]
    (tmp_path / "r.hea").write_text("\n".join(["r 12 500 61", *lines]) + "\n")
    record = read_record(_input(tmp_path / "r.hea"))
    np.testing.assert_array_equal(record.signal, adc.T)
    theirs = wfdb.rdrecord(str(tmp_path / "r"), physical=False)
    np.testing.assert_array_equal(record.signal, theirs.d_signal.T)


@pytest.mark.parametrize("storage", ["16", "212"])
def test_signals_of_one_file_that_are_parted_in_the_header_are_refused(
    tmp_path: Path, storage: str
) -> None:
    """The package fails at such a header, whose checksums of 0 say nothing."""
    adc = np.random.default_rng(5).integers(-2000, 2000, (60, 12))
    lines: dict[str, list[str]] = {}
    for name, leads in (("a", [0, 1, 2, 9, 10, 11]), ("b", [3, 4, 5, 6, 7, 8])):
        names = [LEADS[lead] for lead in leads]
        wfdb.wrsamp(name, 500, ["mV"] * 6, names, d_signal=adc[:, leads], fmt=[storage] * 6,
                    adc_gain=[200.0] * 6, baseline=[0] * 6, write_dir=str(tmp_path))  # fmt: skip
        words = [line.split() for line in (tmp_path / f"{name}.hea").read_text().splitlines()[1:]]
        lines[name] = [" ".join([*word[:6], "0", *word[7:]]) for word in words]
    parted = [*lines["a"][:3], *lines["b"], *lines["a"][3:]]
    (tmp_path / "r.hea").write_text("\n".join(["r 12 500 60", *parted]) + "\n")
    with pytest.raises(FormatError):
        read_record(_input(tmp_path / "r.hea"))


def test_skewed_signals_are_aligned(tmp_path: Path) -> None:
    """Signal 5 of the file lags by 7 samples, as its header states: `16:7`."""
    signal = ecg_like(1, seed=0)[0]
    write_wfdb(tmp_path / "r", signal)
    header = tmp_path / "r.hea"
    lines = header.read_text().splitlines()
    lines[6] = lines[6].replace(" 16 ", " 16:7 ", 1)
    header.write_text("\n".join(lines) + "\n")
    record = read_record(_input(header))
    np.testing.assert_array_equal(record.signal[5, :-7], signal[5, 7:])
    np.testing.assert_array_equal(np.delete(record.signal, 5, 0), np.delete(signal, 5, 0))
    theirs = wfdb.rdrecord(str(tmp_path / "r"), physical=False)
    np.testing.assert_array_equal(record.signal, theirs.d_signal.T)


def test_wfdb_package_refuses_what_we_read(shared_data: Path) -> None:
    for name in REFUSED_BY_WFDB:
        with pytest.raises(Exception):  # noqa: B017, PT011 - the package's own choice of class
            wfdb.rdrecord(str(shared_data / "cinc2020" / name))


def test_header_without_signal_file_is_refused(shared_data: Path) -> None:
    with pytest.raises(ValueError, match=r"E00009\.mat is missing"):
        read_record(_input(shared_data / "cinc2020/old_headers/E00009.hea"))


def test_twelve_of_fifteen_leads_over_two_files(shared_data: Path) -> None:
    record = read_record(_input(shared_data / "wfdb/s0010_re.hea"))
    theirs = wfdb.rdrecord(str(shared_data / "wfdb/s0010_re"), physical=False)
    np.testing.assert_array_equal(record.signal, theirs.d_signal[:, :12].T)
    assert (record.age, record.sex, record.sampling_rate_hz) == (81, "female", 1000)


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("100", "lead I, II"),
        ("a103l", "lead I, V1"),
        ("mixedsignals", "I, V1"),
        ("binformats", "V6"),
    ],
)
def test_records_without_twelve_leads_name_what_is_missing(
    shared_data: Path, name: str, absent: str
) -> None:
    with pytest.raises(ValueError, match=f"no .*{absent}"):
        read_record(_input(shared_data / f"wfdb/{name}.hea"))


def test_id_comes_from_the_path_where_the_header_lies(shared_data: Path) -> None:
    items = {item.record_id: item for item in discover([shared_data / "ptbxl/hr_gt"])}
    copy, original = read_record(items["90076"]), read_record(items["14039_hr"])
    assert copy.record_id == "90076"
    np.testing.assert_array_equal(copy.signal, original.signal)


def test_ludb_comments(shared_data: Path) -> None:
    record = read_record(_input(shared_data / "ludb/data/1.hea"))
    assert (record.age, record.sex) == (51, "female")
    assert "Left ventricular hypertrophy" in str(record.labels["diagnosis"])


def test_ptbxl_comments_and_age_300(shared_data: Path) -> None:
    records = [read_record(item) for item in discover([shared_data / "ptbxl/hr_gt"])]
    assert [r.age for r in records if "age_implausible" in r.flags] == [None]
    by_id = {r.record_id: r for r in records}
    assert by_id["14039_hr"].labels["diagnosis"] == "NORM"
    assert by_id["14039_hr"].provenance["recorded"] == "08:17:10 23/04/1995"
    assert {r.sex for r in records} == {"female", "male"}


def test_challenge_comments_and_old_gains(shared_data: Path) -> None:
    folder = shared_data / "cinc2020"
    record = read_record(_input(folder / "E00009.hea"))
    assert record.labels == {"diagnosis": "428750005,39732003,427084000"}
    assert record.flags == ()
    old = read_record(_input(folder / "old_headers/S0002.hea"))
    assert old.labels == {}
    assert old.flags == ("gain_implausible",)
    assert old.scale_uv[0] == np.float32(1000 / 2_000_000)
