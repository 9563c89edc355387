"""The header grammar of header(5), and what damage looks like."""

import os
from pathlib import Path

import numpy as np
import pytest
import wfdb
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest import InputFile, read_record
from ecgfast.ingest.wfdb_header import parse_comments, parse_header, unit_uv
from ecgfast.records import INVALID, LEADS, EcgRecord


def _spec(line: str) -> dict[str, object]:
    return parse_header(f"r 1 500 10\n{line}\n", "f").signals[0]._asdict()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.dat 16", {"scale_uv": 5, "baseline": 0, "checksum": None, "name": ""}),
        ("a.dat 16", {"samples_per_frame": 1, "skew": 0, "byte_offset": 0}),
        ("a.dat 16 100 12", {"scale_uv": 10, "baseline": 0, "checksum": None}),
        ("a.dat 16 100 12 3 5", {"baseline": 3, "checksum": None}),
        ("a.dat 16 100 12 3 5 -9", {"checksum": -9, "name": ""}),
        ("a.dat 16 100 12 3 5 -9 0", {"checksum": -9, "name": ""}),
        (f"a.dat 16 1({(1 << 62) - 1})", {"baseline": (1 << 62) - 1}),
        (f"a.dat 16 1({1 - (1 << 62)})", {"baseline": 1 - (1 << 62)}),
        ("a.dat 16 0", {"scale_uv": 5}),
        ("a.dat 16 1.25e+02(-7)/uV 12 3", {"scale_uv": 0.008, "baseline": -7}),
        ("a.dat 212 100/V 12 1024", {"format": 212, "baseline": 1024, "scale_uv": 1e4}),
        ("a.dat 516x4:3+24 1", {"samples_per_frame": 4, "skew": 3, "byte_offset": 24}),
        ("a.dat 16 1/mV 16 0 5 -9 0 lead  I ", {"checksum": -9, "name": "lead  I"}),
    ],
)
def test_signal_lines(line: str, expected: dict[str, object]) -> None:
    assert expected.items() <= _spec(line).items()


@pytest.mark.parametrize(
    ("line", "rate", "length"),
    [
        ("r 0 0.5 3", 0.5, 3),
        ("r 0", 250, 0),
        ("r 0 360", 360, 0),
        ("r 0 62.5/999.5(3) 14400", 62.5, 14400),
        ("r.mat 0 500 10 05-May-2020 14:50:55", 500, 10),
    ],
)
def test_record_lines(line: str, rate: float, length: int) -> None:
    header = parse_header(f"# note\n\n{line}\n#Age: 3\n", "f")
    assert (header.sampling_rate_hz, header.num_timesteps) == (rate, length)
    assert header.comments == ("note", "Age: 3")


def test_lines_beyond_the_promised_signals_are_none_of_them() -> None:
    header = parse_header("r 2 500 10\na.dat 16\nb.dat 212\nc.dat 80\n", "f")
    assert [(spec.file_name, spec.format) for spec in header.signals] == [
        ("a.dat", 16),
        ("b.dat", 212),
    ]
    segmented = parse_header("r/2 1 500 10\ns1 4\ns2 6\nlayout 0\n", "f")
    assert [(part.name, part.num_timesteps) for part in segmented.segments] == [
        ("s1", 4),
        ("s2", 6),
    ]
    assert segmented.signals == ()


def test_the_largest_rate_and_segment_and_a_gap() -> None:
    header = parse_header(f"r/2 1 999999 0\n~ 7\ns2 {10**15 - 1} more words\n", "f")
    assert header.sampling_rate_hz == 999_999
    assert header.segments == ((None, 7), ("s2", 10**15 - 1))


def test_two_words_of_the_record_line_say_when_it_was_made() -> None:
    header = parse_header("r 0 500 10 05-May-2020 14:50:55 more\n", "f")
    assert header.date_time == ("05-May-2020", "14:50:55")


