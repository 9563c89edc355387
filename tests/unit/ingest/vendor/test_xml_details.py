"""What single readers of vendor XML do: real files, checksums, compression, bounds."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xml_files
from recordings import ecg_like

from ecgfast.errors import FormatError
from ecgfast.ingest import InputFile, format_of, read_record
from ecgfast.ingest.format import Head
from ecgfast.ingest.vendor import aecg_xml
from ecgfast.ingest.vendor.text_samples import integers_of
from ecgfast.ingest.vendor.xml_tree import parse_xml, root_of
from ecgfast.records import LEADS, EcgRecord

SIGNAL = ecg_like(1, seed=6, num_timesteps=1000, largest=500)[0]
Write = Callable[..., bytes]
CODING = "its version or coding is not read"
EIGHT = [0, 1, *range(6, 12)]  # the leads that MUSE stores


def read(path: Path) -> EcgRecord:
    return read_record(InputFile(record_id="a", path=path, source=path.parent))


def read_bytes(folder: Path, content: bytes) -> EcgRecord:
    (folder / "a.xml").write_bytes(content)
    return read(folder / "a.xml")


def leads_of(signal: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(LEADS, signal, strict=True))


@pytest.mark.parametrize(
    ("name", "leads", "num_timesteps", "digest"),
    [
        ("muse/guangxi_teaching_sinus_rhythm.xml", EIGHT, 5000, "728c09ad98690c6f"),
        ("muse/synthetic_muse.xml", EIGHT, 5000, "4f576a754be4f625"),
        ("triple/Example.xml", range(12), 5000, "51bba116f69b4e17"),
        ("philips/129DYPRG.XML", range(12), 5264, "b082432977cf68b4"),
        ("philips/3191723_ZZDEMOPTONLY_1-04_orig.xml", range(12), 5300, "39abde0d6792a5e7"),
        ("philips/ad4d3d80-d165_1-04_orig.xml", range(12), 5300, "79af08a735d5356e"),
    ],
)
def test_real_files_have_the_samples_that_other_readers_find(
    shared_data: Path, name: str, leads: list[int], num_timesteps: int, digest: str
) -> None:
    """SHA-256 of what ecgdatakit 2.0.3 reads, divided by its resolution.

    Of Philips, sierraecg 0.4.0 reads the same. Both keep the calibration pulse, which the digest
    leaves out.
    """
    record = read(shared_data / "vendor" / name)
    assert record.signal.shape == (12, num_timesteps)
    samples = np.ascontiguousarray(record.signal[list(leads)]).astype("<i2")
    assert hashlib.sha256(samples.tobytes()).hexdigest()[:16] == digest


def test_a_muse_export_equals_its_dicom_twin(shared_data: Path) -> None:
    """Leads that the device derived differ by a unit where a half is rounded."""
    muse, twin = (
        read(shared_data / f"vendor/muse/guangxi_teaching_sinus_rhythm.{suffix}")
        for suffix in ("xml", "dcm")
    )
    np.testing.assert_array_equal(muse.signal[EIGHT], twin.signal[EIGHT])
    assert np.abs(muse.signal[2:6].astype(int) - twin.signal[2:6]).max() <= 1
    np.testing.assert_allclose(muse.scale_uv, twin.scale_uv, rtol=1e-6)


def test_one_ecg_in_three_formats_is_one_array(shared_data: Path) -> None:
    records = [
        read(shared_data / f"vendor/triple/Example.{each}") for each in ("xml", "dcm", "scp")
    ]
    for record in records:
        np.testing.assert_array_equal(record.signal, records[0].signal)
        np.testing.assert_allclose(record.scale_uv, 2.5)
        assert record.sampling_rate_hz == records[0].sampling_rate_hz


@pytest.mark.parametrize("name", ["invalid-doc-type.xml", "invalid-doc-version.xml"])
def test_other_documents_of_philips_are_refused(shared_data: Path, name: str) -> None:
    with pytest.raises(FormatError, match="document type or version is another one") as refusal:
        read(shared_data / "vendor/philips" / name)
    assert refusal.value.reason == CODING


def test_a_wrong_crc_of_muse_refuses_and_none_does_not(tmp_path: Path) -> None:
    content = xml_files.muse(leads_of(SIGNAL))
    assert read_bytes(tmp_path, content).flags == ()
    start = content.rindex(b"<WaveFormData>") + 20
    other = content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :]
    with pytest.raises(FormatError) as refusal:
        read_bytes(tmp_path, other)
    assert refusal.value.reason == "a checksum differs"
    content = xml_files.muse(leads_of(SIGNAL), checksum=False)
    np.testing.assert_array_equal(read_bytes(tmp_path, content).signal, SIGNAL)


def test_muse_rates_have_an_exponent_and_units_a_name(tmp_path: Path) -> None:
    content = xml_files.muse(leads_of(SIGNAL), rate=5)
    content = content.replace(b"<SampleExponent>0<", b"<SampleExponent>2<")
    assert read_bytes(tmp_path, content).sampling_rate_hz == 500
    with pytest.raises(FormatError) as refusal:
        read_bytes(tmp_path, content.replace(b"MICROVOLTS", b"PASCAL"))
    assert refusal.value.reason == "a lead is not measured in volts"


def test_ages_come_from_the_day_of_birth_where_there_is_no_other(tmp_path: Path) -> None:
    content = xml_files.muse(leads_of(SIGNAL)).replace(b"<PatientAge>61<", b"<PatientAge><")
    for born, age in ((b"02-28-1958", 61), (b"03-01-1958", 60), (b"02-30-1958", None)):
        birth = b"<DateofBirth>" + born + b"</DateofBirth></PatientDemographics>"
        document = content.replace(b"</PatientDemographics>", birth)
        assert read_bytes(tmp_path, document).age == age
    content = xml_files.aecg(leads_of(SIGNAL))
    for value, unit, age in (("3", "mo", 0.25), ("0", "a", 0), ("70", "a", 70), ("x", "a", 60)):
        reported = f"""<controlVariable><relatedObservation><code code="21612-7"/>
        <value value="{value}" unit="{unit}"/></relatedObservation></controlVariable></Anno"""
        document = content.replace(b"</Anno", reported.encode())
        assert read_bytes(tmp_path, document).age == age


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", []),
        (" 1\n-2\t+3 ", [1, -2, 3]),
        ("1,2, 3,", [1, 2, 3]),
        ("32768", [32768]),
        *(
            (text, None)
            for text in ("1 x", "x", "1.5", "1e3", "0x10", "nan", "1 2 - 3", "1 -", "2-3", "1;2")
        ),
        *((text, None) for text in ("9" * 400, "-3000000000", "1 " + "9" * 19)),
    ],
)
def test_integers_in_text(text: str, values: list[int] | None) -> None:
    if values is not None:
        assert integers_of(text, "a").tolist() == values
        return
    with pytest.raises(FormatError) as refusal:
        integers_of(text, "a")
    assert refusal.value.reason == "the file is damaged"


def test_a_lead_of_more_text_than_one_can_have_is_refused() -> None:
    with pytest.raises(FormatError) as refusal:
        integers_of("1 " * (3 << 20), "a")
    assert refusal.value.reason == "the file is too large"


@pytest.mark.parametrize("text", ["0000", "99999", "ANONYMOUS", "Anonymized", "n/a", ""])
def test_placeholders_are_no_patients(tmp_path: Path, text: str) -> None:
    content = xml_files.muse(leads_of(SIGNAL)).replace(xml_files.PATIENT.encode(), text.encode())
    assert read_bytes(tmp_path, content).patient_id is None


def test_an_exercise_test_of_cardiosoft_is_no_resting_ecg(tmp_path: Path) -> None:
    content = xml_files.cardiosoft(leads_of(SIGNAL))
    strips = content.replace(b"<StripData>", b"<Strip><StripData>")
    strips = strips.replace(b"</StripData>", b"</StripData></Strip>")
    for document in (strips, content.replace(b"RestECG", b"ErgoECG")):
        with pytest.raises(FormatError, match="holds no resting ECG"):
            read_bytes(tmp_path, document)


@pytest.mark.parametrize(
    ("write", "old", "new", "reason"),
    [
        (xml_files.cardiosoft, b"uVperLsb", b"mVperLsb", "a lead is not measured in volts"),
        (xml_files.eli, b'OFFSET="0"', b'OFFSET="12"', "a gain, scale or offset is not allowed"),
        (xml_files.eli, b'BITS="16"', b'BITS="12"', CODING),
        (xml_files.eli, b'FREQ="500"', b'FREQ="0"', "the sampling rate is not allowed"),
        (xml_files.schiller, b"COMMASEPARATE", b"HUFFMAN", CODING),
        (xml_files.aecg, b'unit="uV"', b'unit="mm[Hg]"', "a lead is not measured in volts"),
    ],
)
def test_what_is_stored_otherwise_is_refused(
    tmp_path: Path, write: Write, old: bytes, new: bytes, reason: str
) -> None:
    content = write(leads_of(SIGNAL))
    assert old in content
    with pytest.raises(FormatError) as refusal:
        read_bytes(tmp_path, content.replace(old, new))
    assert refusal.value.reason == reason


@pytest.mark.parametrize("encoding", ["Shift_JIS", "EUC-JP", "GB2312", "Big5", "utf-8", "utf-16"])
def test_documents_of_east_asia_are_read(tmp_path: Path, encoding: str) -> None:
    text = xml_files.aecg(leads_of(SIGNAL)).decode().replace(xml_files.NAME, "山田")
    content = f"<?xml version='1.0' encoding='{encoding}'?>{text}".encode(encoding)
    assert format_of(Head(content[:3000], "a")) is aecg_xml.FORMAT
    np.testing.assert_array_equal(read_bytes(tmp_path, content).signal, SIGNAL)


@pytest.mark.parametrize("code", ["MDC_ECG_LEAD_", "ECG ", "LEAD_"])
def test_aecg_writers_spell_leads_differently(tmp_path: Path, code: str) -> None:
    record = read_bytes(tmp_path, xml_files.aecg(leads_of(SIGNAL), code=code))
    np.testing.assert_array_equal(record.signal, SIGNAL)


def test_an_aecg_without_a_rhythm_is_refused(tmp_path: Path) -> None:
    content = xml_files.aecg(leads_of(SIGNAL)).replace(b'"RHYTHM"', b'"OTHER"')
    with pytest.raises(FormatError, match="holds no rhythm"):
        read_bytes(tmp_path, content)


@pytest.mark.parametrize(("packed", "blocks"), [(True, 0), (True, 4), (False, 0)])
def test_philips_with_and_without_xli(tmp_path: Path, packed: bool, blocks: int) -> None:
    content = xml_files.philips(leads_of(SIGNAL), packed=packed, blocks=blocks)
    np.testing.assert_array_equal(read_bytes(tmp_path, content).signal, SIGNAL)


@pytest.mark.parametrize(
    ("absent", "same"),
    [
        (("aVR", "aVL", "aVF"), [0, 1, 2, *range(6, 12)]),
        (("III",), [0, 1, 3, *range(6, 12)]),  # aVL and aVF are stored by the device's own III
        (("III", "aVR"), [0, 1, *range(6, 12)]),
    ],
)
def test_xli_with_some_limb_leads_has_no_lead_that_is_a_rest(
    tmp_path: Path, absent: tuple[str, ...], same: list[int]
) -> None:
    signal = SIGNAL.copy()
    signal[2:6] += np.array([[1], [-1], [2], [-2]], np.int16)  # devices round in their own way
    held = {name: each for name, each in leads_of(signal).items() if name not in absent}
    record = read_bytes(tmp_path, xml_files.philips(held))
    np.testing.assert_array_equal(record.signal[same], signal[same])
    assert np.abs(record.signal.astype(int) - signal).max() <= 3
    assert record.flags == ("leads_derived",)


def test_xli_wraps_at_16_bits_as_devices_do(tmp_path: Path) -> None:
    signal = np.random.default_rng(0).integers(-32767, 32768, (12, 600)).astype(np.int16)
    signal[2] = signal[1] - signal[0]
    np.testing.assert_array_equal(
        read_bytes(tmp_path, xml_files.philips(leads_of(signal))).signal, signal
    )


def test_a_calibration_pulse_is_cut_off_and_a_short_agreement_is_none(tmp_path: Path) -> None:
    pulse = np.zeros((12, 200), np.int16)
    pulse[:, 50:150] = 200
    content = xml_files.philips(leads_of(np.hstack([SIGNAL, pulse])))
    record = read_bytes(tmp_path, content)
    np.testing.assert_array_equal(record.signal, SIGNAL)
    assert record.flags == ("calibration_cut",)
    short = np.hstack([SIGNAL, pulse[:, :40]])
    record = read_bytes(tmp_path, xml_files.philips(leads_of(short)))
    np.testing.assert_array_equal(record.signal, short)
    assert record.flags == ()
    flat = np.zeros_like(SIGNAL)
    np.testing.assert_array_equal(
        read_bytes(tmp_path, xml_files.philips(leads_of(flat))).signal, flat
    )


@pytest.mark.parametrize(
    ("write", "old", "new"),
    [
        (xml_files.muse, b"<LeadSampleCountTotal>1000<", b"<LeadSampleCountTotal>1000000000<"),
        (xml_files.cardiosoft, b"<ChannelSampleCountTotal>1", b"<ChannelSampleCountTotal>1000000"),
        (xml_files.eli, b'DURATION="', b'DURATION="1000000'),
        (
            xml_files.philips,
            'durationperchannel="'.encode("utf-16-le"),
            'durationperchannel="1000000'.encode("utf-16-le"),
        ),
    ],
)
def test_claims_of_a_billion_samples_are_refused_at_once(
    tmp_path: Path, write: Write, old: bytes, new: bytes
) -> None:
    document = write(leads_of(SIGNAL))
    assert old in document
    begin = time.perf_counter()
    with pytest.raises(FormatError) as refusal:
        read_bytes(tmp_path, document.replace(old, new))
    assert refusal.value.reason in {"the file is too large", "a signal file is cut short"}
    assert time.perf_counter() - begin < 2


def test_blocks_that_end_behind_the_samples_are_refused(tmp_path: Path) -> None:
    document = xml_files.philips(leads_of(SIGNAL)).decode("utf-16")
    start = document.index("durationperchannel")
    begin, end = document.index(">", start) + 1, document.index("</parsed")
    samples = document[begin:end].strip()
    for kept in (len(samples) // 2, 12, 0):  # in the middle, in a header, before it
        cut = document[:begin] + samples[: kept // 4 * 4] + document[end:]
        with pytest.raises(FormatError) as refusal:
            read_bytes(tmp_path, cut.encode("utf-16"))
        assert refusal.value.reason == "a signal file is cut short"


def test_a_block_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    """The block is of 100,000 timesteps, the document promises 1,000."""
    long = np.zeros((12, 100_000), np.int16)
    document = xml_files.philips(leads_of(long)).decode("utf-16")
    document = document.replace('durationperchannel="200000"', 'durationperchannel="2000"')
    with pytest.raises(FormatError, match="unpacks to more than 2,001 bytes"):
        read_bytes(tmp_path, document.encode("utf-16"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<a>" + b"<b/>" * 210_000 + b"</a>", "the file is too large"),
        (b"<a" + b"".join(b" a%d=''" % n for n in range(500_000)) + b"/>", "the file is too large"),
        (
            b"<!DOCTYPE a [" + b"<!ATTLIST a b CDATA 'x'>" * 90_000 + b"]><a/>",
            "the file is damaged",
        ),
        (
            b"<?xml version='1.0' encoding='cp037'?>" + "<a>b</a>".encode("cp037"),
            "the file is damaged",
        ),
        (b"<a>&b;</a>", "the file is damaged"),
        (b"<!DOCTYPE a SYSTEM 'a.dtd'><a>&b;</a>", "the file is damaged"),
    ],
    ids=["elements", "attributes", "declarations", "encoding", "entity", "external entity"],
)
def test_documents_that_would_take_long_or_much_are_refused_at_once(
    content: bytes, reason: str
) -> None:
    begin = time.perf_counter()
    with pytest.raises(FormatError) as refusal:
        parse_xml(content, "a.xml")
    assert refusal.value.reason == reason
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize(
    ("content", "root"),
    [
        ("<?xml version='1.0' encoding='utf-16'?><a:Name/>".encode("utf-16"), "Name"),
        (b"\xef\xbb\xbf\r\n<!-- <x> --><!DOCTYPE y SYSTEM 'y.dtd'><Name a='1", None),
        (b"\xef\xbb\xbf<!-- <x> --><!DOCTYPE y SYSTEM 'y.dtd'>\n<Name a='1'>", "Name"),
        (b"<?xml version='1.0' encoding='windows-1252'?><Name x='\x80'>", "Name"),
        (b"<?xml version='1.0' encoding='klingon'?><Name>", None),
        *((each, None) for each in (b"", b"<", b"\xff\xfe", b"%PDF-1.7 <Name>", b"\0" * 200)),
    ],
)
def test_the_first_element_names_a_document(content: bytes, root: str | None) -> None:
    assert root_of(content) == root
