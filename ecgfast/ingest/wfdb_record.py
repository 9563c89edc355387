"""WFDB records: header + signal files -> EcgRecord; format 16 by a fast path of our own."""

from pathlib import Path

from ecgfast.ingest.leads import arrange_leads, plan_leads
from ecgfast.ingest.wfdb_comments import parse_comments
from ecgfast.ingest.wfdb_format16 import read_format16
from ecgfast.ingest.wfdb_header import WfdbHeader, parse_header, unit_uv
from ecgfast.ingest.wfdb_package import read_with_package
from ecgfast.records import EcgRecord

_PLAUSIBLE_SCALE_UV = (0.01, 100.0)  # devices resolve 0.1 to 10 microvolt per digit


def read_wfdb(path: Path, record_id: str) -> EcgRecord:
    """Read the 12 standard leads of one WFDB record.

    Args:
        path: the .hea file; signal files lie beside it.
        record_id: of the record; the header's own name is not used, because it can lie.
    Returns:
        int16 ADC digits exactly as stored; float32 microvolt only where digits exceed 16 bits,
        segments were joined, or a lead was derived from leads of different gain. Flags:
        "leads_derived", "gain_implausible", "age_implausible", "synthetic".
    Raises:
        FormatError: header or signal file is missing, damaged, or lacks a lead.
    """
    header = parse_header(path.read_bytes().decode("utf-8", errors="replace"), path.name)
    rate = header.sampling_rate_hz
    plan = plan_leads([spec.name for spec in header.signals], path.name) if header.signals else None
    if plan and _is_format16(header):
        signal = read_format16(path.parent, header)
        scale = [unit_uv(spec.units) / spec.gain for spec in header.signals]
        offset = [float(spec.baseline) for spec in header.signals]
    else:
        other = read_with_package(path)
        signal, scale, offset = other.signal, other.scale_uv, other.offset_adc
        rate = other.sampling_rate_hz
        plan = plan_leads(other.names, path.name)
    leads = arrange_leads(plan, signal, scale, offset, path.name)
    comments = parse_comments(header.comments)
    low, high = _PLAUSIBLE_SCALE_UV
    plausible = low <= leads.scale_uv.min() and leads.scale_uv.max() <= high
    return EcgRecord(
        record_id=record_id,
        signal=leads.signal,
        scale_uv=leads.scale_uv,
        offset_adc=leads.offset_adc,
        sampling_rate_hz=rate,
        patient_id=comments.patient_id,
        site=comments.site,
        age=comments.age,
        sex=comments.sex,
        labels=comments.labels,
        provenance={"format": "wfdb", "recorded": " ".join(header.date_time)}
        if header.date_time
        else {"format": "wfdb"},
        flags=(*leads.flags, *comments.flags) + (() if plausible else ("gain_implausible",)),
        segments=header.segments,
    )


def _is_format16(header: WfdbHeader) -> bool:
    """Tell whether the fast path can read every signal."""
    return all(
        spec.format == 16 and spec.samples_per_frame == 1 and spec.skew == 0
        for spec in header.signals
    )
