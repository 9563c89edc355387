"""Joined records and format 61, against the wfdb package and bytes written by hand."""

import struct
from pathlib import Path

import numpy as np
import pytest
import wfdb
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest import InputFile, read_record
from ecgfast.records import INVALID, LEADS, EcgRecord

GAINS = tuple(100.0 + 10 * lead for lead in range(12))  # ADC units per mV
BASELINES = tuple(range(-6, 6))


def _read(path: Path) -> EcgRecord:
    return read_record(InputFile(record_id="r", path=path, source=path.parent))


def _adc(num_timesteps: int, seed: int) -> NDArray[np.int16]:
    rng = np.random.default_rng(seed)
    return rng.integers(-3000, 3000, (12, num_timesteps)).astype(np.int16)


def _write(
    path: Path,
    adc: NDArray[np.int16],
    *,
    storage: str = "16",
    gains: tuple[float, ...] = GAINS,
    leads: tuple[str, ...] = LEADS,
    per_frame: int = 1,
) -> None:
    """Write a record with the struct module: format 61 is big-endian, format 16 little-endian.

    A frame holds `per_frame` samples of the first lead, then as many of the second ...
    """
    frames = adc.reshape(len(leads), -1, per_frame).swapaxes(0, 1)
    order = ">" if storage == "61" else "<"
    path.with_suffix(".dat").write_bytes(struct.pack(f"{order}{frames.size}h", *frames.flat))
    lines = [f"{path.stem} {len(leads)} 500 {len(frames)}"]
    for lead, gain, baseline, row in zip(leads, gains, BASELINES, adc, strict=False):
        checksum = int(row.sum(dtype=np.int16))
        lines.append(
            f"{path.stem}.dat {storage}x{per_frame} {gain}({baseline})/mV 16 0 0 "
            f"{checksum} 0 {lead}"
        )
    path.write_text("\n".join(lines) + "\n")


def _join(path: Path, *segments: str) -> Path:
    """Write the header of a joined record; segments are 'NAME TIMESTEPS'."""
    total = sum(int(segment.split()[1]) for segment in segments)
    lines = [f"{path.stem}/{len(segments)} 12 500 {total}", *segments]
    path.write_text("\n".join(lines) + "\n")
    return path