def test_units_of_voltage() -> None:
    units = ("V", "mV", "uV", "\u00b5V", "\u03bcV", "nV")  # with the two letters that look like mu
    assert [unit_uv(unit) for unit in units] == [1e6, 1e3, 1, 1, 1, 1e-3]
    assert np.isnan(unit_uv("mmHg"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty header"),
        ("# only\n", "empty header"),
        ("r\n", "record line"),
        ("r twelve\n", "record line"),
        ("r 1 -5\na.dat 16\n", "rate in"),
        ("r 2 500\na.dat 16\n", "got 1 signal lines"),
        ("r 0 0\n", "at 0 Hz, allowed a rate in"),
        ("r 0 1e6\n", "rate in"),
        ("r 0 500 -1\n", "of -1 timesteps at 500 Hz, allowed"),
        ("r -1 500 10\n", "-1 signals of 10"),
        ("r/3 1 500 10\ns1 4\ns2 6\n", "got 2 segment lines"),
        ("r/1 1 500 10\ns1\n", "segment line 1 is damaged"),
        ("r/2 1 500 10\ns1 4\n../s2 4\n", "segment line 2 is damaged"),
        ("r/2 1 500 10\ns1 4\ns2 1" + "0" * 15, "segment line 2 is damaged"),
        ("r 1 500\na.dat\n", "signal line"),
        (f"r 1 500\na.dat 16 1({1 << 62})\n", "signal line"),
        (f"r 1 500\na.dat 16 1({-(1 << 62)})\n", "signal line"),
        ("r 1 500\na.dat x16\n", "signal line"),
        ("r 1 500\na.dat 16 much/mV\n", "signal line"),
    ],
)
def test_what_is_no_header_is_refused(text: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_header(text, "f")


@pytest.mark.parametrize(
    ("comments", "age", "sex", "flags"),
    [
        (["Age: 45", "Sex: Male"], 45, "male", []),
        (["<age>: 51 <sex>: F"], 51, "female", []),
        (["age: 81", "sex: female"], 81, "female", []),
        (["Age: 300", "Sex: Unknown"], None, None, ["age_implausible"]),
        (["Age: -1"], None, None, ["age_implausible"]),
        (["Age: NaN"], None, None, []),
        (["synthetic"], None, None, ["synthetic"]),
        (["69 M 1085 1629 x1"], None, None, []),
    ],
)
def test_age_and_sex(
    comments: list[str], age: float | None, sex: str | None, flags: list[str]
) -> None:
    fields = parse_comments(comments)
    assert (fields.age, fields.sex, fields.flags) == (age, sex, flags)


def test_ids_labels_and_nothing_else() -> None:
    fields = parse_comments(["<subject_id>: 17", "Site: 2", "Dx: 1,2", "Rx: x", "Name: J. Doe"])
    assert (fields.patient_id, fields.site, fields.labels) == ("17", "2", {"diagnosis": "1,2"})


def _write(
    folder: Path,
    name: str = "r",
    change: str = "",
    *,
    adc: NDArray[np.int64] | None = None,
    storage: str = "16",
    gain: float = 200.0,
    baseline: int = 0,
) -> Path:
    """Write a 12-lead record with the wfdb package; `change` edits the header: "old=>new"."""
    if adc is None:
        adc = np.random.default_rng(0).integers(-900, 900, (100, 12))
    wfdb.wrsamp(
        name,
        fs=500,
        units=["mV"] * 12,
        sig_name=list(LEADS),
        d_signal=adc,
        fmt=[storage] * 12,
        adc_gain=[gain] * 12,
        baseline=[baseline] * 12,
        write_dir=str(folder),
    )
    header = folder / f"{name}.hea"
    if change:
        old, new = change.split("=>")
        text = header.read_text()
        assert old in text
        header.write_text(text.replace(old, new))
    return header


def _read(path: Path) -> EcgRecord:
    return read_record(InputFile(record_id="r", path=path, source=path.parent))


def test_a_written_record_comes_back(tmp_path: Path) -> None:
    record = _read(_write(tmp_path))
    np.testing.assert_array_equal(
        record.signal, np.random.default_rng(0).integers(-900, 900, (100, 12)).T
    )
    assert set(record.scale_uv) == {np.float32(5)}


def test_names_in_latin_1_stay_apart(tmp_path: Path) -> None:
    found = set()
    for name in (b"M\xfcller", b"M\xf6ller", "M\u00fcller".encode()):
        path = _write(tmp_path)
        path.write_bytes(path.read_bytes() + b"# patient: " + name + b"\n")
        found.add(_read(path).patient_id)
    assert found == {"M\u00fcller", "M\u00f6ller"}


def test_length_may_be_absent(tmp_path: Path) -> None:
    assert _read(_write(tmp_path, change="500 100=>500")).signal.shape == (12, 100)


def test_microvolt_units(tmp_path: Path) -> None:
    assert set(_read(_write(tmp_path, change="/mV=>/uV")).scale_uv) == {np.float32(0.005)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("500 100=>500 101", "holds 2400 bytes, its header promises 2424"),
        ("500 100=>500 " + "9" * 23, "holds 2400 bytes, its header promises 2399999"),
        ("16 200=>16+" + "9" * 23 + " 200", "holds 2400 bytes, its header promises 1000000"),
        ("500 100=>500 99", "checksum of I"),
        ("r.dat=>s.dat", "s.dat is missing"),
        ("r.dat=>../r.dat", "plain name"),
        (" V6=> V7", "no lead V6"),
        ("/mV=>/mmHg", "unit of lead I is no voltage"),
    ],
)
def test_damage_is_refused_with_its_reason(tmp_path: Path, change: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        _read(_write(tmp_path, change=change))


def test_flipped_bit_is_found(tmp_path: Path) -> None:
    path = _write(tmp_path)
    content = bytearray((tmp_path / "r.dat").read_bytes())
    content[1001] ^= 4
    (tmp_path / "r.dat").write_bytes(content)
    with pytest.raises(FormatError, match="checksum"):
        _read(path)


def test_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    path = _write(tmp_path)
    os.truncate(tmp_path / "r.dat", 24 * 100 << 30)  # sparse: 2.4 TB that take no space
    assert _read(path).signal.shape == (12, 100)
    path.write_text(path.read_text().replace("500 100", "500"))
    with pytest.raises(FormatError, match="107,374,182,400 timesteps of 12 signals, allowed 1 GiB"):
        _read(path)


def test_named_pipe_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path)
    (tmp_path / "r.dat").unlink()
    os.mkfifo(tmp_path / "r.dat")
    with pytest.raises(FormatError, match=r"r\.dat: got a pipe"):
        _read(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 23])
