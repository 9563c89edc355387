"""DICOM waveforms against pydicom's own arrays, and files that pydicom writes."""

import struct
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import check_damage
from dicom_files import CODES, group, write

from ecgfast.errors import FormatError
from ecgfast.ingest.format import Head
from ecgfast.ingest.vendor import dicom
from ecgfast.ingest.vendor.dicom import FORMAT
from ecgfast.records import INVALID, LEADS

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")

REAL = (
    "dicom/waveform_ecg.dcm",
    "muse/guangxi_teaching_sinus_rhythm.dcm",
    "triple/Example.dcm",
)
SIGNAL = np.random.default_rng(0).integers(-900, 900, (12, 100)).astype(np.int16)


def read(path: Path) -> Any:
    return FORMAT.read(path, "r", None)


@pytest.mark.parametrize("name", REAL)
def test_real_files_equal_pydicom_sample_for_sample(shared_data: Path, name: str) -> None:
    path = shared_data / "vendor" / name
    record = read(path)
    with warnings.catch_warnings(action="ignore"):  # of invalid UIDs in one of them
        dataset = pydicom.dcmread(path)
        raw = pydicom.waveforms.multiplex_array(dataset, 0, as_raw=True)
        microvolt = dataset.waveform_array(0)
    names = [
        channel.ChannelSourceSequence[0].CodeValue.replace("5.6.3-9-", "").replace("2:", "")
        for channel in dataset.WaveformSequence[0].ChannelDefinitionSequence
    ]
    order = [names.index(str(CODES[lead])) for lead in LEADS]
    np.testing.assert_array_equal(record.signal, raw.T[order])
    assert record.signal.dtype == np.int16
    ours = (record.signal - record.offset_adc[:, None]) * record.scale_uv[:, None]
    np.testing.assert_allclose(ours, microvolt.T[order], rtol=1e-6)
    assert record.sampling_rate_hz == dataset.WaveformSequence[0].SamplingFrequency
    assert record.flags == ()


def test_what_is_kept_of_a_real_file(shared_data: Path) -> None:
    record = read(shared_data / "vendor" / "dicom/waveform_ecg.dcm")
    assert (record.patient_id, record.age, record.sex) == ("642341", 42.0, "female")
    assert (record.high_pass_hz, record.low_pass_hz, record.notch_hz) == (0.05, 300.0, 0.0)
    assert record.provenance == {"format": "dicom", "recorded": "2013-01-25 10:59:19"}
    assert record.device == "eli-250"
    assert record.site is None
    assert record.labels == {}


def test_a_filter_that_differs_between_leads_is_none(tmp_path: Path) -> None:
    item = group(SIGNAL)
    item.ChannelDefinitionSequence[4].FilterHighFrequency = 40
    record = read(write(tmp_path / "a.dcm", item))
    assert (record.high_pass_hz, record.low_pass_hz, record.notch_hz) == (0.05, None, None)


@pytest.mark.parametrize(("age", "years"), [("061Y", 61.0), ("006M", 0.5), ("014D", 0.038)])
def test_ages_have_units(tmp_path: Path, age: str, years: float) -> None:
    record = read(write(tmp_path / "a.dcm", group(SIGNAL), PatientAge=age))
    assert record.age == pytest.approx(years, abs=0.001)


def test_an_age_comes_from_the_day_of_birth_where_none_is_written(shared_data: Path) -> None:
    record = read(shared_data / "vendor" / "triple/Example.dcm")
    assert record.age == pytest.approx(49.54, abs=0.01)


def test_leads_go_by_code(tmp_path: Path) -> None:
    order = [*LEADS[::-1], "V7"]
    signal = np.stack([SIGNAL[LEADS.index(lead)] if lead in LEADS else SIGNAL[0] for lead in order])
    for scheme in ("MDC", "SCPECG"):
        path = write(tmp_path / "a.dcm", group(signal, order, scheme=scheme))
        np.testing.assert_array_equal(read(path).signal, SIGNAL)


def test_a_scheme_that_is_not_known_goes_by_the_meaning(tmp_path: Path) -> None:
    item = group(SIGNAL, scheme="99LOCAL")
    for channel, lead in zip(item.ChannelDefinitionSequence, LEADS, strict=True):
        channel.ChannelSourceSequence[0].CodeMeaning = f"Lead {lead}"
    np.testing.assert_array_equal(read(write(tmp_path / "a.dcm", item)).signal, SIGNAL)


