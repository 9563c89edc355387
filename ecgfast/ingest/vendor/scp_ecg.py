"""Format SCP-ECG, versions 1 to 2: sections 0 to 6 of one file -> EcgRecord.

Read are section 1 (of it the tags of `_fields` alone), 2 (Huffman codes), 3 (leads), 4 (beats), 5
(the reference beat) and 6 (rhythm). Every checksum is verified.
Source: EN 1064 (ISO 11073-91064).
"""

import math
import struct
from binascii import crc_hqx
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import check_values, cut_short, not_read
from ecgfast.ingest.format import Format
from ecgfast.ingest.leads import plan_leads
from ecgfast.ingest.vendor.binary import (
    LEAD_OF_NUMBER,
    age_between,
    limits_of_damage,
    read_whole,
    time_from,
)
from ecgfast.ingest.vendor.record import (
    Fields,
    Signals,
    age_of,
    device_of,
    hertz_of,
    patient_of,
    sex_of,
    to_record,
)
from ecgfast.ingest.vendor.scp_huffman import decode, huffman_tables, undo_differences
from ecgfast.records import EcgRecord

_MAX_BYTES = 1 << 24  # leads have at most 64 KiB each
_MAGIC = slice(16, 22)
_HEADER = struct.Struct("<HHIBB6s")  # CRC, section, bytes, version, protocol, reserved
_POINTER = struct.Struct("<HII")  # section, bytes, first byte from 1
_READ, _LONG_TERM = range(1, 7), 12
_AGE_UNIT = {1: "years", 2: "months", 3: "weeks", 4: "days", 5: "hours"}
_ENCODING = {0x07: "utf-16-le", 0x37: "utf-8"}  # of byte 16 of tag 14; others keep bytes apart


class _Lead(NamedTuple):
    """First and last timestep, counted from 1, and the name of a lead."""

    start: int
    end: int
    name: str