def _layout(path: Path) -> str:
    """Write the header that names the signals of a record of variable layout."""
    lines = [f"{path.stem} 12 500 0"]
    lines += [
        f"~ 0 {gain}({baseline})/mV 0 0 0 0 0 {lead}"
        for lead, gain, baseline in zip(LEADS, GAINS, BASELINES, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return f"{path.stem} 0"


def test_format_61_equals_the_package_and_the_written_adc_units(tmp_path: Path) -> None:
    adc = _adc(60, 1)
    adc[4, 9] = INVALID
    _write(tmp_path / "r.hea", adc, storage="61")
    record = _read(tmp_path / "r.hea")
    np.testing.assert_array_equal(record.signal, adc)
    theirs = wfdb.rdrecord(str(tmp_path / "r"), physical=False)
    np.testing.assert_array_equal(record.signal, theirs.d_signal.T)
    np.testing.assert_array_equal(record.scale_uv, (1000 / np.array(GAINS)).astype(np.float32))
    assert record.offset_adc.tolist() == list(BASELINES)


@pytest.mark.parametrize("storage", ["212", "24"])
def test_format_61_beside_another_format(tmp_path: Path, storage: str) -> None:
    """A file of format 61 and one of another format: beside 24 the package reads both."""
    adc = np.random.default_rng(2).integers(-2000, 2000, (12, 60)).astype(np.int16)
    _write(tmp_path / "r.hea", adc[:6], storage="61", leads=LEADS[:6])
    wfdb.wrsamp(
        "x",
        500,
        units=["mV"] * 6,
        sig_name=list(LEADS[6:]),
        d_signal=adc[6:].T.astype(np.int64),
        fmt=[storage] * 6,
        adc_gain=[200.0] * 6,
        baseline=[0] * 6,
        write_dir=str(tmp_path),
    )
    lines = (tmp_path / "r.hea").read_text().splitlines()
    others = (tmp_path / "x.hea").read_text().splitlines()[1:]
    (tmp_path / "r.hea").write_text("\n".join(["r 12 500 60", *lines[1:], *others]) + "\n")
    np.testing.assert_array_equal(_read(tmp_path / "r.hea").signal, adc)


def test_a_damaged_file_of_format_61_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "r.hea", _adc(60, 1), storage="61")
    content = bytearray((tmp_path / "r.dat").read_bytes())
    content[7] ^= 1
    (tmp_path / "r.dat").write_bytes(content)
    with pytest.raises(FormatError, match="checksum of aVR"):
        _read(tmp_path / "r.hea")


@pytest.mark.parametrize(("storage", "per_frame"), [("16", 1), ("61", 1), ("16", 2)])
def test_segments_of_one_gain_stay_adc(tmp_path: Path, storage: str, per_frame: int) -> None:
    one, two = _adc(40, 3), _adc(80, 4)
    two[7, 11] = INVALID
    _write(tmp_path / "a.hea", one, storage=storage, per_frame=per_frame)
    _write(tmp_path / "b.hea", two, storage=storage, per_frame=per_frame)
    path = _join(tmp_path / "m.hea", f"a {40 // per_frame}", f"b {80 // per_frame}")
    record = _read(path)
    assert record.signal.dtype == np.int16
    np.testing.assert_array_equal(record.signal, np.concatenate([one, two], axis=1))
    np.testing.assert_array_equal(record.scale_uv, (1000 / np.array(GAINS)).astype(np.float32))
    assert record.offset_adc.tolist() == list(BASELINES)
    assert record.sampling_rate_hz == 500 * per_frame
    assert record.segments == ("a", "b")


def test_gaps_and_absent_leads_are_invalid(tmp_path: Path) -> None:
    one, two = _adc(40, 3), _adc(80, 4)
    _write(tmp_path / "a.hea", one)
    _write(tmp_path / "b.hea", two[:11], leads=LEADS[:11])
    layout = _layout(tmp_path / "m_layout.hea")
    path = _join(tmp_path / "m.hea", layout, "a 40", "~ 30", "b 80")
    record = _read(path)
    expected = np.full((12, 150), INVALID, np.int16)
    expected[:, :40] = one
    expected[:11, 70:] = two[:11]
    assert record.signal.dtype == np.int16
    np.testing.assert_array_equal(record.signal, expected)
    _equals_the_package(record, path)


def test_segments_of_two_gains_become_microvolt(tmp_path: Path) -> None:
    _write(tmp_path / "a.hea", _adc(40, 3))
    _write(tmp_path / "b.hea", _adc(80, 4), gains=(*GAINS[:11], 999.0))
    path = _join(tmp_path / "m.hea", _layout(tmp_path / "m_layout.hea"), "a 40", "~ 5", "b 80")
    record = _read(path)
    assert record.signal.dtype == np.float32
    assert np.isnan(record.signal[:, 40:45]).all()
    assert record.scale_uv.tolist() == [1.0] * 12
    _equals_the_package(record, path)


def _equals_the_package(record: EcgRecord, path: Path) -> None:
    theirs = wfdb.rdrecord(str(path.with_suffix(""))).p_signal.T * 1000
    ours = (record.signal.astype(np.float64) - record.offset_adc[:, None]) * record.scale_uv[
        :, None
    ]
    ours[record.signal == INVALID] = np.nan
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-3)


def test_nothing_but_gaps(tmp_path: Path) -> None:
    path = _join(tmp_path / "m.hea", _layout(tmp_path / "m_layout.hea"), "~ 40", "~ 5000")
    with pytest.raises(FormatError, match="all of its 3 segments are gaps") as error:
        _read(path)
    assert error.value.reason == "all segments are gaps"


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        (("a 40", "gone 40"), "segment 2 of 2: is missing"),
        (("a 40", "a 41"), "segment 2 of 2: holds 40 timesteps at 500 Hz, .* promises 41 at 500"),
        (("a 40", "m 40"), "segment 2 of 2: is joined from segments itself"),
        (("a 40", "twice 40"), "segment 2 of 2: lead V6 occurs twice"),
        (("a 40", "~ 99999999"), "100,000,039 timesteps of 12 signals, allowed 1 GiB"),
        (("a 40", "../a 40"), "segment line 2 is damaged"),
        (("a 40", f"~ {10**30}"), "segment line 2 is damaged"),
    ],
)
def test_segments_that_make_no_record(
    tmp_path: Path, segments: tuple[str, ...], reason: str
) -> None:
    _write(tmp_path / "a.hea", _adc(40, 3))
    _write(tmp_path / "twice.hea", _adc(40, 3), leads=(*LEADS[:10], "V6", "V6"))
    with pytest.raises(FormatError, match=reason):
        _read(_join(tmp_path / "m.hea", *segments))


def test_fewer_segment_lines_than_promised(tmp_path: Path) -> None:
    _write(tmp_path / "a.hea", _adc(40, 3))
    (tmp_path / "m.hea").write_text("m/2 12 500 80\na 40\n")
    with pytest.raises(FormatError, match="got 1 segment lines, the record line promises 2"):
        _read(tmp_path / "m.hea")
