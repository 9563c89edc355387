"""Format MFER: the resting 12-lead ECG of one file -> EcgRecord.

Source: ISO 22077-1 (MFER part 1) and part 3-1 for 12-lead ECG.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import check_values, cut_short
from ecgfast.ingest.format import Format
from ecgfast.ingest.leads import plan_leads
from ecgfast.ingest.vendor.binary import (
    LEAD_OF_NUMBER,
    age_between,
    limits_of_damage,
    read_whole,
    time_from,
)
from ecgfast.ingest.vendor.mfer_definitions import Definitions, Frame, Parser, Tag, Value, not_read
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
from ecgfast.records import INVALID, EcgRecord

_MAX_BYTES = 1 << 26  # eleven minutes of 12 leads of 32 bits at 2000 Hz
_RESTING_12_LEAD = 1
_DTYPES = {0: "i2", 1: "u2", 2: "i4", 3: "u1", 5: "i1", 6: "u4", 7: "f4", 8: "f8"}
_HERTZ, _SECONDS, _VOLT = 0, 1, 0


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read the resting 12-lead ECG of one MFER file; averaged beats are passed over.

    Args:
        path: of the file.
        record_id: of the record.
        row: None.
    Returns:
        int16 ADC units as stored; float32 microvolt only where they exceed 16 bits or are floats.
    Raises:
        FormatError: the file is cut short, its coding is not read, or it holds no 12-lead ECG.
        OSError: it cannot be read.
    """
    source = path.name
    content = read_whole(path, _MAX_BYTES)
    with limits_of_damage(source):
        parser = Parser(source)
        parser.take(content)
        signals = _rhythm(parser.frames, source)
        fields = _fields(parser.of_file, parser.filters)
    return to_record(record_id, source, "mfer", signals, fields)


def _rhythm(frames: list[Frame], source: str) -> Signals:
    """Join the frames of the resting ECG."""
    chosen = [frame for frame in frames if _code(frame.channels[0], Tag.KIND) == _RESTING_12_LEAD]
    if not chosen:
        kinds = sorted({_code(frame.channels[0], Tag.KIND) for frame in frames})
        raise FormatError(
            f"{source}: holds waveforms of kind {kinds} (tag 08h), allowed 1: a resting 12-lead ECG"
        )
    names = [_lead(channel) for channel in chosen[0].channels]
    rows = [row for row, name in enumerate(names) if name]
    plan_leads([names[row] for row in rows], source)  # before any sample is looked at
    channels = [chosen[0].channels[row] for row in rows]
    values, total = [], 0
    for frame in chosen:
        if [frame.channels[row] for row in rows] != channels or frame.pointer not in (None, total):
            raise FormatError(f"{source}: holds several recordings, allowed one; export them apart")
        values.append(_values(frame, rows, source))
        total += values[-1].shape[1]
    rates = {_rate(channel, source) for channel in channels}
    if len(rates) > 1:
        raise FormatError(
            f"{source}: leads have {sorted(rates)} Hz, allowed one rate",
            reason="the sampling rate is not allowed",
        )
    for channel in channels:
        _check_offset(channel, source)
    samples_ST = np.concatenate(values, axis=1)
    nulls = [_null(channel, source) for channel in channels]
    return Signals(
        names=[names[row] for row in rows],
        samples=samples_ST,
        scale_uv=[_scale_uv(channel) for channel in channels],
        offset_adc=[0.0] * len(rows),
        rate_hz=rates.pop(),
        invalid=_invalid(samples_ST, nulls),
    )


