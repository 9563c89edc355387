"""MFER files of a writer of its own: no real file lies beside the tree."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import check_damage
from mfer_files import LEAD_CODES, definition, ecg_file, number

from ecgfast.errors import FormatError
from ecgfast.ingest.format import Head
from ecgfast.ingest.vendor.mfer import FORMAT
from ecgfast.records import INVALID

SIGNAL = np.random.default_rng(0).integers(-900, 900, (12, 200)).astype(np.int16)


def read(path: Path) -> Any:
    return FORMAT.read(path, "r", None)


def file_with(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "a.mwf"
    path.write_bytes(content)
    return path


def patient(order: str = "<") -> bytes:
    """Definitions that name a patient, in three text encodings."""
    return b"".join(
        [
            definition(0x03, b"UTF-16LE"),
            definition(0x81, "山田^ヤマダ".encode("utf-16-le")),
            definition(0x82, "患者7^x".encode("utf-16-le")),
            definition(0x03, b"shift_jis"),
            definition(0x16, "独り暮らし".encode("shift_jis")),
            definition(0x03, b"ASCII"),
            definition(0x17, b"Nihon Kohden^ECG-1550^1.0^serial4711"),
            definition(0x87, b"1.2.840.4711"),
            definition(0x83, bytes([61]) + bytes(2) + number(1960, 2, order) + bytes([2, 29])),
            definition(0x84, b"\2"),
            definition(0x85, number(2021, 2, order) + bytes([3, 4, 13, 14, 15])),
            *(definition(0x11, each) for each in (b"HPF=0.05", b"LPF=150^Butterworth", b"BEF=50")),
        ]
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("block", [1, 20, 200])
def test_samples_come_back_in_either_byte_order(tmp_path: Path, order: str, block: int) -> None:
    record = read(file_with(tmp_path, ecg_file(SIGNAL, order=order, block=block)))
    assert record.signal.dtype == np.int16
    np.testing.assert_array_equal(record.signal, SIGNAL)
    np.testing.assert_array_equal(record.scale_uv, 2.5)
    assert record.sampling_rate_hz == 500
    assert record.flags == ()


def test_a_rate_in_hertz_and_a_resolution_in_volt(tmp_path: Path) -> None:
    settings = {"interval": (0, 2, 5), "resolution": (0, -6, 5)}
    record = read(file_with(tmp_path, ecg_file(SIGNAL, **settings)))
    assert record.sampling_rate_hz == 500
    np.testing.assert_array_equal(record.scale_uv, 5.0)


def test_leads_go_by_code_and_missing_ones_are_derived(tmp_path: Path) -> None:
    rows = [11, 10, 9, 8, 7, 6, 1, 0]
    codes = [*(LEAD_CODES[row] for row in rows), 143]  # a blood pressure
    record = read(file_with(tmp_path, ecg_file([*SIGNAL[rows], SIGNAL[0]], codes=codes)))
    np.testing.assert_array_equal(record.signal[6:], SIGNAL[6:])
    np.testing.assert_array_equal(record.signal[2], SIGNAL[1] - SIGNAL[0])
    assert record.flags == ("leads_derived",)
    with pytest.raises(FormatError, match="no lead V6"):
        read(file_with(tmp_path, ecg_file(SIGNAL[:11], codes=LEAD_CODES[:11])))
    with pytest.raises(FormatError, match="no lead I, II, V1") as refusal:
        read(file_with(tmp_path, ecg_file(SIGNAL[:2], codes=(143, 160))))
    assert refusal.value.reason == "a lead is missing"


def test_channels_have_their_own_type_and_interval(tmp_path: Path) -> None:
    own = {12: definition(0x0B, struct.pack("<Bbh", 1, -3, 4)) + definition(0x0A, b"\3")}
    wide = [*SIGNAL, np.arange(200, dtype=np.int16)]
    content = ecg_file(wide, codes=(*LEAD_CODES, 175), own=own, block=20)
    start = content.index(b"\x1e\x84")
    frame = b"".join(
        SIGNAL[:, at : at + 20].tobytes() + bytes(range(20)) for at in range(0, 200, 20)
    )
    content = content[:start] + definition(0x1E, frame)
    record = read(file_with(tmp_path, content))
    np.testing.assert_array_equal(record.signal, SIGNAL)
    own = {3: definition(0x0B, struct.pack("<Bbh", 1, -3, 4))}
    with pytest.raises(FormatError, match=r"leads have \[250.0, 500.0\] Hz") as refusal:
        read(file_with(tmp_path, ecg_file(SIGNAL, own=own)))
    assert refusal.value.reason == "the sampling rate is not allowed"


def test_a_definition_without_a_value_takes_back_the_one_before(tmp_path: Path) -> None:
    other = definition(0x0B, struct.pack("<Bbh", 1, -3, 4))
    record = read(file_with(tmp_path, ecg_file(SIGNAL, own={3: other + definition(0x0B, b"")})))
    assert record.sampling_rate_hz == 500


def test_more_than_127_channels(tmp_path: Path) -> None:
    signals = [*np.zeros((120, 200), np.int16), *SIGNAL]
    content = ecg_file(signals, codes=(*[143] * 120, *LEAD_CODES))
    np.testing.assert_array_equal(read(file_with(tmp_path, content)).signal, SIGNAL)


def test_definitions_of_open_length(tmp_path: Path) -> None:
    content = ecg_file(SIGNAL)
    for channel, code in enumerate(LEAD_CODES):
        inner = definition(0x09, number(code, 2, "<"))
        closed = definition(0x3F, inner, channel=channel)
        opened = bytes([0x3F, channel, 0x80]) + inner + b"\0" * (channel % 2) + b"\0\0"
        content = content.replace(closed, opened)
    np.testing.assert_array_equal(read(file_with(tmp_path, content)).signal, SIGNAL)
    with pytest.raises(FormatError):
        read(file_with(tmp_path, ecg_file(SIGNAL, before=b"\x16\x80")))


def test_the_null_value_marks_invalid_timesteps(tmp_path: Path) -> None:
    signal = SIGNAL.copy()
    signal[2, 5], signal[3, 6] = -32768, 999
    own = {3: definition(0x12, struct.pack("<h", 999))}
    record = read(file_with(tmp_path, ecg_file(signal, own=own)))
    assert record.signal[2, 5] == record.signal[3, 6] == INVALID
    assert (record.signal == INVALID).sum() == 2


@pytest.mark.parametrize("dtype", ["<i4", "<u2", "i1", "u1", "<u4"])
def test_other_integers_stay_adc_units_while_they_fit(tmp_path: Path, dtype: str) -> None:
    signal = np.abs(SIGNAL % 100).astype(dtype)
    record = read(file_with(tmp_path, ecg_file(signal)))
    assert record.signal.dtype == np.int16
    np.testing.assert_array_equal(record.signal, signal)


def test_floats_and_large_integers_become_microvolt(tmp_path: Path) -> None:
    for signal in (SIGNAL.astype("<f4") / 3, SIGNAL.astype("<i4") * 1000):
        record = read(file_with(tmp_path, ecg_file(signal)))
        assert record.signal.dtype == np.float32
        np.testing.assert_allclose(record.signal, signal * 2.5, rtol=1e-6)
        np.testing.assert_array_equal(record.scale_uv, 1.0)


def test_averaged_beats_and_other_waveforms_are_passed_over(tmp_path: Path) -> None:
    both = ecg_file(SIGNAL[:, :40], kind=9)[:-1] + ecg_file(SIGNAL)
    np.testing.assert_array_equal(read(file_with(tmp_path, both)).signal, SIGNAL)
    with pytest.raises(FormatError, match=r"waveforms of kind \[2\] \(tag 08h\), allowed 1"):
        read(file_with(tmp_path, ecg_file(SIGNAL, kind=2)))


def test_frames_that_follow_each_other_are_joined_and_others_refused(tmp_path: Path) -> None:
    content = ecg_file(SIGNAL)[:-1]
    frame = content[content.index(b"\x1e\x84") :]
    record = read(file_with(tmp_path, content + frame))
    np.testing.assert_array_equal(record.signal, np.tile(SIGNAL, 2))
    follows = definition(0x07, number(200, 4, "<"))
    np.testing.assert_array_equal(
        read(file_with(tmp_path, content + follows + frame)).signal, np.tile(SIGNAL, 2)
    )
    begin = definition(0x07, number(0, 4, "<"))  # holds for the first frame alone
    record = read(file_with(tmp_path, content.replace(frame, begin + frame) + b"\0\0" + frame))
    np.testing.assert_array_equal(record.signal, np.tile(SIGNAL, 2))
    gap = definition(0x07, number(300, 4, "<"))
    for between in (gap, definition(0x0C, struct.pack("<Bbh", 0, -6, 1))):
        with pytest.raises(FormatError, match="several recordings"):
            read(file_with(tmp_path, content + between + frame))


@pytest.mark.parametrize(
    ("before", "own", "message"),
    [
        (definition(0x0E, b"\1\0"), {}, "is compressed"),
        (b"", {4: definition(0x0D, b"\x05\0")}, "has an offset"),
        (b"", {4: definition(0x0A, b"\x09")}, "samples of type 9"),
        (b"", {4: definition(0x06, b"\x07")}, "leads of several lengths"),
        (definition(0x05, b"\xff\xff\xff\x7f"), {}, "2,147,483,647 channels"),
    ],
)
def test_what_is_not_read_is_named(
    tmp_path: Path, before: bytes, own: dict[int, bytes], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        read(file_with(tmp_path, ecg_file(SIGNAL, before=before, own=own)))


def test_a_resolution_that_is_no_voltage_or_missing_refuses(tmp_path: Path) -> None:
    for settings in ({"resolution": (1, 0, 1)}, {"own": {0: definition(0x0C, b"")}}):
        content = ecg_file(SIGNAL, **settings)
        if "own" in settings:
            content = content.replace(definition(0x0C, struct.pack("<Bbh", 0, -7, 25)), b"")
        with pytest.raises(FormatError, match="no voltage"):
            read(file_with(tmp_path, content))


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_is_kept_and_what_is_not(tmp_path: Path, order: str) -> None:
    record = read(file_with(tmp_path, ecg_file(SIGNAL, order=order, before=patient(order))))
    assert (record.patient_id, record.age, record.sex) == ("患者7", 61.0, "female")
    assert record.provenance == {"format": "mfer", "recorded": "2021-03-04 13:14:15"}
    assert record.device == "ecg-1550"
    assert (record.high_pass_hz, record.low_pass_hz, record.notch_hz) == (0.05, 150.0, 50.0)
    shown = repr(record)
    assert not [word for word in ("山田", "ヤマダ", "独り", "4711", "Kohden") if word in shown]


def test_long_texts_in_slow_encodings_cost_nothing(tmp_path: Path) -> None:
    for coding in (b"punycode", b"idna", b"no such encoding", b"rot13"):
        before = definition(0x03, coding) + definition(0x82, b"-a1" * 1_000_000)
        record = read(file_with(tmp_path, ecg_file(SIGNAL, before=before)))
        assert record.patient_id is None or len(record.patient_id) <= 256


def test_only_the_preamble_is_recognised() -> None:
    assert FORMAT.recognises(Head(ecg_file(SIGNAL), "no_suffix"))
    assert not FORMAT.recognises(Head(b"MFR " * 9, "a.mwf"))
    assert not FORMAT.recognises(Head(b"", "a.mwf"))


def test_claims_of_a_billion_samples_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="holds 4800 bytes of samples, promises 480000000000"):
        read(file_with(tmp_path, ecg_file(SIGNAL, sequences=10**9)))
    content = ecg_file(SIGNAL).replace(
        definition(0x04, number(20, 4, "<")), b"\x04\x04\xff\xff\xff\x7f"
    )
    with pytest.raises(FormatError) as refusal:
        read(file_with(tmp_path, content))
    assert refusal.value.reason == "a signal file is cut short"


def test_a_file_that_is_cut_short_is_refused_wherever(tmp_path: Path) -> None:
    content = ecg_file(SIGNAL, before=patient())
    for end in range(34, len(content) - 1, 101):
        with pytest.raises(FormatError) as refusal:
            read(file_with(tmp_path, content[:end]))
        assert "患者" not in str(refusal.value)


def test_millions_of_definitions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="over 100,000 definitions"):
        read(file_with(tmp_path, ecg_file(SIGNAL, before=b"\x16\x00" * 200_000)))
    with pytest.raises(FormatError, match="open definition of over 65536 bytes"):
        read(file_with(tmp_path, ecg_file(SIGNAL, before=b"\x16\x80" + b"\x16\x00" * 200_000)))


@pytest.mark.parametrize("cases", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_damage_ends_in_a_record_or_one_refusal(tmp_path: Path, cases: int) -> None:
    path = file_with(tmp_path, ecg_file(SIGNAL, before=patient()))
    outcomes = check_damage(FORMAT.read, path, cases=cases, secrets=("山田", "Kohden", "serial4"))
    assert outcomes["read"] > 10
    assert outcomes["a signal file is cut short"] > 10
