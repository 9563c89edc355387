"""SCP-ECG against the DICOM twin of a real file, and files of a writer of its own."""

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import check_damage
from scp_files import LEAD_NUMBERS, ecg_file, scp_file, signal_section, tags

from ecgfast.errors import FormatError
from ecgfast.ingest.format import Head
from ecgfast.ingest.vendor import dicom
from ecgfast.ingest.vendor.scp_ecg import FORMAT
from ecgfast.records import INVALID

RNG = np.random.default_rng(0)
SIGNAL = np.cumsum(RNG.integers(-90, 91, (12, 200)), axis=1)
SIGNAL[3, 50:60] = 4000  # jumps that need codes of 16 bits
PATIENT = {
    0: b"Doe\0",
    1: b"Jane\0",
    2: b"P-77\0",
    4: struct.pack("<HB", 61, 1),
    8: b"\2",
    14: bytes(8) + b"ELI250" + bytes([20, 0, 0]) + bytes(40),
    16: b"St Elsewhere\0",
    25: struct.pack("<HBB", 2020, 2, 29),
    26: bytes([13, 14, 15]),
    27: struct.pack("<H", 5),
    28: struct.pack("<H", 150),
    29: b"\2",
    30: b"lives alone\0",
}


def read(path: Path) -> Any:
    return FORMAT.read(path, "r", None)