class _Beats(NamedTuple):
    """Section 4: the timestep of the reference beat that is put on the fiducial point of a beat.

    `spans` has the type, first, fiducial and last timestep of each beat, counted from 1.
    """

    milliseconds: int
    fiducial: int
    spans: list[tuple[int, int, int, int]]


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read the rhythm of one SCP-ECG file.

    Args:
        path: of the file.
        record_id: of the record.
        row: None.
    Returns:
        int16 ADC units as encoded, the reference beat added back where it was subtracted.
    Raises:
        FormatError: a checksum differs, the file is cut short, its coding is not read, or it holds
            no 12-lead ECG.
        OSError: it cannot be read.
    """
    source = path.name
    content = read_whole(path, _MAX_BYTES)
    with limits_of_damage(source):
        sections = _sections(content, source)
        leads = _leads(sections[3], source)
        plan_leads([lead.name for lead in leads if lead.name], source)  # before any is decoded
        signals = _rhythm(sections, leads, source)
        fields = _fields(sections.get(1, b""))
    return to_record(record_id, source, "scp-ecg", signals, fields)


def _sections(content: bytes, source: str) -> dict[int, bytes]:
    """Return the sections without their headers, after a check of their checksums."""
    size = int.from_bytes(content[2:6], "little")
    if len(content) < size or size < 6 + _HEADER.size:
        raise cut_short(f"{source}: holds {len(content)} bytes, its header promises {size}")
    content = content[:size]
    _check_crc(content, "the record", source)
    header = content[6 : 6 + int.from_bytes(content[10:14], "little")]
    pointers = header[_HEADER.size :]
    sections: dict[int, bytes] = {}
    for number, length, first in _POINTER.iter_unpack(pointers[: len(pointers) // 10 * 10]):
        if number == _LONG_TERM and length:
            sections[number] = b""
        if number in _READ and length > _HEADER.size and first and number not in sections:
            section = content[first - 1 : first - 1 + length]
            if len(section) < length:
                raise cut_short(f"{source}: ends within section {number}")
            _check_crc(section, f"section {number}", source)
            sections[number] = section[_HEADER.size :]
    if 6 not in sections and _LONG_TERM in sections:
        raise _not_read(source, "keeps its rhythm in section 12 (SCP-ECG 3), allowed section 6")
    for number in (3, 6):
        if number not in sections:
            raise FormatError(f"{source}: has no section {number}", reason="the file is damaged")
    return sections


def _check_crc(data: bytes, what: str, source: str) -> None:
    """Refuse damage; a checksum of 0 was not computed."""
    stored = int.from_bytes(data[:2], "little")
    if stored and stored != crc_hqx(data[2:], 0xFFFF):
        raise FormatError(
            f"{source}: the checksum of {what} differs; the file is damaged, copy it again",
            reason="a checksum differs",
        )


def _not_read(source: str, what: str) -> FormatError:
    return not_read(f"{source}: {what}; export the ECG again, or in another format")


def _leads(section: bytes, source: str) -> list[_Lead]:
    count = section[0]
    if len(section) < 2 + 9 * count:
        raise cut_short(f"{source}: section 3 holds fewer than its {count} leads")
    leads = [  # a first timestep of 0 is Contec's, whose last one is still their number
        _Lead(start or 1, end, LEAD_OF_NUMBER.get(number, ""))
        for start, end, number in struct.iter_unpack("<IIB", section[2 : 2 + 9 * count])
    ]
    for lead in leads:
        if not 1 <= lead.start <= lead.end:
            raise FormatError(
                f"{source}: a lead has timesteps {lead.start} to {lead.end}, allowed from 1",
                reason="the header is damaged",
            )
    first, last = min(lead.start for lead in leads), max(lead.end for lead in leads)
    check_values(last - first + 1, count, source)
    return leads


def _rhythm(sections: Mapping[int, bytes], leads: Sequence[_Lead], source: str) -> Signals:
    """Decode section 6 on one time axis; what a lead does not cover is invalid."""
    section, subtracted = sections[6], sections[3][1] & 1
    resolution_nv, interval_us, _, bimodal = struct.unpack("<HHBB", section[:6])
    # The flag alone removes nothing: the interval is then that of the reference beat.
    if bimodal and interval_us != int.from_bytes(sections.get(5, b"")[2:4], "little"):
        raise _not_read(source, "is packed bimodally, with fewer timesteps between the beats")
    values = _decoded(
        section, sections, leads, [each.end - each.start + 1 for each in leads], source
    )
    unit_nv = resolution_nv
    if subtracted:
        beats = _beats(sections, source)
        values, unit_nv = _with_reference_beat(values, beats, sections, leads, source)
    first, last = min(lead.start for lead in leads), max(lead.end for lead in leads)
    samples_ST = np.zeros((len(leads), last - first + 1), np.int64)
    invalid_ST = np.ones(samples_ST.shape, np.bool_)
    for row, (lead, each) in enumerate(zip(leads, values, strict=True)):
        span = slice(lead.start - first, lead.end - first + 1)
        if lead.name:
            samples_ST[row, span], invalid_ST[row, span] = each, False
    return Signals(
        names=[lead.name for lead in leads],
        samples=samples_ST,
        scale_uv=[unit_nv / 1000] * len(leads),
        offset_adc=[0.0] * len(leads),
        rate_hz=1e6 / interval_us if interval_us else math.nan,
        invalid=invalid_ST,
    )


def _decoded(
    section: bytes,
    sections: Mapping[int, bytes],
    leads: Sequence[_Lead],
    counts: Sequence[int],
    source: str,
) -> list[NDArray[np.int64]]:
    """Decode the leads of section 5 or 6; what is no standard lead stays empty."""
    order = section[4]
    if order > 2:
        raise _not_read(source, f"has differences of order {order}, allowed 0 to 2")
    tables = huffman_tables(sections[2], source) if 2 in sections else []
    at = 6 + 2 * len(leads)
    sizes = struct.unpack(f"<{len(leads)}H", section[6:at])
    values: list[NDArray[np.int64]] = []
    for lead, size, count in zip(leads, sizes, counts, strict=True):
        data = section[at : at + size]
        at += size
        if not lead.name:
            numbers = np.zeros(0, np.int64)
        elif tables:
            numbers = decode(data, count, tables, source)
        elif len(data) < 2 * count:
            raise cut_short(f"{source}: a lead holds {len(data)} bytes, promises {2 * count}")
        else:
            numbers = np.frombuffer(data, "<i2", count).astype(np.int64)
        values.append(undo_differences(numbers, order))
    return values


def _beats(sections: Mapping[int, bytes], source: str) -> _Beats:
    section = sections.get(4, b"")
    if len(section) < 6 or 5 not in sections:
        raise FormatError(
            f"{source}: the reference beat is subtracted, and section 4 or 5 is missing",
            reason="the file is damaged",
        )
    milliseconds, fiducial, count = struct.unpack("<HHH", section[:6])
    if len(section) < 6 + 14 * count:
        raise cut_short(f"{source}: section 4 holds fewer than its {count} beats")
    spans = list(struct.iter_unpack("<HIII", section[6 : 6 + 14 * count]))
    return _Beats(milliseconds, fiducial, spans)


def _with_reference_beat(
    residuals: Sequence[NDArray[np.int64]],
    beats: _Beats,
    sections: Mapping[int, bytes],
    leads: Sequence[_Lead],
    source: str,
) -> tuple[list[NDArray[np.int64]], int]:
    """Add the reference beat to each beat of its type; return the ADC units and nanovolt of one."""
    unit, interval_us = struct.unpack("<HH", sections[6][:4])
    beat_unit, beat_interval_us = struct.unpack("<HH", sections[5][:4])
    if interval_us != beat_interval_us or not interval_us:
        raise _not_read(source, "has a reference beat of another sampling rate")
    length = round(beats.milliseconds * 1000 / interval_us)
    references = _decoded(sections[5], sections, leads, [length] * len(leads), source)
    common = math.gcd(unit, beat_unit) or 1
    signals: list[NDArray[np.int64]] = []
    for lead, residual, reference in zip(leads, residuals, references, strict=True):
        signal = residual * (unit // common)
        for kind, start, fiducial, end in beats.spans if lead.name else ():
            shift = fiducial - beats.fiducial  # timestep of the record before the reference beat
            first = max(start, lead.start, shift + 1)
            last = min(end, lead.end, shift + length)
            if kind == 0 and first <= last:
                part = reference[first - shift - 1 : last - shift] * (beat_unit // common)
                signal[first - lead.start : last - lead.start + 1] += part
        signals.append(signal)
    return signals, common


def _fields(section: bytes) -> Fields:
    """Read the tags of section 1 that are kept; names, addresses and texts are passed over."""
    tags: dict[int, bytes] = {}
    at = 0
    while at + 3 <= len(section) and section[at] != 0xFF:
        length = int.from_bytes(section[at + 1 : at + 3], "little")
        tags[section[at]] = section[at + 3 : at + 3 + length]
        at += 3 + length

    def number(tag: int, start: int = 0, size: int = 2) -> int:
        return int.from_bytes(tags.get(tag, b"")[start : start + size], "little")

    def day(tag: int) -> tuple[int, int, int]:
        return number(tag), number(tag, 2, 1), number(tag, 3, 1)

    recorded = time_from(*day(25), *(number(26, at, 1) for at in range(3))) if 25 in tags else ""
    device = tags.get(14, b"")
    encoding = _ENCODING.get(number(14, 16, 1), "latin-1")
    patient = tags.get(2, b"").decode(encoding, errors="backslashreplace").split("\0")[0]
    age = age_of(str(number(4)), _AGE_UNIT.get(number(4, 2, 1), "not given"))
    filters = number(29, 0, 1)
    return Fields(
        patient_id=patient_of(patient),
        age=age or age_between(time_from(*day(5)), recorded),
        sex=sex_of(str(number(8, 0, 1))),
        recorded=recorded,
        device=device_of(device[8:14].split(b"\0")[0].decode("ascii", errors="ignore")),
        high_pass_hz=hertz_of(f"{number(27) / 100:g}") or None,
        low_pass_hz=hertz_of(f"{number(28)}") or None,
        notch_hz=60.0 if filters & 1 else 50.0 if filters & 2 else None,
    )


FORMAT = Format(
    name="SCP-ECG",
    tried=True,
    keeps="ADC units, scale, rate; patient, age, sex, time, device model, filters",
    recognises=lambda head: head.content[_MAGIC] == b"SCPECG",
    read=read,
)
