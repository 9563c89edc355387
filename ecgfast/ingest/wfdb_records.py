"""Format WFDB: a header (.hea) with its signal files, or segments that it joins -> EcgRecord."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import check_values, too_large
from ecgfast.ingest.format import Format
from ecgfast.ingest.leads import arrange_leads, lead_rows, plan_leads
from ecgfast.ingest.microvolt import to_microvolt
from ecgfast.ingest.wfdb_folders import companions
from ecgfast.ingest.wfdb_header import WfdbHeader, damaged, parse_comments, read_header
from ecgfast.ingest.wfdb_signals import WfdbSignals, read_signals
from ecgfast.records import INVALID, LEADS, EcgRecord, is_patient

_MAX_SEGMENTS = 10_000  # each is opened on its own; the longest records of MIMIC have hundreds


_memory: ContextVar[NDArray[np.int16] | None] = ContextVar("memory", default=None)


@contextmanager
def reading_into(memory: NDArray[np.int16]) -> Iterator[None]:
    """Give the reader memory for a signal, while the context lasts, in this thread, to save a copy.

    Args:
        memory: (12, T) int16; the signal of a record of this shape may lie in it.
    """
    before = _memory.set(memory)
    try:
        yield
    finally:
        _memory.reset(before)


class _Part(NamedTuple):
    """A segment: the frame of the joined record where it begins, its signals, lead -> row."""

    start: int
    signals: WfdbSignals
    rows: dict[int, int]


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read the 12 standard leads of one WFDB record.

    Args:
        path: the .hea file; signal files and segments lie beside it.
        record_id: of the record; the header's own name is not used, because it can lie.
        row: None.
    Returns:
        int16 ADC units exactly as stored; float32 microvolt only where they exceed 16 bits, a
        lead has several gains in several segments, or was derived from leads of different gain.
        Flags: "leads_derived", "gain_implausible", "age_implausible", "synthetic".
    Raises:
        FormatError: header or signal file is missing, damaged, or lacks a lead.
    """
    header = read_header(path)
    names = [spec.name for spec in header.signals]
    plan = plan_leads(names, path.name) if names else ()  # before any signal is read
    if header.segments:
        signals = _joined(_parts(path, header), header)
    else:
        signals = read_signals(path, header, _memory.get())
    if signals.names != names:
        plan = plan_leads(signals.names, path.name)
    leads = arrange_leads(plan, signals.signal, signals.scale_uv, signals.offset_adc, path.name)
    comments = parse_comments(header.comments)
    if not is_patient(comments.patient_id):
        raise damaged(
            f"{path.name}: the patient's id holds a control character, allowed text of one line"
        )
    recorded = {"recorded": " ".join(header.date_time)} if header.date_time else {}
    return EcgRecord(
        record_id=record_id,
        signal=leads.signal,
        scale_uv=leads.scale_uv,
        offset_adc=leads.offset_adc,
        missing=leads.missing,
        sampling_rate_hz=signals.sampling_rate_hz,
        patient_id=comments.patient_id,
        site=comments.site,
        age=comments.age,
        sex=comments.sex,
        labels=comments.labels,
        provenance={"format": "wfdb", **recorded},
        flags=(*leads.flags, *comments.flags),
        segments=tuple(each.name for each in header.segments if each.name is not None),
    )


