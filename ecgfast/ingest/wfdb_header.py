"""WFDB header files (.hea): text -> frozen values, in some tens of microseconds.

Stricter than the wfdb package where samples could be misread, laxer where it refuses harmless lines
(a date before the time, a record name with a suffix), which are common in the 2020 challenge.
Source: WFDB Applications Guide, header(5).
"""

import math
import re
from dataclasses import dataclass

from ecgfast.errors import FormatError

DEFAULT_GAIN = 200.0  # header(5): a gain of 0 or none means 200 digits per physical unit
_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?")
_GAIN = re.compile(r"([-+.\deE]+)(?:\((-?\d+)\))?(?:/(\S+))?")
_UNIT_UV = {"v": 1e6, "mv": 1e3, "uv": 1.0, "µv": 1.0, "μv": 1.0, "nv": 1e-3}


@dataclass(frozen=True, kw_only=True)
class SignalSpec:
    """One signal line of a header.

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


@dataclass(frozen=True, kw_only=True)
class WfdbHeader:
    """A parsed header: record line, signal lines, comment lines without their `#`."""

    sampling_rate_hz: float
    num_timesteps: int
    num_segments: int
    date_time: tuple[str, ...]
    signals: tuple[SignalSpec, ...]
    comments: tuple[str, ...]


def parse_header(text: str, source: str) -> WfdbHeader:
    """Parse the text of a .hea file.

    Args:
        text: the whole file.
        source: file name, named in errors.
    Raises:
        FormatError: a line is no WFDB header line.
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
        raise FormatError(f"{source}: got an empty header, allowed a WFDB record line first")
    fields = lines[0].split()
    try:
        num_signals = int(fields[1])
        rate = _leading_float(fields[2]) if len(fields) > 2 else 250.0  # header(5)'s default
        num_timesteps = int(fields[3]) if len(fields) > 3 else 0
        segments = int(fields[0].split("/")[1]) if "/" in fields[0] else 0
    except (IndexError, ValueError):
        raise FormatError(
            f"{source}: record line is {lines[0]!r}, allowed "
            "'NAME SIGNALS [RATE [TIMESTEPS [TIME] [DATE]]]'"
        ) from None
    if not 0 < rate < 1e6 or num_timesteps < 0 or num_signals < 0:
        raise FormatError(
            f"{source}: record line is {lines[0]!r}, allowed a rate in (0, 1e6) Hz and counts >= 0"
        )
    if segments == 0 and len(lines) - 1 < num_signals:
        raise FormatError(
            f"{source}: got {len(lines) - 1} signal lines, the record line promises {num_signals}"
        )
    return WfdbHeader(
        sampling_rate_hz=rate,
        num_timesteps=num_timesteps,
        num_segments=segments,
        date_time=tuple(fields[4:6]),
        signals=()
        if segments
        else tuple(_signal_spec(line, source) for line in lines[1 : num_signals + 1]),
        comments=tuple(comments),
    )


def unit_uv(unit: str) -> float:
    """Return the microvolts in one physical unit, NaN when it is no voltage ("mmHg")."""
    return _UNIT_UV.get(unit.lower(), math.nan)


def _leading_float(field: str) -> float:
    """Return the sampling rate of 'RATE[/COUNTER_RATE[(BASE)]]'."""
    return float(field.split("/", 1)[0])


def _signal_spec(line: str, source: str) -> SignalSpec:
    """Parse one signal line: FILE FORMAT [GAIN RESOLUTION ZERO INITIAL CHECKSUM BLOCK NAME]."""
    fields = line.split(None, 8)
    storage = _FORMAT.fullmatch(fields[1]) if len(fields) > 1 else None
    if storage is None:
        raise FormatError(f"{source}: signal line is {line!r}, allowed 'FILE FORMAT GAIN ...'")
    gain, baseline, units = DEFAULT_GAIN, None, "mV"
    try:
        zero = int(fields[4]) if len(fields) > 4 else 0
        checksum = int(fields[6]) if len(fields) > 6 else None
        if len(fields) > 2:
            match = _GAIN.fullmatch(fields[2])
            if match is None:
                raise ValueError
            gain = float(match[1]) or DEFAULT_GAIN
            baseline = int(match[2]) if match[2] else None
            units = match[3] or "mV"
    except ValueError:
        raise FormatError(
            f"{source}: signal line is {line!r}, allowed "
            "'FILE FORMAT GAIN(BASELINE)/UNITS BITS ZERO INITIAL CHECKSUM BLOCK NAME'"
        ) from None
    return SignalSpec(
        file_name=fields[0],
        format=int(storage[1]),
        samples_per_frame=int(storage[2] or 1),
        skew=int(storage[3] or 0),
        byte_offset=int(storage[4] or 0),
        gain=gain,
        baseline=zero if baseline is None else baseline,
        units=units,
        checksum=checksum,
        name=fields[8].strip() if len(fields) > 8 else "",
    )
