"""Formats EDF and BDF, with their successors EDF+C and BDF+C -> EcgRecord.

Of a header's texts only the patient's code, sex and day of birth of EDF+ are used, which stand in
words of their own: a plain EDF file has one line for everything about the patient, names too.
Source: Kemp et al. 1992; Kemp and Olivan 2003 (EDF+); BioSemi's description of BDF.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import check_values, cut_short, not_read
from ecgfast.ingest.format import Format
from ecgfast.ingest.leads import lead_position, plan_leads
from ecgfast.ingest.vendor.binary import age_between, limits_of_damage, read_whole, time_from
from ecgfast.ingest.vendor.record import (
    Fields,
    Signals,
    hertz_of,
    patient_of,
    sex_of,
    to_record,
)
from ecgfast.ingest.wfdb_header import unit_uv
from ecgfast.records import EcgRecord

_MAX_BYTES = 1 << 28
_MAX_SIGNALS = 4096
_FIXED = 256  # bytes of the header before its signals, and of each signal
_EDF, _BDF = b"0       ", b"\xffBIOSEMI"
# Fields of all signals, one after the other: bytes of each.
_WIDTHS = {
    **{"label": 16, "transducer": 80, "unit": 8, "low": 8, "high": 8, "low_adc": 8},
    **{"high_adc": 8, "filters": 80, "timesteps": 8, "reserved": 32},
}
_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_FIRST_YEAR = 1985  # years have two digits


class _Header(NamedTuple):
    """What a header says of the samples.

    Attributes:
        bytes: of the header.
        sample_bytes: 2, or 3 in BDF.
        num_frames: -1 where the writer did not know it.
        seconds: of a frame.
        plus: whether the texts are divided into words as EDF+ does.
        fields: of the signals, by name.
    """

    bytes: int
    sample_bytes: int
    num_frames: int
    seconds: float
    plus: bool
    fields: dict[str, list[str]]


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read the leads of one EDF or BDF file.

    Args:
        path: of the file.
        record_id: of the record.
        row: None.
    Returns:
        int16 ADC units as stored; float32 microvolt where those of a BDF file exceed 16 bits.
    Raises:
        FormatError: the file is damaged, cut short or discontinuous, or holds no 12-lead ECG.
        OSError: it cannot be read.
    """
    source = path.name
    content = read_whole(path, _MAX_BYTES)
    with limits_of_damage(source):
        header = _header(content, source)
        labels = header.fields["label"]
        leads = [row for row, label in enumerate(labels) if lead_position(label) is not None]
        plan_leads([labels[lead] for lead in leads], source)  # before any sample is looked at
        signals = _signals(content, header, leads, source)
        fields = _fields(content, header, leads)
    return to_record(record_id, source, "edf", signals, fields)


def _header(content: bytes, source: str) -> _Header:
    reserved = content[192:236].decode("latin-1").strip()
    if reserved[:5] in ("EDF+D", "BDF+D"):
        raise not_read(
            f"{source}: is a discontinuous file ({reserved[:3]}+D), with gaps between its parts, "
            "allowed a continuous one; export each part apart"
        )
    count = int(content[252:256])
    if not 0 < count <= _MAX_SIGNALS or len(content) < _FIXED * (1 + count):
        raise FormatError(
            f"{source}: promises {count} signals, allowed 1 to {_MAX_SIGNALS}, in a header of "
            f"{_FIXED} bytes each",
            reason="the header is damaged",
        )
    fields: dict[str, list[str]] = {}
    at = _FIXED
    for name, width in _WIDTHS.items():
        end = at + width * count
        text = content[at:end].decode("latin-1")
        fields[name] = [text[i : i + width].strip() for i in range(0, width * count, width)]
        at = end
    return _Header(
        bytes=at,
        sample_bytes=3 if content.startswith(_BDF) else 2,
        num_frames=int(content[236:244]),
        seconds=float(content[244:252]),
        plus=reserved[:4] in ("EDF+", "BDF+"),
        fields=fields,
    )


