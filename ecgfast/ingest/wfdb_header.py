"""WFDB header files (.hea): text -> frozen values, in some tens of microseconds.

Stricter than the wfdb package where samples could be misread, laxer where it refuses harmless lines
(a date before the time, a record name with a suffix), which are common in the 2020 challenge.
Source: WFDB Applications Guide, header(5).
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ecgfast.errors import FormatError

_LARGEST_BASELINE = 1 << 62  # beyond it no number of ours holds a digit
DEFAULT_GAIN = 200.0  # header(5): a gain of 0 or none means 200 digits per physical unit
_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?")
_GAIN = re.compile(r"([-+.\deE]+)(?:\((-?\d+)\))?(?:/(\S+))?")
_UNIT_UV = {"v": 1e6, "mv": 1e3, "uv": 1.0, "µv": 1.0, "μv": 1.0, "nv": 1e-3}


class SignalSpec(NamedTuple):
    """One signal line of a header; a tuple, because 12 frozen dataclasses cost 30 us a record.

    Attributes:
        file_name: signal file, in the folder of the header.
        format: storage format number.
        samples_per_frame: 1 unless the format field has `xN`.
        skew: frames by which the signal is delayed.
        byte_offset: bytes before the first sample.
        gain: ADC digits per physical unit.
        baseline: ADC value of 0 physical units.
        units: physical unit as spelled, "mV" where the header is silent.
        checksum: 16-bit sum of all samples as written, or None.
        name: description field, the lead's name.
    """

    file_name: str
    format: int
    samples_per_frame: int
    skew: int
    byte_offset: int
    gain: float
    baseline: int
    units: str
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


@dataclass(frozen=True, kw_only=True)
class WfdbHeader:
    """A parsed header: record line, signal lines, comment lines without their `#`.

    Attributes:
        sampling_rate_hz: frames per second.
        num_timesteps: frames, 0 where the header is silent.
        segments: what this record is joined from, in order of time; none for a plain record.
        date_time: words of the record line that say when it was made.
        signals: none for a record of segments.
        comments: as they stand.
    """

    sampling_rate_hz: float
    num_timesteps: int
    segments: tuple[SegmentSpec, ...]
    date_time: tuple[str, ...]
    signals: tuple[SignalSpec, ...]
    comments: tuple[str, ...]


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
        raise FormatError(
            f"{source}: got an empty header, allowed a WFDB record line first",
            reason="the header is damaged",
        )
    fields = lines[0].split()
    try:
        num_signals = int(fields[1])
        rate = _leading_float(fields[2]) if len(fields) > 2 else 250.0  # header(5)'s default
        num_timesteps = int(fields[3]) if len(fields) > 3 else 0
        segments = int(fields[0].split("/")[1]) if "/" in fields[0] else 0
    except (IndexError, ValueError):
        raise FormatError(
            f"{source}: the record line has {len(fields)} words, allowed "
            "'NAME SIGNALS [RATE [TIMESTEPS [TIME] [DATE]]]' with numbers and a NAME without "
            "blanks",
            reason="the header is damaged",
        ) from None
    if not 0 < rate < 1e6 or num_timesteps < 0 or num_signals < 0:
        raise FormatError(
            f"{source}: the record line gives {num_signals} signals of {num_timesteps} timesteps "
            f"at {rate:g} Hz, allowed a rate in (0, 1e6) Hz and counts >= 0",
            reason="the header is damaged",
        )
    if segments == 0 and len(lines) - 1 < num_signals:
        raise FormatError(
            f"{source}: got {len(lines) - 1} signal lines, the record line promises {num_signals}",
            reason="the header is damaged",
        )
    return WfdbHeader(
        sampling_rate_hz=rate,
        num_timesteps=num_timesteps,
        segments=_segment_specs(lines[1 : segments + 1], segments, source),
        date_time=tuple(fields[4:6]),
        signals=()
        if segments
        else tuple(_signal_spec(line, source) for line in lines[1 : num_signals + 1]),
        comments=tuple(comments),
    )


def unit_uv(unit: str) -> float:
    """Return the microvolts in one physical unit, NaN when it is no voltage ("mmHg")."""
    return _UNIT_UV.get(unit.lower(), math.nan)


def _segment_specs(lines: list[str], count: int, source: str) -> tuple[SegmentSpec, ...]:
    """Parse lines 'NAME TIMESTEPS'; a gap is called `~`."""
    if len(lines) < count:
        raise FormatError(
            f"{source}: got {len(lines)} segment lines, the record line promises {count}",
            reason="the header is damaged",
        )
    specs: list[SegmentSpec] = []
    for line in lines:
        name, length = (*line.split(), "")[:2]
        if not length.isdecimal() or len(length) > 15 or set(name) & set("/\\\0"):
            raise FormatError(
                f"{source}: segment line {len(specs) + 1} is damaged, allowed 'NAME TIMESTEPS' "
                "with the plain name of a record in the same folder, or ~ for a gap",
                reason="the header is damaged",
            )
        specs.append(SegmentSpec(None if name == "~" else name, int(length)))
    return tuple(specs)


def _leading_float(field: str) -> float:
    """Return the sampling rate of 'RATE[/COUNTER_RATE[(BASE)]]'."""
    return float(field.split("/", 1)[0])


def _signal_spec(line: str, source: str) -> SignalSpec:
    """Parse one signal line: FILE FORMAT [GAIN RESOLUTION ZERO INITIAL CHECKSUM BLOCK NAME]."""
    fields = line.split(None, 8)
    count = len(fields)
    try:
        gain, baseline, units = _gain(fields[2]) if count > 2 else (DEFAULT_GAIN, None, "mV")
        zero = int(fields[4]) if count > 4 else 0
        baseline = zero if baseline is None else baseline
        if not -_LARGEST_BASELINE < baseline < _LARGEST_BASELINE:
            raise ValueError(baseline)
        return SignalSpec(
            fields[0],
            *_storage(fields[1]),
            gain,
            baseline,
            units,
            int(fields[6]) if count > 6 else None,
            fields[8].strip() if count > 8 else "",
        )
    except (IndexError, ValueError):
        raise FormatError(
            f"{source}: a signal line has {count} words, allowed "
            "'FILE FORMAT GAIN(BASELINE)/UNITS BITS ZERO INITIAL CHECKSUM BLOCK NAME'",
            reason="the header is damaged",
        ) from None


@lru_cache(maxsize=256)  # a cohort has a handful of different fields
def _storage(field: str) -> tuple[int, int, int, int]:
    """Return format, samples per frame, skew and byte offset of 'FORMAT[xN][:SKEW][+OFFSET]'."""
    match = _FORMAT.fullmatch(field)
    if match is None:
        raise ValueError(field)
    return int(match[1]), int(match[2] or 1), int(match[3] or 0), int(match[4] or 0)


@lru_cache(maxsize=4096)
def _gain(field: str) -> tuple[float, int | None, str]:
    """Return gain, baseline (None: as ADC zero) and units of 'GAIN[(BASELINE)][/UNITS]'."""
    match = _GAIN.fullmatch(field)
    if match is None:
        raise ValueError(field)
    gain = float(match[1]) or DEFAULT_GAIN
    return gain, int(match[2]) if match[2] else None, match[3] or "mV"
