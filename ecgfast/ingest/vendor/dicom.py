"""Format DICOM: a waveform object (12-lead, general or hemodynamic ECG) -> EcgRecord.

pydicom parses; ADC units are taken from the bytes of the signals, which no float represents. Only
the elements of `_ELEMENTS` are parsed: names, UIDs, free text and private elements are skipped.
"""

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import check_values, cut_short, not_read, too_large
from ecgfast.ingest.format import Format
from ecgfast.ingest.leads import lead_position
from ecgfast.ingest.vendor.binary import LEAD_OF_NUMBER, age_between, limits_of_damage, read_whole
from ecgfast.ingest.vendor.record import (
    Fields,
    Signals,
    age_of,
    device_of,
    hertz_of,
    patient_of,
    sex_of,
    time_of,
    to_record,
)
from ecgfast.ingest.wfdb_header import unit_uv
from ecgfast.records import EcgRecord

if TYPE_CHECKING:
    from pydicom import Dataset

_MAX_BYTES = (
    1 << 25
)  # 12 leads of 16 bits for 23 minutes at 1000 Hz; parsing takes 60 times as much
_MAX_ITEMS = 20_000  # of sequences, in one file: real ones have some hundred
_ITEMS = b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00"  # (FFFE,E000) in either byte order
_MAGIC = slice(128, 132)
_SOP_CLASS = b"\x02\x00\x02\x00UI"  # element (0002,0002), always explicit little-endian
_OF_WAVEFORMS = b"1.2.840.10008.5.1.4.1.1.9."  # begin of all SOP classes of waveforms, PS3.6
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_ELEMENTS = (
    *("WaveformSequence", "PatientID", "PatientAge", "PatientBirthDate", "PatientSex"),
    *("ManufacturerModelName", "AcquisitionDateTime", "StudyDate"),
)
_DTYPES = {
    **{(8, "SB"): "i1", (8, "UB"): "u1", (16, "SS"): "i2", (16, "US"): "u2"},
    **{(32, "SL"): "i4", (32, "UL"): "u4"},
}
# Elements of channels that are text, and how text can be coded.
_TAGS = {
    **{"CodeValue": 0x00080100, "CodingSchemeDesignator": 0x00080102, "CodeMeaning": 0x00080104},
    **{"SamplingFrequency": 0x003A001A, "ChannelSensitivity": 0x003A0210},
    **{"ChannelSensitivityCorrectionFactor": 0x003A0212, "ChannelBaseline": 0x003A0213},
    **{"FilterLowFrequency": 0x003A0220, "FilterHighFrequency": 0x003A0221},
    "NotchFilterFrequency": 0x003A0222,
}
_OF_TEXT = {"DS", "SH", "LO", None}  # None: implicit
# Begin of a lead's code, by coding scheme: 2:1 and 5.6.3-9-1 are lead I. Source: PS3.16, CID 3001.
_SCHEMES = {"MDC": "2:", "SCPECG": "5.6.3-9-"}


def read(path: Path, record_id: str, row: int | None) -> EcgRecord:
    """Read the rhythm of one waveform object.

    Args:
        path: of the file.
        record_id: of the record.
        row: None.
    Returns:
        int16 ADC units as stored; float32 microvolt only where they exceed 16 bits.
    Raises:
        FormatError: the file is damaged or packed, or holds no 12-lead ECG.
        OSError: it cannot be read.
    """
    source = path.name
    content = read_whole(path, _MAX_BYTES)
    with limits_of_damage(source), warnings.catch_warnings(action="ignore"):
        dataset = _parsed(content, source)
        group = _rhythm(list(dataset.get("WaveformSequence") or ()), source)
        samples = _samples(group, source)
        channels = group.ChannelDefinitionSequence[: len(samples)]
        units = [_scale_and_offset(channel) for channel in channels]
        signals = Signals(
            names=[_lead(channel) for channel in channels],
            samples=samples,
            scale_uv=[scale for scale, _ in units],
            offset_adc=[offset for _, offset in units],
            rate_hz=_number(group, "SamplingFrequency", math.nan),
            invalid=_padding(group, samples),
        )
        fields = _fields(dataset, channels)
    return to_record(record_id, source, "dicom", signals, fields)


