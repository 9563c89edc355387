"""WFDB header files (.hea): signals, segments, and what the comments hold of the patient.

Stricter than the wfdb package where samples could be misread, laxer where it refuses harmless lines
(a date before the time, a record name with a suffix), which are common in the 2020 challenge.
Source: WFDB Applications Guide, header(5). Parsing takes some tens of microseconds.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ecgfast.errors import FormatError
from ecgfast.ingest.files import read_text_bytes
from ecgfast.records import NOT_KNOWN, is_site, known_id, parse_age, parse_number, parse_sex

_LARGEST_BASELINE = 1 << 62  # more than any sample, and float64 holds the difference
_DEFAULT_GAIN = 200.0  # header(5): a gain of 0 or none means 200 ADC units per physical unit
_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?")
_GAIN = re.compile(r"([-+.\deE]+)(?:\((-?\d+)\))?(?:/(\S+))?")
_UNIT_UV = {"v": 1e6, "mv": 1e3, "uv": 1.0, "µv": 1.0, "μv": 1.0, "nv": 1e-3}

_TAGGED = re.compile(r"<(\w+)>:?\s*([^<]*)")
_PATIENT_KEYS = ("patient", "patient_id", "subject_id", "patient id")
_SITE_KEYS = ("site", "institution", "hospital")
_DIAGNOSIS_KEYS = ("dx", "labels", "diagnosis")


class SignalSpec(NamedTuple):
    """One signal line of a header; a tuple, because 12 frozen dataclasses cost 30 us a record.

    Attributes:
        file_name: signal file, in the folder of the header.
        format: storage format number.
        samples_per_frame: 1 unless the format field has `xN`.
        skew: frames by which the signal is delayed.
        byte_offset: bytes before the first sample.
        scale_uv: microvolt per ADC unit, NaN where the physical unit is no voltage.
        baseline: ADC units at 0 physical units.
        checksum: 16-bit sum of all samples as written, or None.
        name: description field, the lead's name.
    """

    file_name: str
    format: int
    samples_per_frame: int
    skew: int
    byte_offset: int
    scale_uv: float
    baseline: int
    checksum: int | None
    name: str


class SegmentSpec(NamedTuple):
    """One segment line of a header.

    Attributes:
        name: of a record in the same folder; None for a gap.
        num_timesteps: 0 for a layout header, which names signals and holds none.
    """

    name: str | None
    num_timesteps: int


class WfdbHeader(NamedTuple):
    """A parsed header: record line, signal lines, comment lines without their `#`.

    Attributes:
        sampling_rate_hz: frames per second.
        num_timesteps: frames, 0 where the header gives none.
        segments: what this record is joined from, in order of time; none for a plain record.
        date_time: words of the record line that give the time of the recording.
        signals: none for a record of segments.
        comments: as they stand.
    """

    sampling_rate_hz: float
    num_timesteps: int
    segments: tuple[SegmentSpec, ...]
    date_time: tuple[str, ...]
    signals: tuple[SignalSpec, ...]
    comments: tuple[str, ...]


@dataclass(kw_only=True)
class CommentFields:
    """Fields found in the comments of one header."""

    age: float | None = None
    sex: str | None = None
    patient_id: str | None = None
    site: str | None = None
    labels: dict[str, str | float | None] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


def read_header(path: Path) -> WfdbHeader:
    """Read and parse a .hea file; errors as `parse_header`, and those of reading it."""
    data = read_text_bytes(path)
    try:
        text = data.decode()
    except UnicodeDecodeError:  # Latin-1 keeps each byte apart: two names must not become one
        text = data.decode("latin-1")
    return parse_header(text, path.name)


def parse_header(text: str, source: str) -> WfdbHeader:
    """Parse the text of a .hea file.

    Args:
        text: the whole file.
        source: file name, named in errors.
    Raises:
        FormatError: a line is no WFDB header line; lines hold names and dates, so none is repeated.
    """
    lines: list[str] = []
    comments: list[str] = []
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("#"):
            comments.append(line[1:].strip())
        elif line:
            lines.append(line)
    if not lines:
        raise damaged(f"{source}: got an empty header, allowed a WFDB record line first")
    fields = lines[0].split()
    try:
        num_signals = int(fields[1])
        # RATE[/COUNTER_RATE[(BASE)]]; 250 is header(5)'s default
        rate = float(fields[2].split("/", 1)[0]) if len(fields) > 2 else 250.0
        num_timesteps = int(fields[3]) if len(fields) > 3 else 0
        segments = int(fields[0].split("/")[1]) if "/" in fields[0] else 0
    except (IndexError, ValueError):
        raise damaged(
            f"{source}: the record line has {len(fields)} words, allowed "
            "'NAME SIGNALS [RATE [TIMESTEPS [TIME] [DATE]]]' with numbers and a NAME without blanks"
        ) from None
    if not 0 < rate < 1e6 or num_timesteps < 0 or num_signals < 0:
        raise damaged(
            f"{source}: the record line gives {num_signals} signals of {num_timesteps} timesteps "
            f"at {rate:g} Hz, allowed a rate in (0, 1e6) Hz and counts >= 0"
        )
    kind, count = ("segment", segments) if segments else ("signal", num_signals)
    if len(lines) - 1 < count:
        raise damaged(
            f"{source}: got {len(lines) - 1} {kind} lines, the record line promises {count}"
        )
    return WfdbHeader(
        sampling_rate_hz=rate,
        num_timesteps=num_timesteps,
        segments=_segment_specs(lines[1 : segments + 1], source),
        date_time=tuple(fields[4:6]),
        signals=()
        if segments
        else tuple(_signal_spec(line, source) for line in lines[1 : num_signals + 1]),
        comments=tuple(comments),
    )


def damaged(message: str) -> FormatError:
    """The refusal of a header that cannot be followed."""
    return FormatError(message, reason="the header is damaged")


def unit_uv(unit: str) -> float:
    """Return the microvolts in one physical unit, NaN when it is no voltage ("mmHg")."""
    return _UNIT_UV.get(unit.lower(), math.nan)


def _segment_specs(lines: list[str], source: str) -> tuple[SegmentSpec, ...]:
    """Parse lines 'NAME TIMESTEPS'; a gap is called `~`."""
    specs: list[SegmentSpec] = []
    for line in lines:
        name, length = (*line.split(), "")[:2]
        if not length.isdecimal() or len(length) > 15 or set(name) & set("/\\\0"):
            raise damaged(
                f"{source}: segment line {len(specs) + 1} is damaged, allowed 'NAME TIMESTEPS' "
                "with the plain name of a record in the same folder, or ~ for a gap"
            )
        specs.append(SegmentSpec(None if name == "~" else name, int(length)))
    return tuple(specs)


def _signal_spec(line: str, source: str) -> SignalSpec:
    """Parse one signal line: FILE FORMAT [GAIN RESOLUTION ZERO INITIAL CHECKSUM BLOCK NAME]."""
    fields = line.split(None, 8)
    count = len(fields)
    try:
        return SignalSpec(
            fields[0],
            *_coding(fields[1], fields[2] if count > 2 else "", fields[4] if count > 4 else "0"),
            int(fields[6]) if count > 6 else None,
            fields[8].strip() if count > 8 else "",
        )
    except (IndexError, ValueError):
        raise damaged(
            f"{source}: a signal line has {count} words, allowed "
            "'FILE FORMAT GAIN(BASELINE)/UNITS BITS ZERO INITIAL CHECKSUM BLOCK NAME'"
        ) from None


@lru_cache(maxsize=4096)  # a cohort has a handful of different ones
def _coding(storage: str, gain: str, zero: str) -> tuple[int, int, int, int, float, int]:
    """Return `SignalSpec` from `format` to `baseline`; `gain` is "" where there is none."""
    per_unit, baseline, units = _gain(gain) if gain else (_DEFAULT_GAIN, None, "mV")
    at_zero = int(zero)
    baseline = at_zero if baseline is None else baseline
    if not -_LARGEST_BASELINE < baseline < _LARGEST_BASELINE:
        raise ValueError(baseline)
    return *_storage(storage), unit_uv(units) / per_unit, baseline


def _storage(text: str) -> tuple[int, int, int, int]:
    """Return format, samples per frame, skew and byte offset of 'FORMAT[xN][:SKEW][+OFFSET]'."""
    match = _FORMAT.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return int(match[1]), int(match[2] or 1), int(match[3] or 0), int(match[4] or 0)


def _gain(text: str) -> tuple[float, int | None, str]:
    """Return gain, baseline (None: as ADC zero) and units of 'GAIN[(BASELINE)][/UNITS]'."""
    match = _GAIN.fullmatch(text)
    if match is None:
        raise ValueError(text)
    gain = float(match[1]) or _DEFAULT_GAIN
    return gain, int(match[2]) if match[2] else None, match[3] or "mV"


def parse_comments(comments: Sequence[str]) -> CommentFields:
    """Read age, sex, ids and diagnoses; only known keys are kept: free text may name people.

    Read: 'Age: 45' (PTB-XL, challenges, PTB), '<age>: 51 <sex>: F' (LUDB and older PhysioNet
    records), 'Dx: 426783006,164865005' (challenges), 'Labels: NORM' (PTB-XL), text below
    '<diagnoses>:' (LUDB), '<subject_id>: 1' (MIMIC-IV-ECG).

    Args:
        comments: lines without their `#`, stripped.
    Returns:
        The fields found. An age outside [0, 120] becomes None with the flag "age_implausible", a
        site of several lines' length None with "site_implausible". Diagnoses go to
        `labels["diagnosis"]`, joined by commas where the header joins them so; convert takes only
        their codes, unless the user asks for the text.
    """
    out = CommentFields()
    below_diagnoses = False
    free_text: list[str] = []
    for line in comments:
        if below_diagnoses and not line.startswith("<"):
            free_text.append(line)
            continue
        for key, value in _pairs(line):
            if key == "diagnoses":
                below_diagnoses = True
                if value:
                    free_text.append(value)
            elif value.lower() not in NOT_KNOWN:
                _take(out, key, value)
        if line == "synthetic":
            out.flags.append("synthetic")
    if free_text:
        out.labels["diagnosis"] = " ".join(free_text)
    return out


def _pairs(line: str) -> list[tuple[str, str]]:
    """Return the (key, value) pairs of a line, keys in lower case."""
    if line.startswith("<"):
        return [(key.lower(), value.strip()) for key, value in _TAGGED.findall(line)]
    key, colon, value = line.partition(":")
    return [(key.strip().lower(), value.strip())] if colon else []


def _take(out: CommentFields, key: str, value: str) -> None:
    """Store one pair where the key is known."""
    if key == "age":
        out.age = parse_age(value)
        if out.age is None:
            out.flags.append("age_implausible")
    elif key in ("sex", "gender"):
        out.sex = parse_sex(value)
    elif key in _PATIENT_KEYS:
        out.patient_id = known_id(value)
    elif key in _SITE_KEYS:
        out.site = known_id(value)
        if not is_site(out.site):
            out.site = None
            out.flags.append("site_implausible")
    elif key in _DIAGNOSIS_KEYS:
        out.labels["diagnosis"] = value
    elif key == "ejection fraction":
        out.labels["ejection_fraction"] = parse_number(value)
