"""Format Schiller XML (SchillerEDI, of SEMA and CARDIOVIT devices): decimal integers by channel.

A `wavedata` of the type ECG_RHYTHM or ECG_RHYTHMS is the rhythm, ECG_AVERAGES are median beats.
There is no public specification: written from what public readers agree on.
"""

from pathlib import Path
from xml.etree.ElementTree import Element

from ecgfast.errors import FormatError
from ecgfast.ingest.files import not_read
from ecgfast.ingest.format import Format
from ecgfast.ingest.vendor.record import (
    Fields,
    Signals,
    age_between,
    device_of,
    patient_of,
    sex_of,
    time_of,
    to_record,
)
from ecgfast.ingest.vendor.text_samples import integers_of
from ecgfast.ingest.vendor.xml_tree import number_of, read_xml, text_of
from ecgfast.records import EcgRecord

_RHYTHM = {"ECG_RHYTHM", "ECG_RHYTHMS"}
_COMMAS = "COMMASEPARATE"
_MOST_LEADS = 24


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read the rhythm of a Schiller export.

    Raises:
        FormatError: there is no rhythm, its samples are no text with commas, or a lead is missing.
    """
    source = path.name
    root = read_xml(path)
    rhythm = next(
        (each for each in root.iter("wavedata") if text_of(each, "type").upper() in _RHYTHM), None
    )
    if rhythm is None:
        raise FormatError(f"{source}: holds no rhythm, allowed a wavedata of the type ECG_RHYTHMS")
    channels = rhythm.findall("channel")
    if len(channels) > _MOST_LEADS:
        raise FormatError(f"{source}: got {len(channels):,} channels, allowed {_MOST_LEADS}")
    if any(text_of(each, "datastype").upper() not in {"", _COMMAS} for each in channels):
        raise not_read(f"{source}: samples are stored otherwise, allowed {_COMMAS}")
    signals = Signals(
        names=[text_of(each, "name") for each in channels],
        samples=[integers_of(text_of(each, "data"), source) for each in channels],
        scale_uv=[number_of(rhythm, "resolution/yres", source)] * len(channels),
        offset_adc=[0.0] * len(channels),
        rate_hz=number_of(rhythm, "resolution/samplerate", source),
    )
    return to_record(record_id, source, "schiller-xml", signals, _fields(root))


def _fields(root: Element) -> Fields:
    person = next(root.iter("patdata"), None)
    start = next(root.iter("startdatetime"), None)
    recorded = time_of(f"{text_of(start, 'date')} {text_of(start, 'time')}")
    return Fields(
        patient_id=patient_of(text_of(person, "id")),
        age=age_between(time_of(text_of(person, "birthdate")), recorded),
        sex=sex_of(text_of(person, "gender")),
        recorded=recorded,
        device=device_of(text_of(next(root.iter("aquiringdevice"), None), "hardware/model")),
    )


FORMAT = Format(
    name="Schiller XML",
    tried=False,
    keeps="ADC units, rate; patient, age, sex, time, device",
    recognises=lambda head: (head.xml_root or "").endswith("SchillerEDI"),
    read=read,
)
