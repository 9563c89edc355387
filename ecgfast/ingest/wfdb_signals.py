"""Signals of a WFDB record: our reader or the wfdb package, and segments joined into one record."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import check_values, read_text_bytes
from ecgfast.ingest.leads import lead_rows, to_microvolt
from ecgfast.ingest.wfdb_format16 import FORMATS, read_format16
from ecgfast.ingest.wfdb_header import WfdbHeader, parse_header, unit_uv
from ecgfast.ingest.wfdb_limits import check_for_package
from ecgfast.ingest.wfdb_package import WfdbSignals, read_with_package
from ecgfast.records import INVALID, LEADS

_MAX_SEGMENTS = 10_000  # each is opened on its own; the longest records of MIMIC have hundreds


class _Part(NamedTuple):
    """A segment: the frame of the joined record where it begins, its signals, lead -> row."""

    start: int
    signals: WfdbSignals
    rows: dict[int, int]


def read_header(path: Path) -> WfdbHeader:
    """Read and parse a .hea file."""
    data = read_text_bytes(path)
    try:
        text = data.decode()
    except UnicodeDecodeError:  # Latin-1 keeps each byte apart: two names must not become one
        text = data.decode("latin-1")
    return parse_header(text, path.name)


def read_signals(path: Path, header: WfdbHeader) -> WfdbSignals:
    """Read the signals of a record.

    Args:
        path: the .hea file; signal files and segments lie beside it.
        header: of that file.
    Raises:
        FormatError: a file is missing or damaged, or segments do not make one record.
    """
    if header.segments:
        return _joined(_parts(path, header), header)
    if not header.signals or not all(
        spec.format in FORMATS and spec.samples_per_frame == 1 and spec.skew == 0
        for spec in header.signals
    ):
        check_for_package(path, header)
        return read_with_package(path)
    return WfdbSignals(
        names=[spec.name for spec in header.signals],
        signal=read_format16(path.parent, header),
        scale_uv=[unit_uv(spec.units) / spec.gain for spec in header.signals],
        offset_adc=[float(spec.baseline) for spec in header.signals],
        sampling_rate_hz=header.sampling_rate_hz,
    )


def _parts(path: Path, header: WfdbHeader) -> list[_Part]:
    """Read all segments; gaps, and the layout header of some records, hold no signals."""
    total = sum(each.num_timesteps for each in header.segments)
    check_values(total, len(LEADS), path.name)
    if len(header.segments) > _MAX_SEGMENTS:
        raise FormatError(
            f"{path.name}: got {len(header.segments):,} segments, allowed {_MAX_SEGMENTS:,}; cut "
            "the recording into shorter records",
            reason="the file is too large",
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
                raise FormatError(
                    f"{of}: holds {length} timesteps at {rate:g} Hz, its record promises "
                    f"{segment.num_timesteps} at {header.sampling_rate_hz:g} Hz",
                    reason="the segments make no record",
                )
            if parts and rate != parts[0].signals.sampling_rate_hz:
                raise FormatError(
                    f"{of}: has {rate:g} Hz, allowed one rate in all segments",
                    reason="the segments make no record",
                )
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
        raise FormatError(
            f"{of}: is joined from segments itself, allowed one level of segments",
            reason="the segments make no record",
        )
    return read_signals(path, header)


def _joined(parts: list[_Part], header: WfdbHeader) -> WfdbSignals:
    """Join segments lead by lead; what a segment does not hold becomes invalid.

    Digits stay digits where every lead has one gain and baseline in all segments; else float32
    microvolt, each segment by its own gain.
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