def _signals(content: bytes, header: _Header, leads: Sequence[int], source: str) -> Signals:
    """Take the samples of the leads out of the frames, in which signals follow each other."""
    lengths = [int(each) for each in header.fields["timesteps"]]
    of_leads = sorted({lengths[lead] for lead in leads})
    if len(of_leads) > 1 or min(lengths) < 0:
        raise FormatError(
            f"{source}: leads have {of_leads} timesteps in a frame, allowed one number",
            reason="the sampling rate is not allowed",
        )
    starts = [0, *np.cumsum(lengths).tolist()]
    frame_bytes = header.sample_bytes * starts[-1]
    held = len(content) - header.bytes
    num_frames = held // frame_bytes if header.num_frames < 0 and frame_bytes else header.num_frames
    if num_frames * frame_bytes > held:
        raise cut_short(
            f"{source}: holds {held} bytes of samples, its header promises "
            f"{num_frames * frame_bytes}; the copy is cut short, copy it again"
        )
    check_values(num_frames * lengths[leads[0]], len(leads), source)
    data = np.frombuffer(content, np.uint8, num_frames * frame_bytes, header.bytes)
    frames = data.reshape(num_frames, starts[-1], header.sample_bytes)
    units = [_scale_and_offset(header, lead, source) for lead in leads]
    return Signals(
        names=[header.fields["label"][lead] for lead in leads],
        samples=[_integers(frames[:, starts[lead] : starts[lead + 1]]) for lead in leads],
        scale_uv=[scale for scale, _ in units],
        offset_adc=[offset for _, offset in units],
        rate_hz=lengths[leads[0]] / header.seconds if header.seconds else math.nan,
    )


def _integers(samples: NDArray[np.uint8]) -> NDArray[Any]:
    """Return (T,) integers of little-endian bytes (F, N, 2 or 3)."""
    flat = np.ascontiguousarray(samples).reshape(-1, samples.shape[2])
    if flat.shape[1] == 2:
        return flat.view("<i2")[:, 0].astype(np.int16, copy=False)
    wide = np.zeros((len(flat), 4), np.uint8)
    wide[:, 1:] = flat
    return wide.view("<i4")[:, 0] >> 8


def _scale_and_offset(header: _Header, signal: int, source: str) -> tuple[float, float]:
    """Return microvolt per ADC unit and the ADC units at 0 microvolt, from the ranges of both."""
    low, high, low_adc, high_adc = (
        float(header.fields[name][signal]) for name in ("low", "high", "low_adc", "high_adc")
    )
    if low == high or low_adc == high_adc:
        raise FormatError(
            f"{source}: a lead has the range {low:g} to {high:g} for the ADC units {low_adc:g} to "
            f"{high_adc:g}, allowed two different ends",
            reason="a gain, scale or offset is not allowed",
        )
    scale = (high - low) / (high_adc - low_adc)
    return scale * unit_uv(header.fields["unit"][signal]), low_adc - low / scale


def _fields(content: bytes, header: _Header, leads: Sequence[int]) -> Fields:
    recorded = _started(content)
    texts = {header.fields["filters"][lead] for lead in leads}
    filters = {_filters(text) for text in texts}
    high_pass, low_pass, notch = filters.pop() if len(filters) == 1 else (None, None, None)
    words = content[8:88].decode("latin-1").split() if header.plus else []
    code, sex, born = (*words, "", "", "")[:3]  # X stands for what is not known
    return Fields(
        patient_id=patient_of(code),
        age=age_between(_day(born), recorded),
        sex=sex_of(sex),
        recorded=recorded,
        high_pass_hz=high_pass,
        low_pass_hz=low_pass,
        notch_hz=notch,
    )


def _filters(text: str) -> tuple[float | None, float | None, float | None]:
    """Return high-pass, low-pass and notch of "HP:0.05Hz LP:150Hz N:50Hz"."""
    found = dict(re.findall(r"\b(HP|LP|N):\s*(\d+(?:\.\d+)?)\s*Hz", text))
    return hertz_of(found.get("HP")), hertz_of(found.get("LP")), hertz_of(found.get("N"))


def _started(content: bytes) -> str:
    """Parse dd.mm.yy and hh.mm.ss."""
    numbers = re.fullmatch(rb"(\d\d)\.(\d\d)\.(\d\d)(\d\d)\.(\d\d)\.(\d\d)", content[168:184])
    if numbers is None:
        return ""
    day, month, year, hour, minute, second = (int(each) for each in numbers.groups())
    year = (year - _FIRST_YEAR) % 100 + _FIRST_YEAR
    return time_from(year, month, day, hour, minute, second)


def _day(text: str) -> str:
    """Parse dd-MMM-yyyy."""
    parts = re.fullmatch(r"(\d\d)-([A-Z]{3})-(\d{4})", text, re.ASCII)
    if parts is None or parts[2] not in _MONTHS:
        return ""
    return time_from(int(parts[3]), _MONTHS.index(parts[2]) + 1, int(parts[1]))


def _is_edf(head: bytes) -> bool:
    """Whether the first bytes are those of EDF or BDF, and the header's length fits."""
    signals, length = head[252:256].strip(), head[184:192].strip()
    if head[:8] not in (_EDF, _BDF) or not (signals.isdigit() and length.isdigit()):
        return False
    return int(length) == _FIXED * (1 + int(signals))


FORMAT = Format(
    name="EDF, BDF and their continuous successors EDF+C, BDF+C",
    tried=True,
    keeps="ADC units, scale, rate; time, filters; of EDF+ and BDF+ patient, age, sex",
    recognises=lambda head: _is_edf(head.content),
    read=read,
)