def test_empty_signal_file(tmp_path: Path, content: bytes) -> None:
    path = _write(tmp_path)
    (tmp_path / "r.dat").write_bytes(content)
    with pytest.raises(FormatError, match=f"holds {len(content)} bytes"):
        _read(path)


@pytest.mark.parametrize("storage", ["24", "32", "80", "212"])
def test_other_formats_and_their_invalid_marker(tmp_path: Path, storage: str) -> None:
    bits = {"24": 24, "32": 32, "80": 8, "212": 12}[storage]
    adc = np.random.default_rng(1).integers(-100, 100, (60, 12))
    adc[7, 3] = -(2 ** (bits - 1))
    record = _read(_write(tmp_path, adc=adc, storage=storage))
    adc[7, 3] = INVALID
    np.testing.assert_array_equal(record.signal, adc.T)
    assert record.signal.dtype == np.int16


def test_digits_beyond_16_bits_become_microvolt(tmp_path: Path) -> None:
    adc = np.random.default_rng(1).integers(-(2**22), 2**22, (60, 12))
    adc[5, 0] = -(2**23)
    record = _read(_write(tmp_path, adc=adc, storage="24", gain=2e6, baseline=100))
    expected = ((adc - 100) / 2000).T.astype(np.float32)
    expected[0, 5] = np.nan
    assert record.signal.dtype == np.float32
    np.testing.assert_allclose(record.signal, expected, rtol=1e-6)


def test_permuted_leads_in_a_file(tmp_path: Path) -> None:
    path = _write(tmp_path)
    straight = _read(path)
    text = path.read_text().replace("aVL", "?").replace("aVF", "aVL").replace("?", "aVF")
    path.write_text(text)
    swapped = _read(path)
    np.testing.assert_array_equal(swapped.signal[4], straight.signal[5])
    np.testing.assert_array_equal(swapped.signal[5], straight.signal[4])


def test_lines_below_diagnoses_are_free_text_up_to_the_next_tag() -> None:
    lines = ["<age>: 51  <sex>: F", "<diagnoses>", "Rhythm: Sinus bradycardia.", "Axis: left."]
    fields = parse_comments([*lines, "<subject_id>: 17"])
    assert fields.labels["diagnosis"] == "Rhythm: Sinus bradycardia. Axis: left."
    assert (fields.age, fields.sex, fields.patient_id) == (51, "female", "17")
    assert parse_comments(["Rhythm: Sinus bradycardia."]).labels == {}