def _is_waveform(head: bytes) -> bool:
    """Whether the file meta information names a SOP class of waveforms."""
    if head[_MAGIC] != b"DICM":
        return False
    at = head.find(_SOP_CLASS)
    start = at + len(_SOP_CLASS) + 2  # behind the length of the UID
    return at >= 0 and head.startswith(_OF_WAVEFORMS, start)


def _parsed(content: bytes, source: str) -> "Dataset":
    if _DEFLATED in content:  # wherever it stands: pydicom unpacks such files without a limit
        raise not_read(
            f"{source}: is a deflated DICOM file, allowed explicit and implicit transfer syntaxes; "
            "export it again without compression, or convert it with dcmconv"
        )
    if sum(content.count(item) for item in _ITEMS) > _MAX_ITEMS:
        raise too_large(f"{source}: got over {_MAX_ITEMS:,} items of sequences, allowed as many")
    from pydicom import dcmread  # a third of a second: only for files that need it

    return dcmread(io.BytesIO(content), specific_tags=list(_ELEMENTS))


def _rhythm(groups: list["Dataset"], source: str) -> "Dataset":
    """Return the longest original group of signals; averaged beats are derived, or shorter."""
    if not groups:
        raise FormatError(
            f"{source}: holds no waveform, or ends before it", reason="the file is damaged"
        )
    original = [group for group in groups if group.get("WaveformOriginality") == "ORIGINAL"]
    if len(original or groups) == 1:
        return (original or groups)[0]
    with_leads = [group for group in original or groups if _num_leads(group) >= 8]
    return max(
        with_leads or original or groups, key=lambda group: int(group.NumberOfWaveformSamples)
    )


def _num_leads(group: "Dataset") -> int:
    channels = group.get("ChannelDefinitionSequence") or ()
    return len({lead_position(_lead(channel)) for channel in channels} - {None})


def _samples(group: "Dataset", source: str) -> NDArray[Any]:
    """Return the (S, T) ADC units of a group, in the byte order of this machine."""
    layout = int(group.WaveformBitsAllocated), str(group.WaveformSampleInterpretation)
    if layout not in _DTYPES:
        raise not_read(
            f"{source}: samples are coded in a way that is not read, allowed integers of 8, 16 or "
            "32 bits (SB, UB, SS, US, SL, UL)"
        )
    order = "<" if group.original_encoding[1] else ">"
    dtype = np.dtype(order + _DTYPES[layout])
    num_signals, timesteps = int(group.NumberOfWaveformChannels), int(group.NumberOfWaveformSamples)
    if num_signals != len(group.ChannelDefinitionSequence) or num_signals < 1 or timesteps < 0:
        raise FormatError(
            f"{source}: got {num_signals} signals of {timesteps} timesteps, and definitions of "
            f"{len(group.ChannelDefinitionSequence)}",
            reason="the header is damaged",
        )
    check_values(timesteps, num_signals, source)
    num_bytes = num_signals * timesteps * dtype.itemsize
    data = group.WaveformData
    if len(data) < num_bytes:
        raise cut_short(f"{source}: holds {len(data)} bytes of signals, promises {num_bytes}")
    frames_TS = np.frombuffer(data[:num_bytes], dtype).reshape(timesteps, num_signals)
    return np.ascontiguousarray(frames_TS.T).astype(dtype.newbyteorder("="), copy=False)