def file_with(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "a.scp"
    path.write_bytes(content)
    return path


def test_the_real_file_equals_its_dicom_twin(shared_data: Path) -> None:
    pytest.importorskip("pydicom", reason="pydicom is not installed")
    ours = read(shared_data / "vendor/triple/Example.scp")
    twin = dicom.FORMAT.read(shared_data / "vendor/triple/Example.dcm", "r", None)
    np.testing.assert_array_equal(ours.signal, twin.signal)
    np.testing.assert_array_equal(ours.scale_uv, twin.scale_uv)
    assert ours.sampling_rate_hz == twin.sampling_rate_hz
    assert (ours.patient_id, ours.sex, ours.age) == (twin.patient_id, twin.sex, twin.age)
    assert ours.provenance["recorded"] == twin.provenance["recorded"]
    assert ours.flags == ()


@pytest.mark.parametrize("coding", ["none", "default", "own"])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_every_coding_gives_the_samples_back(tmp_path: Path, coding: str, order: int) -> None:
    record = read(file_with(tmp_path, ecg_file(SIGNAL, coding=coding, order=order)))
    assert record.signal.dtype == np.int16
    np.testing.assert_array_equal(record.signal, SIGNAL)
    np.testing.assert_array_equal(record.scale_uv, 2.5)
    assert record.sampling_rate_hz == 500


def test_ambiguous_codes_are_refused(tmp_path: Path) -> None:
    section2 = struct.pack("<HH", 1, 2) + struct.pack("<BBBhI", 1, 1, 1, 0, 0)
    section2 += struct.pack("<BBBhI", 2, 2, 1, 1, 2)  # 0, and 01
    with pytest.raises(FormatError, match="none the begin of another"):
        read(file_with(tmp_path, ecg_file(SIGNAL, extra={2: section2})))


def test_differences_wrap_in_16_bits_as_writers_compute_them(tmp_path: Path) -> None:
    signal = SIGNAL.copy()
    signal[0, ::2], signal[0, 1::2] = 30000, -30000
    record = read(file_with(tmp_path, ecg_file(signal, coding="default", order=2)))
    np.testing.assert_array_equal(record.signal, signal)


def test_the_reference_beat_is_added_where_it_was_subtracted(tmp_path: Path) -> None:
    beat = RNG.integers(-500, 500, (12, 40))
    # type, first, fiducial and last timestep of beats: the first is longer than the reference beat,
    # the second is of another type, the third is cut by the end of the record
    spans = [(0, 21, 50, 80), (1, 91, 110, 120), (0, 175, 190, 200)]
    fiducial = 20  # of the reference beat, from 1
    residual = SIGNAL.copy()
    for kind, first, middle, last in spans:
        for timestep in range(first, last + 1):
            place = timestep - middle + fiducial  # in the reference beat, from 1
            if kind == 0 and 1 <= place <= 40:
                residual[:, timestep - 1] -= beat[:, place - 1]
    section4 = struct.pack("<HHH", 80, fiducial, len(spans))
    section4 += b"".join(struct.pack("<HIII", *span) for span in spans)
    settings = {"order": 1, "coding": "default", "unit_nv": 2500, "interval_us": 2000}
    section5 = signal_section(list(beat), **settings)
    extra = {4: section4, 5: section5}
    content = ecg_file(list(residual), order=1, subtracted=True, extra=extra)
    np.testing.assert_array_equal(read(file_with(tmp_path, content)).signal, SIGNAL)

    extra[5] = signal_section(list(beat // 2), **(settings | {"unit_nv": 5000}))
    even = residual + sum_of(beat, spans, fiducial) - sum_of(beat // 2 * 2, spans, fiducial)
    content = ecg_file(list(even), order=1, subtracted=True, extra=extra)
    record = read(file_with(tmp_path, content))
    np.testing.assert_array_equal(record.signal, SIGNAL)
    np.testing.assert_array_equal(record.scale_uv, 2.5)

    extra[5] = signal_section(list(beat * 2), **settings)  # half a unit of the rhythm is one of it
    content = ecg_file(list(residual), order=1, unit_nv=5000, subtracted=True, extra=extra)
    record = read(file_with(tmp_path, content))
    np.testing.assert_array_equal(record.signal, SIGNAL * 2)
    np.testing.assert_array_equal(record.scale_uv, 2.5)

    extra[5] = signal_section(list(beat), **(settings | {"interval_us": 4000}))
    with pytest.raises(FormatError, match="reference beat of another sampling rate"):
        read(file_with(tmp_path, ecg_file(list(residual), subtracted=True, extra=extra)))
    with pytest.raises(FormatError, match="section 4 or 5 is missing"):
        read(file_with(tmp_path, ecg_file(list(residual), subtracted=True)))


def sum_of(beat: Any, spans: Any, fiducial: int) -> Any:
    """The reference beat at each of its places."""
    out = np.zeros_like(SIGNAL)
    for kind, first, middle, last in spans:
        for timestep in range(first, last + 1) if kind == 0 else ():
            if 1 <= timestep - middle + fiducial <= beat.shape[1]:
                out[:, timestep - 1] += beat[:, timestep - middle + fiducial - 1]
    return out


def test_leads_go_by_number_and_missing_ones_are_derived(tmp_path: Path) -> None:
    rows = [11, 10, 9, 8, 7, 6, 1, 0]
    numbers = [*(LEAD_NUMBERS[row] for row in rows), 9]  # V7 too
    record = read(file_with(tmp_path, ecg_file([*SIGNAL[rows], SIGNAL[0]], numbers=numbers)))
    np.testing.assert_array_equal(record.signal[6:], SIGNAL[6:])
    np.testing.assert_array_equal(record.signal[2], SIGNAL[1] - SIGNAL[0])
    assert record.flags == ("leads_derived",)
    with pytest.raises(FormatError, match="no lead V6"):
        read(file_with(tmp_path, ecg_file(SIGNAL[:11], numbers=LEAD_NUMBERS[:11])))
    twice = (*LEAD_NUMBERS[:11], 3)
    with pytest.raises(FormatError, match="lead V1 occurs twice"):
        read(file_with(tmp_path, ecg_file(SIGNAL, numbers=twice)))


def test_what_a_lead_does_not_cover_is_invalid(tmp_path: Path) -> None:
    signals = [SIGNAL[row, 20:] if row == 7 else SIGNAL[row] for row in range(12)]
    spans = [(21, 200) if row == 7 else (1, 200) for row in range(12)]
    signal = read(file_with(tmp_path, ecg_file(signals, spans=spans))).signal
    assert (signal[7, :20] == INVALID).all()
    np.testing.assert_array_equal(signal[7, 20:], SIGNAL[7, 20:])
    np.testing.assert_array_equal(signal[6], SIGNAL[6])


def test_what_is_kept_of_section_1_and_what_is_not(tmp_path: Path) -> None:
    record = read(file_with(tmp_path, ecg_file(SIGNAL, patient=PATIENT)))
    assert (record.patient_id, record.age, record.sex) == ("P-77", 61.0, "female")
    assert record.provenance == {"format": "scp-ecg", "recorded": "2020-02-29 13:14:15"}
    assert record.device == "eli-250"
    assert (record.high_pass_hz, record.low_pass_hz, record.notch_hz) == (0.05, 150.0, 50.0)
    assert not [word for word in ("Doe", "Jane", "Elsewhere", "alone") if word in repr(record)]
    born = {2: "Ä7".encode("utf-16-le"), 5: struct.pack("<HBB", 1960, 2, 29), 25: PATIENT[25]}
    born[14] = bytes(16) + b"\x07" + bytes(20)
    record = read(file_with(tmp_path, ecg_file(SIGNAL, patient=born)))
    assert record.patient_id == "Ä7"
    assert record.age == pytest.approx(60, abs=0.01)


def test_a_wrong_checksum_refuses_and_one_that_was_not_computed_does_not(tmp_path: Path) -> None:
    content = ecg_file(SIGNAL)
    for place in range(30, len(content), len(content) // 25):
        changed = bytearray(content)
        changed[place] ^= 0x10
        with pytest.raises(FormatError) as refusal:
            read(file_with(tmp_path, bytes(changed)))
        assert refusal.value.reason == "a checksum differs"
    without = bytearray(content)
    without[:2] = b"\0\0"
    np.testing.assert_array_equal(read(file_with(tmp_path, bytes(without))).signal, SIGNAL)
    without[-1] ^= 0x10  # now only the checksum of section 6 can find it
    with pytest.raises(FormatError, match="checksum of section 6 differs"):
        read(file_with(tmp_path, bytes(without)))


def test_leads_that_are_counted_from_0_are_read(tmp_path: Path) -> None:
    """As a program of Contec writes them: from 0 to the number of timesteps."""
    spans = [(0, 200)] * 12
    record = read(file_with(tmp_path, ecg_file(SIGNAL, spans=spans, coding="none", order=0)))
    np.testing.assert_array_equal(record.signal, SIGNAL)


@pytest.mark.parametrize("interval_us", [2000, 500])
def test_bimodal_packing_is_refused_where_it_removed_timesteps(
    interval_us: int, tmp_path: Path
) -> None:
    beat = signal_section(
        [SIGNAL[0, :50]] * 12, order=2, coding="default", unit_nv=2500, interval_us=interval_us
    )
    path = file_with(tmp_path, ecg_file(SIGNAL, bimodal=1, extra={5: beat}))
    if interval_us == 2000:  # that of the rhythm
        np.testing.assert_array_equal(read(path).signal, SIGNAL)
    else:
        with pytest.raises(FormatError, match="packed bimodally"):
            read(path)


def test_codings_that_are_not_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="packed bimodally") as refusal:
        read(file_with(tmp_path, ecg_file(SIGNAL, bimodal=1)))
    assert refusal.value.reason == "its version or coding is not read"
    long_term = {1: tags({}), 3: b"\1\0" + struct.pack("<IIB", 1, 9, 1), 12: bytes(40)}
    with pytest.raises(FormatError, match=r"section 12 \(SCP-ECG 3\)"):
        read(file_with(tmp_path, scp_file(long_term, protocol=30)))
    with pytest.raises(FormatError, match="has no section 6"):
        read(file_with(tmp_path, scp_file({1: tags({}), 3: long_term[3]})))


def test_only_the_mark_in_section_0_is_recognised() -> None:
    assert FORMAT.recognises(Head(ecg_file(SIGNAL), "no_suffix"))
    others = scp_file({3: b""}, magic=bytes(6))
    assert not FORMAT.recognises(Head(others, "a.scp"))


def test_claims_of_a_billion_samples_are_refused_at_once(tmp_path: Path) -> None:
    spans = [(1, 10**9)] * 12
    with pytest.raises(FormatError) as refusal:
        read(file_with(tmp_path, ecg_file(SIGNAL, spans=spans)))
    assert refusal.value.reason == "the file is too large"
    spans = [(1, 10**6)] * 12
    with pytest.raises(FormatError, match=r"a lead ends after \d+ of 1000000 timesteps"):
        read(file_with(tmp_path, ecg_file(SIGNAL, spans=spans)))


def test_many_pointers_to_one_section_cost_nothing(tmp_path: Path) -> None:
    content = ecg_file(SIGNAL, coding="none", repeated=300_000)
    begin = time.process_time()
    np.testing.assert_array_equal(read(file_with(tmp_path, content)).signal, SIGNAL)
    assert time.process_time() - begin < 2


def test_a_file_that_is_cut_short_is_refused_wherever(tmp_path: Path) -> None:
    content = ecg_file(SIGNAL, patient=PATIENT)
    for end in range(22, len(content), 101):
        with pytest.raises(FormatError, match=r"holds \d+ bytes, its header promises"):
            read(file_with(tmp_path, content[:end]))


@pytest.mark.parametrize("cases", [300, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("coding", ["none", "default", "own"])
def test_damage_ends_in_a_record_or_one_refusal(tmp_path: Path, coding: str, cases: int) -> None:
    content = bytearray(ecg_file(SIGNAL, coding=coding, patient=PATIENT))
    content[:2] = b"\0\0"  # checksums would hide all that lies behind them
    for at in range(22, content[10] + 6, 10):
        start = int.from_bytes(content[at + 6 : at + 10], "little") - 1
        content[start : start + 2] = b"\0\0"
    path = file_with(tmp_path, bytes(content))
    outcomes = check_damage(FORMAT.read, path, cases=cases, secrets=("Doe", "Jane", "alone"))
    assert outcomes["read"] > 10
    assert outcomes["a signal file is cut short"] > 10
