"""Format Philips Sierra XML, 1.03 to 1.04.02 (SierraECG, PhilipsECG), with or without XLI.

Eleven-second records end in a calibration pulse, the same in all 12 leads, which is cut off.
"""

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import check_values, cut_short, not_read
from ecgfast.ingest.format import Format
from ecgfast.ingest.leads import lead_position
from ecgfast.ingest.vendor import xli
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
from ecgfast.ingest.vendor.xml_tree import attribute_of, number_of, read_xml, text_of
from ecgfast.records import LEADS, EcgRecord, parse_number

_TYPES = {"SierraECG", "PhilipsECG"}
_VERSIONS = ("1.03", "1.04", "1.04.01", "1.04.02")
_STANDARD = {"STD-12", "10-WIRE"}  # acquisitions whose order of leads the format defines
_DATA = "waveforms/parsedwaveforms"
_SIGNAL = "dataacquisition/signalcharacteristics"
_SHORTEST_PULSE_S = 0.1
_MOST_LEADS = 24
_REBUILT = (2, 3, 4, 5)  # III, aVR, aVL, aVF: what XLI stores of them is what their formulas leave


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read the parsed waveforms, all leads as the device showed them, without a calibration pulse.

    Raises:
        FormatError: type or version is another one, the samples are damaged, or a lead is missing.
    """
    source = path.name
    root = read_xml(path)
    _check_version(root, source)
    names = _names(root, source)
    rate = number_of(root, f"{_SIGNAL}/samplingrate", source)
    duration = _number(attribute_of(root, _DATA, "durationperchannel"), source)
    num_timesteps = round(min(rate * duration / 1000, 1e12))  # milliseconds
    check_values(num_timesteps, len(names), source)
    names, stored = _samples(root, names, num_timesteps, source)
    leads = _cut_calibration(stored, rate)
    flags = ("calibration_cut",) if len(leads[0]) < num_timesteps else ()
    resolution = text_of(root, f"{_SIGNAL}/resolution") or text_of(
        root, f"{_SIGNAL}/signalresolution"
    )
    signals = Signals(
        names=names,
        samples=leads,
        scale_uv=[_number(resolution, source)] * len(names),
        offset_adc=[number_of(root, f"{_SIGNAL}/signaloffset", source, default=0)] * len(names),
        rate_hz=rate,
    )
    return to_record(record_id, source, "philips-xml", signals, _fields(root, flags))


def _check_version(root: Element, source: str) -> None:
    kind = text_of(root, "documentinfo/documenttype")
    version = text_of(root, "documentinfo/documentversion")
    if kind not in _TYPES or version not in _VERSIONS:
        raise not_read(
            f"{source}: document type or version is another one, allowed SierraECG and PhilipsECG, "
            f"{', '.join(_VERSIONS)}"
        )


def _names(root: Element, source: str) -> list[str]:
    """The leads in the order of the samples; 1.03 gives no names, but a standard acquisition."""
    labels = attribute_of(root, _DATA, "leadlabels").split()
    if labels:
        count = _number(attribute_of(root, _DATA, "numberofleads"), source)
        if count != len(labels) or count > _MOST_LEADS:
            raise FormatError(
                f"{source}: gives {len(labels)} names for {count:g} leads, allowed one for each",
                reason="the header is damaged",
            )
        return labels
    count = number_of(root, f"{_SIGNAL}/numberchannelsallocated", source)
    if text_of(root, f"{_SIGNAL}/acquisitiontype") in _STANDARD and count == len(LEADS):
        return list(LEADS)
    raise FormatError(
        f"{source}: names no leads, allowed a list of names or a standard acquisition of 12 leads",
        reason="a lead is missing",
    )


def _samples(
    root: Element, names: list[str], num_timesteps: int, source: str
) -> tuple[list[str], list[NDArray[np.int16]]]:
    """The leads whose samples are known, and these."""
    if attribute_of(root, _DATA, "dataencoding") != "Base64":
        raise not_read(f"{source}: samples are no base64, allowed Base64")
    content = bytes_of_base64(text_of(root, _DATA), source)
    method = attribute_of(root, _DATA, "compression") or attribute_of(root, _DATA, "compressmethod")
    if method in {"", "Uncompressed", "None"}:
        if len(content) != 2 * num_timesteps * len(names):
            raise cut_short(
                f"{source}: holds {len(content):,} bytes of samples, its header promises "
                f"{2 * num_timesteps * len(names):,}; export the file again"
            )
        return names, [*np.frombuffer(content, "<i2").astype(np.int16).reshape(len(names), -1)]
    if method != "XLI":
        raise not_read(f"{source}: samples are compressed otherwise, allowed XLI or none")
    leads = xli.unpack(content, len(names), num_timesteps, source)
    places = [lead_position(name) for name in names]
    stored = {LEADS[n]: lead for n, lead in zip(places, leads, strict=True) if n is not None}
    rebuilt = xli.rebuilt_limb_leads(stored)
    known = [
        (name, lead if n not in _REBUILT else rebuilt[LEADS[n]])
        for name, n, lead in zip(names, places, leads, strict=True)
        if n not in _REBUILT or LEADS[n] in rebuilt
    ]
    return [name for name, _ in known], [lead for _, lead in known]


def _cut_calibration(leads: list[NDArray[np.int16]], rate: float) -> list[NDArray[np.int16]]:
    """Cut the end where all leads are equal, if it is as long as a pulse and not all of the record.

    No heart gives that: V1 to V6 and the limb leads would have to agree to one ADC unit.
    """
    differ = np.flatnonzero((np.stack(leads) != leads[0]).any(axis=0))
    end = int(differ[-1]) + 1 if differ.size else len(leads[0])
    if len(leads[0]) - end < rate * _SHORTEST_PULSE_S:
        return leads
    return [lead[:end] for lead in leads]


def _number(text: str, source: str) -> float:
    number = parse_number(text)
    if number is None:
        raise FormatError(
            f"{source}: duration, resolution or number of leads is absent or no number, allowed a "
            "number",
            reason="the header is damaged",
        )
    return number


def _fields(root: Element, flags: tuple[str, ...]) -> Fields:
    acquisition = root.find("dataacquisition")
    person = "patient/generalpatientdata"
    recorded = time_of(
        attribute_of(acquisition, ".", "date") + attribute_of(acquisition, ".", "time")
    )
    age = age_of(text_of(root, f"{person}/age/years"))
    low, _, high = text_of(root, f"{_SIGNAL}/signalbandwidth").partition("-")
    machine = "dataacquisition/machine"
    return Fields(
        patient_id=patient_of(text_of(root, f"{person}/patientid")),
        age=age_between(time_of(text_of(root, f"{person}/age/dateofbirth")), recorded)
        if age is None
        else age,
        sex=sex_of(text_of(root, f"{person}/sex")),
        recorded=recorded,
        device=device_of(text_of(root, machine), attribute_of(root, machine, "detaildescription")),
        high_pass_hz=hertz_of(text_of(root, f"{_SIGNAL}/hipass") or low),
        low_pass_hz=hertz_of(text_of(root, f"{_SIGNAL}/lowpass") or high),
        notch_hz=_notch(root),
        flags=flags,
    )


def _notch(root: Element) -> float | None:
    """The mains frequency that the stored samples were filtered at; 1.03 does not say."""
    filtered = text_of(root, f"{_SIGNAL}/notchfiltered").lower()
    if filtered == "false":
        return 0.0
    return hertz_of(text_of(root, f"{_SIGNAL}/acsetting")) if filtered == "true" else None


FORMAT = Format(
    name="Philips Sierra XML 1.03 to 1.04.02",
    tried=True,
    keeps="ADC units, rate; patient, age, sex, time, device, filters",
    recognises=lambda head: head.xml_root == "restingecgdata",
    read=read,
)