def test_missing_limb_leads_are_derived_and_others_refuse(tmp_path: Path) -> None:
    rows = [0, 1, *range(6, 12)]
    record = read(write(tmp_path / "a.dcm", group(SIGNAL[rows], [LEADS[row] for row in rows])))
    np.testing.assert_array_equal(record.signal[2], SIGNAL[1] - SIGNAL[0])
    assert record.flags == ("leads_derived",)
    path = write(tmp_path / "b.dcm", group(SIGNAL[:11], LEADS[:11]))
    with pytest.raises(FormatError, match="no lead V6") as refusal:
        read(path)
    assert refusal.value.reason == "a lead is missing"


def test_scale_correction_baseline_and_units(tmp_path: Path) -> None:
    item = group(SIGNAL, sensitivity=0.00122, correction=2.0, baseline=0.0244, unit="mV")
    record = read(write(tmp_path / "a.dcm", item))
    np.testing.assert_allclose(record.scale_uv, 2.44, rtol=1e-6)
    np.testing.assert_allclose(record.offset_adc, -10.0, rtol=1e-6)  # in units of the sensitivity
    np.testing.assert_array_equal(record.signal, SIGNAL)
    with pytest.raises(FormatError, match="no voltage"):
        read(write(tmp_path / "b.dcm", group(SIGNAL, unit="mm[Hg]")))
    item = group(SIGNAL)
    del item.ChannelDefinitionSequence[3].ChannelSensitivityUnitsSequence
    with pytest.raises(FormatError, match="unit of lead aVR is no voltage"):
        read(write(tmp_path / "c.dcm", item))


def test_the_rhythm_is_taken_and_not_the_averaged_beat(tmp_path: Path) -> None:
    beat = group(SIGNAL[:, :30], originality="DERIVED")
    np.testing.assert_array_equal(
        read(write(tmp_path / "a.dcm", beat, group(SIGNAL))).signal, SIGNAL
    )
    for item in (unnamed := [group(SIGNAL[:, :30]), group(SIGNAL)]):
        del item.WaveformOriginality
    np.testing.assert_array_equal(read(write(tmp_path / "b.dcm", *unnamed)).signal, SIGNAL)


def test_a_longer_group_without_the_leads_is_passed_over(tmp_path: Path) -> None:
    pressure = group(np.zeros((1, 400), np.int16), ["pressure"])
    path = write(tmp_path / "a.dcm", pressure, group(SIGNAL))
    np.testing.assert_array_equal(read(path).signal, SIGNAL)


def test_padding_at_the_edge_of_the_range_marks_single_timesteps(tmp_path: Path) -> None:
    signal = SIGNAL.copy()
    signal[3, 7], signal[4, 8] = -32768, 32767
    item = group(signal)
    item.WaveformPaddingValue = struct.pack("<h", 32767)
    record = read(write(tmp_path / "a.dcm", item))
    assert record.signal[4, 8] == record.signal[3, 7] == INVALID
    assert (record.signal == INVALID).sum() == 2


def test_padding_with_a_voltage_counts_where_all_leads_have_it(tmp_path: Path) -> None:
    signal = SIGNAL.copy()
    signal[:, 90:] = 0
    signal[5, :10] = 0  # a lead that is really at 0
    item = group(signal)
    item.WaveformPaddingValue = b"\0\0"
    record = read(write(tmp_path / "a.dcm", item))
    assert (record.signal[:, 90:] == INVALID).all()
    np.testing.assert_array_equal(record.signal[:, :90], signal[:, :90])


@pytest.mark.parametrize(
    ("dtype", "interpretation"), [("i1", "SB"), ("u1", "UB"), ("<u2", "US"), ("<i4", "SL")]
)
def test_other_integers_stay_adc_units_while_they_fit(
    tmp_path: Path, dtype: str, interpretation: str
) -> None:
    signal = (SIGNAL % 100).astype(dtype)
    record = read(write(tmp_path / "a.dcm", group(signal, interpretation=interpretation)))
    assert record.signal.dtype == np.int16
    np.testing.assert_array_equal(record.signal, signal)


def test_integers_beyond_16_bits_become_microvolt(tmp_path: Path) -> None:
    signal = SIGNAL.astype("<i4") * 1000
    record = read(write(tmp_path / "a.dcm", group(signal, interpretation="SL", sensitivity=0.5)))
    assert record.signal.dtype == np.float32
    np.testing.assert_array_equal(record.signal, (signal * 0.5).astype(np.float32))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2"])