def _parts(path: Path, header: WfdbHeader) -> list[_Part]:
    """Read all segments; gaps, and the layout header of some records, hold no signals."""
    total = sum(each.num_timesteps for each in header.segments)
    check_values(total, len(LEADS), path.name)
    if len(header.segments) > _MAX_SEGMENTS:
        raise too_large(
            f"{path.name}: got {len(header.segments):,} segments, allowed {_MAX_SEGMENTS:,}; cut "
            "the recording into shorter records"
        )
    parts: list[_Part] = []
    start = num_values = 0
    for number, segment in enumerate(header.segments, 1):
        if segment.name is not None and segment.num_timesteps:
            of = f"{path.name}, segment {number} of {len(header.segments)}"
            signals = _segment(path.with_name(f"{segment.name}.hea"), of)
            num_values += signals.signal.size  # all at once, further signals too
            check_values(num_values, 1, path.name)
            rate, length = signals.sampling_rate_hz, signals.signal.shape[1]
            per_frame = length // segment.num_timesteps
            if length % segment.num_timesteps or rate != header.sampling_rate_hz * per_frame:
                raise _no_record(
                    f"{of}: holds {length} timesteps at {rate:g} Hz, its record promises "
                    f"{segment.num_timesteps} at {header.sampling_rate_hz:g} Hz"
                )
            if parts and rate != parts[0].signals.sampling_rate_hz:
                raise _no_record(f"{of}: has {rate:g} Hz, allowed one rate in all segments")
            parts.append(_Part(start, signals, lead_rows(signals.names, of)))
        start += segment.num_timesteps
    if not parts:
        raise FormatError(
            f"{path.name}: all of its {len(header.segments)} segments are gaps, allowed at least "
            "one that holds signals",
            reason="all segments are gaps",
        )
    return parts


def _segment(path: Path, of: str) -> WfdbSignals:
    try:
        header = read_header(path)
    except FileNotFoundError:
        raise FormatError(
            f"{of}: is missing; bring its header and signal file back",
            reason="a segment is missing",
        ) from None
    if header.segments:
        raise _no_record(f"{of}: is joined from segments itself, allowed one level of segments")
    return read_signals(path, header)


def _no_record(message: str) -> FormatError:
    return FormatError(message, reason="the segments make no record")


def _joined(parts: list[_Part], header: WfdbHeader) -> WfdbSignals:
    """Join segments lead by lead; what a segment does not hold becomes invalid.

    ADC units are kept where every lead has one gain and baseline in all segments; else the result
    is float32 microvolt, each segment by its own gain.
    """
    leads = sorted({lead for part in parts for lead in part.rows})
    found = [
        {
            (part.signals.scale_uv[row], part.signals.offset_adc[row])
            for part in parts
            if (row := part.rows.get(lead)) is not None
        }
        for lead in leads
    ]
    rate = parts[0].signals.sampling_rate_hz
    per_frame = round(rate / header.sampling_rate_hz)
    num_timesteps = per_frame * sum(each.num_timesteps for each in header.segments)
    exact = all(len(each) == 1 for each in found)
    signal: NDArray[Any]
    if exact and all(part.signals.signal.dtype == np.int16 for part in parts):
        units = [each.pop() for each in found]
        signal = np.full((len(leads), num_timesteps), INVALID, np.int16)
    else:  # a lead that is no voltage in one segment is none
        units = [(1.0 if np.isfinite([*each]).all() else np.nan, 0.0) for each in found]
        signal = np.full((len(leads), num_timesteps), np.nan, np.float32)
    for start, signals, rows in parts:
        span = slice(start * per_frame, start * per_frame + signals.signal.shape[1])
        values = signals.signal if signal.dtype == np.int16 else _microvolt(signals)
        for lead, row in rows.items():
            signal[leads.index(lead), span] = values[row]
    return WfdbSignals(
        names=[LEADS[lead] for lead in leads],
        signal=signal,
        scale_uv=[scale for scale, _ in units],
        offset_adc=[offset for _, offset in units],
        sampling_rate_hz=rate,
    )


def _microvolt(signals: WfdbSignals) -> NDArray[np.float32]:
    if signals.signal.dtype == np.float32:
        return signals.signal
    scale, offset = (np.array(each, np.float32) for each in (signals.scale_uv, signals.offset_adc))
    return to_microvolt(signals.signal, scale, offset)


FORMAT = Format(
    name="WFDB (.hea)",
    tried=True,
    keeps="ADC units, rate, time; of comments age, sex, site, patient, ejection fraction, codes",
    recognises=lambda head: False,  # a header has no signature, but a suffix of its own
    read=read,
    suffixes=(".hea",),
    companions=companions,
)
