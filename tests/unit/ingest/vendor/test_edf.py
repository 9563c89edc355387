"""EDF and BDF against files that edfio writes, and its digital samples."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import check_damage

from ecgfast.errors import FormatError
from ecgfast.ingest.format import Head
from ecgfast.ingest.vendor.edf import FORMAT
from ecgfast.records import LEADS

edfio = pytest.importorskip("edfio", reason="edfio is not installed")

SIGNAL = np.random.default_rng(0).integers(-900, 900, (12, 1000)).astype(np.int16)
RANGES = {"digital_range": (-32768, 32767), "physical_range": (-3276.8, 3276.7)}
RECORDED = {
    "recording": edfio.Recording(startdate=datetime.date(2020, 2, 29)),
    "starttime": datetime.time(13, 14, 15),
}


def read(path: Path) -> Any:
    return FORMAT.read(path, "r", None)


def signals(
    signal_ST: Any = SIGNAL,
    labels: Any = LEADS,
    *,
    kind: str = "Edf",
    rate: float = 500,
    **extra: Any,
) -> list[Any]:
    settings = {"physical_dimension": "uV", "prefiltering": "HP:0.05Hz LP:150Hz N:50Hz"}
    make = getattr(edfio, f"{kind}Signal").from_digital
    return [
        make(each, rate, label=label, **{**RANGES, **settings, **extra})
        for each, label in zip(signal_ST, labels, strict=True)
    ]


def write(path: Path, each: list[Any], *, kind: str = "Edf", **extra: Any) -> Path:
    getattr(edfio, kind)(each, **{**RECORDED, **extra}).write(path)
    return path


def changed(path: Path, start: int, text: str) -> Path:
    """Change a field of the header."""
    content = path.read_bytes()
    path.write_bytes(content[:start] + text.encode() + content[start + len(text) :])
    return path


@pytest.mark.parametrize("seconds", [1, 2, None])
def test_digital_samples_equal_those_of_edfio(tmp_path: Path, seconds: float | None) -> None:
    extra = {} if seconds is None else {"data_record_duration": seconds}
    path = write(tmp_path / "a.edf", signals(), **extra)
    record = read(path)
    theirs = np.stack([each.digital for each in edfio.read_edf(path).signals])
    np.testing.assert_array_equal(record.signal, theirs)
    np.testing.assert_array_equal(theirs, SIGNAL)
    assert record.signal.dtype == np.int16
    assert record.sampling_rate_hz == 500
    assert record.flags == ()


def test_scale_and_offset_follow_the_ranges_of_each_signal(tmp_path: Path) -> None:
    ranges = {"digital_range": (-1000, 1000), "physical_range": (-1.0, 3.0)}
    path = write(tmp_path / "a.edf", signals(**ranges, physical_dimension="mV"))
    record = read(path)
    np.testing.assert_allclose(record.scale_uv, 2.0)
    np.testing.assert_allclose(record.offset_adc, -500.0)
    theirs = np.stack([each.data for each in edfio.read_edf(path).signals]) * 1000
    ours = (record.signal - record.offset_adc[:, None]) * record.scale_uv[:, None]
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_samples_of_24_bits(tmp_path: Path) -> None:
    ranges = {"digital_range": (-(2**23), 2**23 - 1), "physical_range": (-262144.0, 262143.97)}
    small = SIGNAL.astype(np.int32)
    record = read(write(tmp_path / "a.bdf", signals(small, kind="Bdf", **ranges), kind="Bdf"))
    assert record.signal.dtype == np.int16
    np.testing.assert_array_equal(record.signal, SIGNAL)
    large = small * 4000
    path = write(tmp_path / "b.bdf", signals(large, kind="Bdf", **ranges), kind="Bdf")
    record = read(path)
    assert record.signal.dtype == np.float32
    theirs = np.stack([each.data for each in edfio.read_bdf(path).signals])
    np.testing.assert_allclose(record.signal, theirs, rtol=1e-5, atol=1e-3)


def test_leads_go_by_label_among_other_signals_of_other_rates(tmp_path: Path) -> None:
    order = [*reversed(LEADS)]
    each = signals(SIGNAL[::-1], [f"ECG {lead}" for lead in order])
    each.insert(3, signals(SIGNAL[:1, :200], ["SpO2"], rate=100, physical_dimension="%")[0])
    path = write(tmp_path / "a.edf", each)
    np.testing.assert_array_equal(read(path).signal, SIGNAL)
    each[0] = signals(SIGNAL[:1, :200], ["V6"], rate=100)[0]
    with pytest.raises(FormatError, match=r"leads have \[.*\] timesteps in a frame") as refusal:
        read(write(tmp_path / "b.edf", each))
    assert refusal.value.reason == "the sampling rate is not allowed"


def test_missing_limb_leads_are_derived_and_others_refuse(tmp_path: Path) -> None:
    rows = [0, 1, *range(6, 12)]
    record = read(write(tmp_path / "a.edf", signals(SIGNAL[rows], [LEADS[row] for row in rows])))
    np.testing.assert_array_equal(record.signal[2], SIGNAL[1] - SIGNAL[0])
    assert record.flags == ("leads_derived",)
    with pytest.raises(FormatError, match="no lead V6"):
        read(write(tmp_path / "b.edf", signals(SIGNAL[:11], LEADS[:11])))


def test_what_is_kept_of_edf_plus_and_what_is_not(tmp_path: Path) -> None:
    patient = edfio.Patient(
        code="P7", sex="F", birthdate=datetime.date(1960, 2, 29), name="Doe_Jane"
    )
    recording = edfio.Recording(
        startdate=datetime.date(2020, 2, 29), hospital_administration_code="St_Elsewhere",
        investigator_technician_code="Dr_No",
    )  # fmt: skip
    extra = {"patient": patient, "recording": recording, "annotations": []}
    path = write(tmp_path / "a.edf", signals(), **extra)
    changed(path, 192, "EDF+C")
    record = read(path)
    assert (record.patient_id, record.sex) == ("P7", "female")
    assert record.age == pytest.approx(60, abs=0.01)
    assert record.provenance == {"format": "edf", "recorded": "2020-02-29 13:14:15"}
    assert (record.high_pass_hz, record.low_pass_hz, record.notch_hz) == (0.05, 150.0, 50.0)
    assert not [each for each in ("Doe", "Jane", "Elsewhere", "Dr_No") if each in repr(record)]
    record = read(changed(path, 192, " " * 44))  # plain EDF: its line can be any text
    assert (record.patient_id, record.sex, record.age) == (None, None, None)


def test_discontinuous_files_are_refused(tmp_path: Path) -> None:
    path = changed(write(tmp_path / "a.edf", signals()), 192, "EDF+D")
    with pytest.raises(FormatError, match=r"is a discontinuous file \(EDF\+D\)"):
        read(path)


def test_a_file_that_does_not_know_its_length_is_read_by_its_size(tmp_path: Path) -> None:
    path = changed(write(tmp_path / "a.edf", signals()), 236, "-1      ")
    path.write_bytes(path.read_bytes() + bytes(7))  # of a frame that was not finished
    np.testing.assert_array_equal(read(path).signal, SIGNAL)


@pytest.mark.parametrize(("before", "end"), [(16 + 80 + 8 + 8, "-3276.8"), (128, "-32768")])
def test_a_range_without_width_refuses(tmp_path: Path, before: int, end: str) -> None:
    path = write(tmp_path / "a.edf", signals())
    changed(path, 256 + 12 * before, end.ljust(8))  # the upper end is as the lower one
    with pytest.raises(FormatError, match="allowed two different ends") as refusal:
        read(path)
    assert refusal.value.reason == "a gain, scale or offset is not allowed"


def test_claims_of_a_billion_samples_and_cut_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.edf", signals())
    content = path.read_bytes()
    for end in range(256, len(content), 997):
        path.write_bytes(content[:end])
        with pytest.raises(FormatError) as refusal:
            read(path)
        assert refusal.value.reason in ("a signal file is cut short", "the header is damaged")
    path.write_bytes(content)
    with pytest.raises(FormatError, match="its header promises"):
        read(changed(path, 236, "99999999"))


def test_only_a_header_whose_length_fits_is_recognised(tmp_path: Path) -> None:
    content = write(tmp_path / "a.edf", signals()).read_bytes()
    assert FORMAT.recognises(Head(content, "no_suffix"))
    assert not FORMAT.recognises(
        Head(b"0       " + content[8:184] + b"99999999" + content[192:], "a")
    )
    assert not FORMAT.recognises(Head(b"", "a.edf"))


@pytest.mark.parametrize("cases", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_damage_ends_in_a_record_or_one_refusal(tmp_path: Path, cases: int) -> None:
    path = write(tmp_path / "a.edf", signals(), patient=edfio.Patient(name="Doe_Jane"))
    outcomes = check_damage(FORMAT.read, path, cases=cases, secrets=("Doe", "Jane"))
    assert outcomes["read"] > 10
    assert outcomes["a signal file is cut short"] > 10