def test_implicit_and_big_endian_transfer_syntaxes(tmp_path: Path, syntax: str) -> None:
    item = group(SIGNAL.astype(">i2") if syntax.endswith("2.2") else SIGNAL)
    np.testing.assert_array_equal(
        read(write(tmp_path / "a.dcm", item, syntax=syntax)).signal, SIGNAL
    )


def test_deflated_files_and_mu_law_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", group(SIGNAL), syntax="1.2.840.10008.1.2.1.99")
    with pytest.raises(FormatError, match="is a deflated DICOM file"):
        read(path)
    content = path.read_bytes()  # another transfer syntax ahead of the file's own hides nothing
    decoy = b"\2\0\x10\0UI\x11\0" + b"1.2.840.10008.1.2"
    path.write_bytes(decoy + content[len(decoy) :])
    with pytest.raises(FormatError, match="is a deflated DICOM file"):
        read(path)
    mu_law = group((SIGNAL % 100).astype("u1"), interpretation="MB")
    with pytest.raises(FormatError, match="coded in a way that is not read"):
        read(write(tmp_path / "b.dcm", mu_law))


def test_images_are_not_recognised(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", group(SIGNAL))
    assert FORMAT.recognises(Head(path.read_bytes(), "no_suffix"))
    image = path.read_bytes().replace(b"5.1.4.1.1.9.1.1", b"5.1.4.1.1.3.1.1")
    assert not FORMAT.recognises(Head(image, "a.dcm"))
    assert not FORMAT.recognises(Head(b"", "a.dcm"))


def test_a_header_that_claims_a_billion_samples_is_refused(tmp_path: Path) -> None:
    item = group(SIGNAL)
    item.NumberOfWaveformSamples = 10**9
    with pytest.raises(FormatError) as refusal:
        read(write(tmp_path / "a.dcm", item))
    assert refusal.value.reason == "the file is too large"
    item.NumberOfWaveformSamples = 101
    with pytest.raises(FormatError, match="holds 2400 bytes of signals, promises 2424"):
        read(write(tmp_path / "b.dcm", item))


def test_a_file_of_countless_items_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    content = write(tmp_path / "a.dcm", group(SIGNAL)).read_bytes()
    sequence = content.index(struct.pack("<HH2s", 0x5400, 0x0100, b"SQ"))
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    head = struct.pack("<HH2sHI", 0x5400, 0x0100, b"SQ", 0, 0xFFFFFFFF)
    (tmp_path / "a.dcm").write_bytes(content[:sequence] + head + item * 1_000_000)
    begin = time.process_time()
    with pytest.raises(FormatError, match="over 20,000 items"):
        read(tmp_path / "a.dcm")
    assert time.process_time() - begin < 1


def test_a_file_that_is_cut_short_is_refused_wherever(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", group(SIGNAL), PatientID="secret")
    content = path.read_bytes()
    for end in range(132, len(content), 97):
        path.write_bytes(content[:end])
        with pytest.raises(FormatError) as refusal:
            read(path)
        assert "secret" not in str(refusal.value)


def test_a_patient_is_read_in_the_character_set_of_the_file(tmp_path: Path) -> None:
    elements = {"SpecificCharacterSet": "ISO_IR 192", "PatientID": "患者7"}
    assert read(write(tmp_path / "a.dcm", group(SIGNAL), **elements)).patient_id == "患者7"


PRIVATE = {
    "PatientName": "Doe^Jane",
    "InstitutionName": "St Elsewhere",
    "ReferringPhysicianName": "Dr^No",
    "PatientComments": "lives alone",
    "StudyDescription": "ECG of Jane",
}


def test_nothing_else_leaves_the_reader(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", group(SIGNAL), PatientID="P7", PatientSex="F", **PRIVATE)
    parsed = dicom._parsed(path.read_bytes(), "a.dcm")
    assert {element.keyword for element in parsed} <= {*dicom._ELEMENTS, "SpecificCharacterSet"}
    shown = repr(read(path))
    assert not [value for value in PRIVATE.values() if value in shown or value[:3] in shown]


@pytest.mark.parametrize("cases", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_damage_ends_in_a_record_or_one_refusal(tmp_path: Path, cases: int) -> None:
    path = write(
        tmp_path / "a.dcm", group(SIGNAL), group(SIGNAL[:, :30]), PatientID="P7", **PRIVATE
    )
    outcomes = check_damage(FORMAT.read, path, cases=cases, secrets=tuple(PRIVATE.values()))
    assert outcomes["read"] > 10
    assert outcomes["the file is damaged"] > 10
