"""Format GE CardioSoft XML (CardiologyXML): comma-separated integers of the strip, lead by lead.

StripData is the ECG. FullDisclosure, a longer and coarser copy of several leads in one list, and
the median beats are passed over. UK Biobank has its resting ECGs in this format.
"""

from pathlib import Path
from xml.etree.ElementTree import Element

from ecgfast.errors import FormatError
from ecgfast.ingest.files import cut_short
from ecgfast.ingest.format import Format
from ecgfast.ingest.vendor.record import (
    Fields,
    Signals,
    age_of,
    device_of,
    hertz_of,
    patient_of,
    sex_of,
    time_of,
    to_record,
)
from ecgfast.ingest.vendor.text_samples import integers_of
from ecgfast.ingest.vendor.xml_tree import attribute_of, number_of, read_xml, text_of
from ecgfast.records import EcgRecord

_UNIT = "uVperLsb"
_MOST_LEADS = 24


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read the strip of a CardioSoft export.

    Raises:
        FormatError: it is no resting ECG, the resolution has another unit, or a lead is missing or
            shorter than the strip's own count.
    """
    source = path.name
    root = read_xml(path)
    strip = root.find("StripData")  # exercise tests have several, each in a Strip
    if strip is None or text_of(root, "ObservationType") not in {"", "RestECG"}:
        raise FormatError(f"{source}: holds no resting ECG, allowed one in StripData")
    unit = attribute_of(strip, "Resolution", "units")
    if unit not in {"", _UNIT}:
        raise FormatError(
            f"{source}: the resolution has another unit, allowed {_UNIT}",
            reason="a lead is not measured in volts",
        )
    leads = strip.findall("WaveformData")
    if len(leads) > _MOST_LEADS:
        raise FormatError(f"{source}: got {len(leads):,} leads, allowed {_MOST_LEADS}")
    samples = [integers_of(each.text or "", source) for each in leads]
    promised = number_of(strip, "ChannelSampleCountTotal", source, default=0)
    if promised and any(len(each) < promised for each in samples):
        raise cut_short(
            f"{source}: a lead holds fewer samples than the promised {promised:,.0f}; export the "
            "file again"
        )
    signals = Signals(
        names=[attribute_of(each, ".", "lead") for each in leads],
        samples=samples,
        scale_uv=[number_of(strip, "Resolution", source)] * len(leads),
        offset_adc=[0.0] * len(leads),
        rate_hz=number_of(strip, "SampleRate", source),
    )
    return to_record(record_id, source, "cardiosoft-xml", signals, _fields(root))


def _fields(root: Element) -> Fields:
    person = "PatientInfo"
    age = f"{person}/Age"
    parts = ("Year", "Month", "Day", "Hour", "Minute", "Second")
    moment = [text_of(root, f"ObservationDateTime/{part}").zfill(2) for part in parts]
    filters = next(root.iter("FilterSetting"), None)
    return Fields(
        patient_id=patient_of(text_of(root, f"{person}/PID")),
        age=age_of(text_of(root, age), attribute_of(root, age, "units")),
        sex=sex_of(text_of(root, f"{person}/Gender")),
        recorded=time_of("".join(moment)),
        device=device_of(text_of(root, "ClinicalInfo/DeviceInfo/Desc")),
        high_pass_hz=hertz_of(text_of(filters, "HighPass")),
        low_pass_hz=hertz_of(text_of(filters, "LowPass")),
        notch_hz=_notch(filters),
    )


def _notch(filters: Element | None) -> float | None:
    """The mains filter: of 50 or 60 Hz, 0 where both are off, None where the file says nothing."""
    states = {
        hertz: text_of(filters, f"Filter{hertz}Hz").lower()
        for hertz in (50, 60)
        if text_of(filters, f"Filter{hertz}Hz")
    }
    on = [hertz for hertz, state in states.items() if state in {"yes", "on", "true"}]
    if on:
        return float(on[0])
    return 0.0 if states else None


FORMAT = Format(
    name="GE CardioSoft XML",
    tried=False,
    keeps="ADC units, rate; patient, age, sex, time, device, filters",
    recognises=lambda head: head.xml_root == "CardiologyXML",
    read=read,
)
