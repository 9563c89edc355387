"""WFDB records: header + signal files -> EcgRecord."""

from pathlib import Path

from ecgfast.errors import FormatError
from ecgfast.ingest.leads import arrange_leads, plan_leads
from ecgfast.ingest.wfdb_comments import parse_comments
from ecgfast.ingest.wfdb_signals import read_header, read_signals
from ecgfast.records import EcgRecord, is_patient


def read_wfdb(path: Path, record_id: str) -> EcgRecord:
    """Read the 12 standard leads of one WFDB record.

    Args:
        path: the .hea file; signal files lie beside it.
        record_id: of the record; the header's own name is not used, because it can lie.
    Returns:
        int16 ADC digits exactly as stored; float32 microvolt only where digits exceed 16 bits, a
        lead has several gains in several segments, or was derived from leads of different gain.
        Flags: "leads_derived", "gain_implausible", "age_implausible", "synthetic".
    Raises:
        FormatError: header or signal file is missing, damaged, or lacks a lead.
    """
    header = read_header(path)
    names = [spec.name for spec in header.signals]
    plan = plan_leads(names, path.name) if names else ()  # before any signal is read
    signals = read_signals(path, header)
    if signals.names != names:
        plan = plan_leads(signals.names, path.name)
    leads = arrange_leads(plan, signals.signal, signals.scale_uv, signals.offset_adc, path.name)
    comments = parse_comments(header.comments)
    if not is_patient(comments.patient_id):
        raise FormatError(
            f"{path.name}: the patient's id holds a control character, allowed text of one line",
            reason="the header is damaged",
        )
    return EcgRecord(
        record_id=record_id,
        signal=leads.signal,
        scale_uv=leads.scale_uv,
        offset_adc=leads.offset_adc,
        sampling_rate_hz=signals.sampling_rate_hz,
        patient_id=comments.patient_id,
        site=comments.site,
        age=comments.age,
        sex=comments.sex,
        labels=comments.labels,
        provenance={"format": "wfdb", "recorded": " ".join(header.date_time)}
        if header.date_time
        else {"format": "wfdb"},
        flags=(*leads.flags, *comments.flags),
        segments=tuple(each.name for each in header.segments if each.name is not None),
    )
