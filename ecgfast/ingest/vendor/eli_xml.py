"""Format Mortara ELI XML (ELI Link, also of Welch Allyn and Baxter): base64 int16 in attributes.

Each CHANNEL of the root is a lead of the rhythm; the median beats are in TYPICAL_CYCLE. There is no
public specification: written from what the readers of BRAVEHEART and EDFbrowser agree on.
"""

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
from ecgfast.ingest.vendor.text_samples import int16_of_base64
from ecgfast.ingest.vendor.xml_tree import attribute_of, read_xml
from ecgfast.records import EcgRecord, parse_number

_STORED = {"BITS": "16", "FORMAT": "SIGNED", "ENCODING": "BASE64"}
_MOST_LEADS = 24


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read the channels of an ELI export.

    Raises:
        FormatError: samples are stored otherwise than as 16 bits in base64 without an offset,
            channels differ in rate, or a lead is missing or damaged.
    """
    source = path.name
    root = read_xml(path)
    channels = root.findall("CHANNEL")
    if not 0 < len(channels) <= _MOST_LEADS:
        raise FormatError(
            f"{source}: got {len(channels):,} channels of a rhythm, allowed 8 to {_MOST_LEADS}"
        )
    rates = {_number(each, "SAMPLE_FREQ", source) for each in channels}
    if len(rates) > 1:
        raise FormatError(
            f"{source}: channels have {len(rates)} sampling rates, allowed one",
            reason="the sampling rate is not allowed",
        )
    per_mv = [_number(each, "UNITS_PER_MV", source) for each in channels]
    signals = Signals(
        names=[each.get("NAME", "") for each in channels],
        samples=[_samples(each, source) for each in channels],
        scale_uv=[1000 / each if each else np.nan for each in per_mv],
        offset_adc=[0.0] * len(channels),
        rate_hz=rates.pop(),
    )
    return to_record(record_id, source, "eli-xml", signals, _fields(root))


def _samples(channel: Element, source: str) -> NDArray[Any]:
    for name, wanted in _STORED.items():
        if channel.get(name, wanted).strip().upper() != wanted:
            raise not_read(f"{source}: {name} of a channel is another one, allowed {wanted}")
    if parse_number(channel.get("OFFSET") or "0") != 0:
        raise FormatError(
            f"{source}: OFFSET of a channel is not 0, allowed 0: what others mean is documented "
            "nowhere",
            reason="a gain, scale or offset is not allowed",
        )
    samples = int16_of_base64(channel.get("DATA") or channel.text or "", source)
    promised = parse_number(channel.get("DURATION", ""))  # samples, in spite of its name
    if promised and promised != len(samples):
        raise cut_short(
            f"{source}: a channel holds {len(samples):,} samples, its header promises "
            f"{promised:,.0f}; export the file again"
        )
    check_values(len(samples), 1, source)
    return samples


def _number(channel: Element, name: str, source: str) -> float:
    number = parse_number(channel.get(name, ""))
    if number is None:
        raise FormatError(
            f"{source}: {name} of a channel is absent or no number, allowed a number",
            reason="the header is damaged",
        )
    return number


def _fields(root: Element) -> Fields:
    recorded = time_of(root.get("ACQUISITION_TIME"))
    born = time_of(attribute_of(root, "SUBJECT", "DOB_XML") or attribute_of(root, "SUBJECT", "DOB"))
    age = age_of(root.get("AGE"), root.get("AGE_UNITS", ""))
    return Fields(
        patient_id=patient_of(attribute_of(root, "SUBJECT", "ID")),
        age=age_between(born, recorded) if age is None else age,
        sex=sex_of(attribute_of(root, "SUBJECT", "GENDER")),
        recorded=recorded,
        device=device_of(attribute_of(root, "SOURCE", "MODEL")),
        low_pass_hz=hertz_of(attribute_of(root, "SOURCE", "LOW_PASS_FILTER")),
    )


FORMAT = Format(
    name="Mortara ELI XML",
    tried=False,
    keeps="ADC units, rate; patient, age, sex, time, device, low-pass filter",
    recognises=lambda head: head.xml_root == "ECG",
    read=read,
)
