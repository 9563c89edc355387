"""Format GE MUSE XML (RestingECG): base64 int16 of I, II and V1 to V6, with CRC-32 of each lead.

The median beats come before the rhythm, in elements of the same name. The document type declaration
names a file that need not exist and is never fetched. Written from real exports of MUSE 7 to 9; GE
publishes no specification.
"""

import zlib
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import check_values, cut_short, not_read
from ecgfast.ingest.format import Format
from ecgfast.ingest.vendor.record import (
    Fields,
    Signals,
    age_between,
    age_of,
    device_of,
    hertz_of,
    patient_of,
    sex_of,
    time_of,
    to_record,
)
from ecgfast.ingest.vendor.text_samples import bytes_of_base64
from ecgfast.ingest.vendor.xml_tree import number_of, read_xml, text_of
from ecgfast.records import EcgRecord

_UV = {"MICROVOLTS": 1.0, "MILLIVOLTS": 1000.0}
_MOST_LEADS = 24


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read the rhythm of a MUSE export; III, aVR, aVL and aVF are derived from ADC values.

    Raises:
        FormatError: there is no rhythm, a lead is missing or damaged, or its CRC-32 differs.
    """
    source = path.name
    root = read_xml(path)
    rhythm = next(
        (each for each in root.iter("Waveform") if text_of(each, "WaveformType") == "Rhythm"), None
    )
    if rhythm is None:
        raise FormatError(f"{source}: holds no rhythm, allowed a Waveform of the type Rhythm")
    leads = rhythm.findall("LeadData")
    if len(leads) > _MOST_LEADS:
        raise FormatError(f"{source}: got {len(leads):,} leads, allowed {_MOST_LEADS}")
    exponent = number_of(rhythm, "SampleExponent", source, default=0)
    signals = Signals(
        names=[text_of(lead, "LeadID") for lead in leads],
        samples=[_samples(lead, source) for lead in leads],
        scale_uv=[
            number_of(lead, "LeadAmplitudeUnitsPerBit", source)
            * _UV.get(text_of(lead, "LeadAmplitudeUnits"), np.nan)
            for lead in leads
        ],
        offset_adc=[0.0] * len(leads),
        rate_hz=number_of(rhythm, "SampleBase", source) * 10.0 ** min(max(exponent, -9), 9),
    )
    return to_record(record_id, source, "muse-xml", signals, _fields(root, rhythm))


def _samples(lead: Element, source: str) -> NDArray[Any]:
    """The timesteps of a lead; a CRC-32 of 0 was not computed by its writer."""
    content = bytes_of_base64(text_of(lead, "WaveFormData"), source)
    if number_of(lead, "LeadSampleSize", source, default=2) != 2:
        raise not_read(f"{source}: samples are not of 2 bytes, allowed 2")
    promised = number_of(lead, "LeadSampleCountTotal", source)
    if len(content) != 2 * promised:
        raise cut_short(
            f"{source}: a lead holds {len(content) // 2:,} samples, its header promises "
            f"{promised:,.0f}; export the file again"
        )
    check_values(len(content) // 2, 1, source)
    expected = number_of(lead, "LeadDataCRC32", source, default=0)
    if expected and expected != zlib.crc32(content):
        raise FormatError(
            f"{source}: the CRC-32 of a lead differs from the file's; export the file again",
            reason="a checksum differs",
        )
    return np.frombuffer(content, "<i2").astype(np.int16, copy=False)


def _fields(root: Element, rhythm: Element) -> Fields:
    person = "PatientDemographics"
    clock = text_of(root, "TestDemographics/AcquisitionTime")
    recorded = _time_of(text_of(root, "TestDemographics/AcquisitionDate"), clock)
    age = age_of(text_of(root, f"{person}/PatientAge"), text_of(root, f"{person}/AgeUnits"))
    if age is None:
        age = age_between(_time_of(text_of(root, f"{person}/DateofBirth")), recorded)
    high_pass = hertz_of(text_of(rhythm, "HighPassFilter"))
    return Fields(
        patient_id=patient_of(text_of(root, f"{person}/PatientID")),
        age=age,
        sex=sex_of(text_of(root, f"{person}/Gender")),
        recorded=recorded,
        device=device_of(text_of(root, "TestDemographics/AcquisitionDevice")),
        high_pass_hz=None if high_pass is None else high_pass / 100,  # in hundredths of a hertz
        low_pass_hz=hertz_of(text_of(rhythm, "LowPassFilter")),
        notch_hz=hertz_of(text_of(rhythm, "ACFilter")),
    )


def _time_of(date: str, clock: str = "") -> str:
    """The time of a date that is written MM-DD-YYYY."""
    return time_of(f"{date[6:]}{date[:5]}{clock}")


FORMAT = Format(
    name="GE MUSE XML",
    tried=True,
    keeps="ADC units, rate; patient, age, sex, time, device, filters",
    recognises=lambda head: head.xml_root == "RestingECG",
    read=read,
)