def _values(frame: Frame, rows: list[int], source: str) -> NDArray[Any]:
    """Return the (S, T) samples of some channels: a frame is sequences of a block per channel."""
    blocks = [_count(channel, Tag.BLOCK) for channel in frame.channels]
    dtypes = [_dtype(channel, frame.big_endian, source) for channel in frame.channels]
    parts = list(zip(dtypes, blocks, strict=True))
    size = sum(dtype.itemsize * block for dtype, block in parts)
    counts = {
        _count(channel, Tag.SEQUENCES, -(-len(frame.samples) // size)) for channel in frame.channels
    }
    if len(counts) > 1 or len({blocks[row] for row in rows}) > 1:
        raise not_read(source, "has leads of several lengths")
    num_sequences = counts.pop()
    if num_sequences * size > len(frame.samples):
        raise cut_short(
            f"{source}: holds {len(frame.samples)} bytes of samples, "
            f"promises {num_sequences * size}"
        )
    check_values(num_sequences * max(blocks), len(blocks), source)
    layout = [(str(row), dtype, (block,)) for row, (dtype, block) in enumerate(parts)]
    sequences = np.frombuffer(frame.samples, np.dtype(layout), num_sequences)
    values = [sequences[str(row)].ravel() for row in rows]
    return np.stack([each.astype(each.dtype.newbyteorder("="), copy=False) for each in values])


def _code(channel: Definitions, tag: int) -> int:
    """Return a code of one or two bytes, 0 where it is not given."""
    return channel[tag].number(0, 2) if tag in channel else 0


def _count(channel: Definitions, tag: int, default: int = 1) -> int:
    return channel[tag].number() if tag in channel else default


def _lead(channel: Definitions) -> str:
    return LEAD_OF_NUMBER.get(_code(channel, Tag.LEAD), "")


def _dtype(channel: Definitions, big_endian: bool, source: str) -> np.dtype[Any]:
    code = _count(channel, Tag.TYPE, 0)
    if code not in _DTYPES:
        raise not_read(source, f"has samples of type {code} (tag 0Ah)")
    return np.dtype((">" if big_endian else "<") + _DTYPES[code])


def _rate(channel: Definitions, source: str) -> float:
    unit, value = channel[Tag.INTERVAL].quantity if Tag.INTERVAL in channel else (_HERTZ, math.nan)
    if unit not in (_HERTZ, _SECONDS):
        raise not_read(source, f"has samples at an interval of unit {unit} (tag 0Bh)")
    return value if unit == _HERTZ else 1 / value if value else math.nan


def _scale_uv(channel: Definitions) -> float:
    """Return microvolt per ADC unit, NaN where the unit is no voltage or not given."""
    if Tag.RESOLUTION not in channel:
        return math.nan
    unit, value = channel[Tag.RESOLUTION].quantity
    return round(value * 1e6, 9) if unit == _VOLT else math.nan  # 1e-6 V are 1 microvolt


def _null(channel: Definitions, source: str) -> float:
    """Return the sample that stands for none, NaN where there is no such one."""
    if Tag.NULL not in channel:
        return math.nan
    value = channel[Tag.NULL]
    return float(np.frombuffer(value.content, _dtype(channel, value.big_endian, source))[0])


def _invalid(samples_ST: NDArray[Any], nulls: list[float]) -> NDArray[np.bool_] | None:
    """Which samples stand for none; nothing where they are marked already, or none can be."""
    if samples_ST.dtype == np.int16 and all(math.isnan(null) or null == INVALID for null in nulls):
        return None
    return np.stack([row == null for row, null in zip(samples_ST, nulls, strict=True)])


def _check_offset(channel: Definitions, source: str) -> None:
    """Refuse an offset: descriptions of the format differ on its sign, and files have none."""
    if Tag.OFFSET in channel and any(channel[Tag.OFFSET].content):
        raise not_read(source, "has an offset (tag 0Dh)")


def _fields(definitions: Mapping[int, Value], filter_texts: Sequence[str]) -> Fields:
    def value(tag: int) -> Value:
        return definitions.get(tag, Value(b"", big_endian=True))

    recorded, age = _time(value(Tag.TIME)), value(Tag.AGE)
    born = _time(Value(age.content[3:7], age.big_endian))
    filters = dict(re.findall(r"(HPF|LPF|BEF)=(\d+(?:\.\d+)?)", " ".join(filter_texts)))
    return Fields(
        patient_id=patient_of(value(Tag.ID).text.split("^")[0].rstrip("\0")),
        age=age_of(str(age.number(0, 1) or "")) or age_between(born, recorded),
        sex=sex_of(str(value(Tag.SEX).number(0, 1))),
        recorded=recorded,
        device=device_of(*value(Tag.DEVICE).text.split("^")[1:2]),  # behind the maker
        high_pass_hz=hertz_of(filters.get("HPF")),
        low_pass_hz=hertz_of(filters.get("LPF")),
        notch_hz=hertz_of(filters.get("BEF")),
    )


def _time(value: Value) -> str:
    """A year of two bytes, and one byte each for month, day, hour, minute and second."""
    return time_from(value.number(0, 2), *value.content[2:7]) if len(value.content) >= 4 else ""


FORMAT = Format(
    name="MFER (resting 12-lead ECG)",
    tried=False,
    keeps="ADC units, scale, rate; patient, age, sex, time, device model, filters",
    recognises=lambda head: head.content[:1] == b"\x40" and head.content[2:6] == b"MFR ",
    read=read,
)
