"""Format HL7 annotated ECG (aECG, "FDA XML"): lists of decimal digits with origin and scale.

A series of the code RHYTHM holds sets of sequences: one gives the times, the others a lead each.
The representative beat is a derived series, or one with its own code.

Source: HL7 Version 3 Standard, Annotated ECG, Release 1 (ANSI/HL7 V3 ECG, R1-2004).
"""

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from ecgfast.errors import FormatError
from ecgfast.ingest.format import Format
from ecgfast.ingest.leads import lead_position
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
from ecgfast.ingest.vendor.text_samples import integers_of
from ecgfast.ingest.vendor.xml_tree import attribute_of, read_xml, text_of
from ecgfast.records import EcgRecord, parse_number

_UV = {"uV": 1.0, "mV": 1e3, "nV": 1e-3, "V": 1e6}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_SUBJECT = "componentOf/timepointEvent/componentOf/subjectAssignment/subject/trialSubject"
_FILTER = "MDC_ECG_CTL_VBL_ATTR_FILTER_"
_AGE = "21612-7"  # LOINC, reported age
_DECIMALS = 6  # of a sampling rate: 1 / 0.002 s is 500 Hz


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read the rhythm of an annotated ECG.

    Raises:
        FormatError: there is no rhythm, a lead is missing, or a number is none.
    """
    source = path.name
    root = read_xml(path)
    series = _rhythm(root, source)
    sequences = _sequences(series)
    leads = [each for each in sequences if lead_position(_code(each)) is not None]
    scale = [_in(each, "value/scale", _UV, source) for each in leads]
    origin = [_in(each, "value/origin", _UV, source) for each in leads]
    signals = Signals(
        names=[_code(each) for each in leads],
        samples=[integers_of(text_of(each, "value/digits"), source) for each in leads],
        scale_uv=scale,
        offset_adc=[
            0.0 - zero / uv if uv else np.nan for zero, uv in zip(origin, scale, strict=True)
        ],
        rate_hz=_rate(sequences, source),
    )
    return to_record(record_id, source, "aecg-xml", signals, _fields(root, series))


def _rhythm(root: Element, source: str) -> Element:
    """The first series that is the rhythm, by its code or for want of another code."""
    found = root.findall("component/series")
    for wanted in ("RHYTHM", ""):
        for each in found:
            if _code(each) == wanted:
                return each
    raise FormatError(f"{source}: holds no rhythm, allowed a series of the code RHYTHM")


def _sequences(series: Element) -> list[Element]:
    """The sequences of the set that has most leads."""
    sets = [each.findall("component/sequence") for each in series.findall("component/sequenceSet")]
    return max(
        sets, key=lambda found: sum(lead_position(_code(each)) is not None for each in found),
        default=[],
    )  # fmt: skip


def _code(element: Element) -> str:
    return attribute_of(element, "code", "code")


def _rate(sequences: list[Element], source: str) -> float:
    for each in sequences:
        if _code(each) in {"TIME_ABSOLUTE", "TIME_RELATIVE"}:
            interval = _in(each, "value/increment", _SECONDS, source)
            return round(1 / interval, _DECIMALS) if interval > 0 else 0.0
    raise FormatError(
        f"{source}: gives no times, allowed a sequence TIME_ABSOLUTE or TIME_RELATIVE",
        reason="the sampling rate is not allowed",
    )


def _in(element: Element, path: str, units: dict[str, float], source: str) -> float:
    """A quantity in the unit that has 1 in `units`; NaN where its own unit is none of them."""
    number = parse_number(attribute_of(element, path, "value"))
    if number is None:
        name = path.rpartition("/")[2]
        raise FormatError(
            f"{source}: the {name} of a sequence is no number, allowed a number",
            reason="the header is damaged",
        )
    return number * units.get(attribute_of(element, path, "unit"), np.nan)


def _fields(root: Element, series: Element) -> Fields:
    recorded = time_of(
        attribute_of(series, "effectiveTime/low", "value")
        or attribute_of(series, "effectiveTime/center", "value")
        or attribute_of(root, "effectiveTime/low", "value")
        or attribute_of(root, "effectiveTime/center", "value")
    )
    person = f"{_SUBJECT}/subjectDemographicPerson"
    born = time_of(attribute_of(root, f"{person}/birthTime", "value"))
    age = _reported_age(root)
    device = series.find("author/seriesAuthor/manufacturedSeriesDevice")
    return Fields(
        patient_id=patient_of(attribute_of(root, f"{_SUBJECT}/id", "extension")),
        age=age_between(born, recorded) if age is None else age,
        sex=sex_of(attribute_of(root, f"{person}/administrativeGenderCode", "code")),
        recorded=recorded,
        device=device_of(text_of(device, "manufacturerModelName")),
        high_pass_hz=_filter(series, "HIGH_PASS", "CUTOFF_FREQ"),
        low_pass_hz=_filter(series, "LOW_PASS", "CUTOFF_FREQ"),
        notch_hz=_filter(series, "NOTCH", "NOTCH_FREQ"),
    )


def _reported_age(root: Element) -> float | None:
    for each in root.findall("controlVariable/relatedObservation"):
        if _code(each) == _AGE:
            return age_of(attribute_of(each, "value", "value"), attribute_of(each, "value", "unit"))
    return None


def _filter(series: Element, kind: str, frequency: str) -> float | None:
    """The frequency of one of the device's filters."""
    for outer in series.findall("controlVariable/controlVariable"):
        if _code(outer) != _FILTER + kind:
            continue
        for inner in outer.findall("component/controlVariable"):
            if _code(inner) == _FILTER + frequency:
                return hertz_of(attribute_of(inner, "value", "value"))
    return None


FORMAT = Format(
    name="HL7 aECG (FDA XML)",
    tried=True,
    keeps="ADC units, rate; patient, age, sex, time, device, filters",
    recognises=lambda head: head.xml_root == "AnnotatedECG",
    read=read,
)