def _padding(group: "Dataset", samples_ST: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return which timesteps are padding.

    A padding value that is the smallest or largest of its type marks each timestep on its own. Any
    other, and 0 is one in use, is a voltage too: it counts where all signals have it at once.
    """
    value = group.get("WaveformPaddingValue")
    if value is None:
        return None
    dtype = samples_ST.dtype
    if isinstance(value, bytes):
        order: Literal["<", ">"] = "<" if group.original_encoding[1] else ">"
        value = np.frombuffer(value[: dtype.itemsize], dtype.newbyteorder(order))[0]
    padded: NDArray[np.bool_] = samples_ST == int(value)
    if int(value) not in (np.iinfo(dtype).min, np.iinfo(dtype).max):
        padded &= padded.all(axis=0)
    return padded if padded.any() else None


def _lead(channel: "Dataset") -> str:
    """Return the name of a lead by its code, by its meaning where the code is of another scheme."""
    for code in channel.get("ChannelSourceSequence") or ():
        prefix = _SCHEMES.get(str(_text(code, "CodingSchemeDesignator")))
        value = str(_text(code, "CodeValue"))
        if prefix is None:
            return _text(code, "CodeMeaning") or ""
        number = value.removeprefix(prefix)
        return LEAD_OF_NUMBER.get(int(number), "") if number.isdecimal() else value
    return ""


def _scale_and_offset(channel: "Dataset") -> tuple[float, float]:
    """Return microvolt per ADC unit and the ADC units at 0 microvolt of a channel."""
    units = channel.get("ChannelSensitivityUnitsSequence")
    unit = unit_uv(str(_text(units[0], "CodeValue"))) if units else math.nan
    sensitivity = _number(channel, "ChannelSensitivity", math.nan)
    sensitivity *= _number(channel, "ChannelSensitivityCorrectionFactor", 1.0)
    baseline = _number(channel, "ChannelBaseline", 0.0)  # in units of the sensitivity
    return unit * sensitivity, 0.0 - baseline / sensitivity if sensitivity else 0.0


def _number(dataset: "Dataset", keyword: str, default: float) -> float:
    text = _text(dataset, keyword)
    return float(text) if text else default


def _text(dataset: "Dataset", keyword: str) -> str | None:
    """Return the text of an element of `_TAGS`, None where it is absent.

    pydicom's conversion of each, with its checks, would take a third of the time of a file.
    """
    element = dataset.get_item(_TAGS[keyword])
    if element is None:
        return None
    if isinstance(element.value, bytes) and element.VR in _OF_TEXT:
        return element.value.decode("latin-1").rstrip("\0 ")
    value = dataset.get(keyword)  # in another coding, which is converted
    return None if value is None else str(value)


def _fields(dataset: "Dataset", channels: Sequence["Dataset"]) -> Fields:
    def text(keyword: str) -> str:
        return str(dataset.get(keyword) or "")

    recorded = time_of(text("AcquisitionDateTime") or text("StudyDate"))
    age = text("PatientAge").strip()  # 045Y, 006M
    return Fields(
        patient_id=patient_of(text("PatientID")),
        age=age_of(age[:-1], age[-1:])
        if age
        else age_between(time_of(text("PatientBirthDate")), recorded),
        sex=sex_of(text("PatientSex")),
        recorded=recorded,
        device=device_of(text("ManufacturerModelName")),
        high_pass_hz=_common(channels, "FilterLowFrequency"),
        low_pass_hz=_common(channels, "FilterHighFrequency"),
        notch_hz=_common(channels, "NotchFilterFrequency"),
    )


def _common(channels: Sequence["Dataset"], keyword: str) -> float | None:
    """Return a frequency that all channels share."""
    values = {_text(channel, keyword) or "" for channel in channels}
    return hertz_of(values.pop()) if len(values) == 1 else None


FORMAT = Format(
    name="DICOM waveform",
    tried=True,
    keeps="ADC units, scale, rate; patient, age, sex, time, device model, filters",
    recognises=lambda head: _is_waveform(head.content),
    read=read,
)
