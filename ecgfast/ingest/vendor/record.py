"""Leads and fields of a vendor's file -> EcgRecord: the only way out of a vendor reader.

A vendor's file names patient, staff, orders and devices in dozens of elements. `Fields` is the
list of what may leave it; each field has a function here that makes it from text, or gives None.
No site is among them: each system numbers its own, and two hospitals would become one.
"""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import check_values
from ecgfast.ingest.leads import arrange_leads, lead_position, plan_leads
from ecgfast.ingest.microvolt import int16_or_microvolt
from ecgfast.records import INVALID, EcgRecord, is_patient, known_id, parse_age, parse_sex

_NOBODY = re.compile(r"(?i)(0+|9{4,}|x+|anon\w*|unnamed|test|demo|patient)?")
_YEARS = {"": 1.0, "y": 1.0, "yr": 1.0, "year": 1.0, "a": 1.0}
_YEARS |= {"m": 1 / 12, "mo": 1 / 12, "month": 1 / 12, "w": 7 / 365.25, "week": 7 / 365.25}
_YEARS |= {"wk": 7 / 365.25, "d": 1 / 365.25, "day": 1 / 365.25, "h": 0.0, "hour": 0.0, "hr": 0.0}
_SEX = {"0": None, "1": "male", "2": "female"}  # ISO 5218, as SCP-ECG and MFER write it
# Models as devices write them, by family. Only these: a number of another form can be a patient's.
_MODELS = {
    "mac": r"mac ?(?:vu)?[ -]{0,2}(p|vu|\d{2,4})",
    "eli": r"eli? ?(10|[1-3]\d0)c?",
    "pagewriter": r"page ?writer[ -]{0,2}(touch|trim|xl|[1-3]00|tc ?[1-7]0)",
    "philips": r"(8603\d\d|tc[ -]?[1-7]0)",
    "heartstart": r"heart ?start[ -]?(mrx|xl)",
    "at": r"(?:cardiovit )?at-?(1|2|10\d|110|180)",
    "ms": r"(?:cardiovit )?ms-?(12|20\d\d)",
    "ecg": r"ecg-?([1-3]\d50)",
    "fcp": r"fcp-?([2-8]\d{3})",
    "fx": r"fx-?([2-8]\d{3})",
}
_MODEL = {
    family: re.compile(rf"(?i)(?<!\w){words}(?!\w)", re.ASCII) for family, words in _MODELS.items()
}
_HIGHEST_HZ = 10_000.0  # of a filter
_LOWEST_HZ, _HIGHEST_RATE_HZ = 50.0, 1e6  # of samples: fewer show no QRS complex
_FIRST_YEAR = 1880  # of birth


@dataclass(frozen=True, kw_only=True)
class Fields:
    """What of a file may leave its reader, beside the signal.

    Attributes:
        patient_id: readable; conversion makes a keyed pseudonym of it.
        age: years.
        sex: "female" or "male".
        recorded: "YYYY-MM-DD HH:MM:SS", or a part of it from the left.
        device: code of the model, such as "mac-5500".
        high_pass_hz: as `EcgRecord` has it, like the two that follow.
        low_pass_hz: as in `EcgRecord`.
        notch_hz: as in `EcgRecord`.
        flags: what was noticed or done.
    """

    patient_id: str | None = None
    age: float | None = None
    sex: str | None = None
    recorded: str = ""
    device: str | None = None
    high_pass_hz: float | None = None
    low_pass_hz: float | None = None
    notch_hz: float | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Signals:
    """The signals of a file in its own order.

    Attributes:
        names: (S,) codes or names of leads, for `lead_position`.
        samples: (S,) arrays of T timesteps each; -32768 in an int16 array is invalid.
        scale_uv: (S,) microvolt per ADC unit.
        offset_adc: (S,) ADC units at 0 microvolt.
        rate_hz: sampling rate.
        invalid: (S,) bool arrays of T, further timesteps without a measurement.
    """

    names: Sequence[str]
    samples: Sequence[NDArray[Any]] | NDArray[Any]
    scale_uv: Sequence[float]
    offset_adc: Sequence[float]
    rate_hz: float
    invalid: Sequence[NDArray[np.bool_]] | NDArray[np.bool_] | None = None


def to_record(
    record_id: str, source: str, code: str, signals: Signals, fields: Fields
) -> EcgRecord:
    """Bring signals into the order of the 12 leads and derive III, aVR, aVL and aVF where absent.

    Args:
        record_id: of the record.
        source: name of the file, for errors.
        code: of the format, for the store.
        signals: rhythm, never the median beat.
        fields: what may leave the file.
    Returns:
        int16 ADC units where they fit, else float32 microvolt.
    Raises:
        FormatError: a lead is missing or there twice, or leads differ in length.
    """
    if not _LOWEST_HZ <= signals.rate_hz < _HIGHEST_RATE_HZ:
        raise FormatError(
            f"{source}: sampling rate is {signals.rate_hz:g} Hz, allowed {_LOWEST_HZ:g} to "
            f"{_HIGHEST_RATE_HZ:g}; correct it, or its unit (an exporter wrote 2 ms as 2 s)",
            reason="the sampling rate is not allowed",
        )
    # Names that are no leads can be anything; errors repeat names.
    names = [
        name if lead_position(name) is not None else "another signal" for name in signals.names
    ]
    plan = plan_leads(names, source)
    used = sorted({row for row in plan if row >= 0})
    lengths = sorted({len(signals.samples[row]) for row in used})
    if len(lengths) > 1:
        raise FormatError(
            f"{source}: leads have {lengths[0]:,} to {lengths[-1]:,} timesteps, allowed one number "
            "for all",
            reason="a signal file is cut short",
        )
    check_values(lengths[0], len(used), source)
    compact = [used.index(row) if row >= 0 else row for row in plan]
    stacked, scale, offset = int16_or_microvolt(
        np.stack([signals.samples[row] for row in used]),
        [signals.scale_uv[row] for row in used],
        [signals.offset_adc[row] for row in used],
        _invalid(signals, used),
    )
    leads = arrange_leads(compact, stacked, scale, offset, source)
    patient = fields.patient_id if is_patient(fields.patient_id) else None
    return EcgRecord(
        record_id=record_id,
        signal=leads.signal,
        scale_uv=leads.scale_uv,
        offset_adc=leads.offset_adc,
        missing=leads.missing,
        sampling_rate_hz=signals.rate_hz,
        patient_id=patient,
        age=fields.age,
        sex=fields.sex,
        provenance={"format": code} | ({"recorded": fields.recorded} if fields.recorded else {}),
        flags=(*leads.flags, *fields.flags),
        device=fields.device,
        high_pass_hz=fields.high_pass_hz,
        low_pass_hz=fields.low_pass_hz,
        notch_hz=fields.notch_hz,
    )


def _invalid(signals: Signals, used: Sequence[int]) -> NDArray[np.bool_] | None:
    """Which timesteps are invalid, None where 16 bits mark them all."""
    samples = [signals.samples[row] for row in used]
    if signals.invalid is None and all(each.dtype == np.int16 for each in samples):
        return None
    marked = [(each == INVALID) & (each.dtype == np.int16) for each in samples]
    if signals.invalid is not None:
        marked = [mark | signals.invalid[row] for mark, row in zip(marked, used, strict=True)]
    return np.stack(marked)


def patient_of(text: str | None) -> str | None:
    """Return the id of a patient; None for placeholders such as 0000 and ANONYMOUS."""
    found = known_id(text)
    return None if found is None or _NOBODY.fullmatch(found) else found


def age_of(text: str | None, unit: str = "") -> float | None:
    """Return an age in years.

    Args:
        text: a number, or None.
        unit: "Y", "YEARS", "month", "WK" ... ; nothing means years.
    """
    years = _YEARS.get(unit.strip().lower().removesuffix("s"))
    number = parse_age(text or "") if years == 1.0 else _positive(text)
    if number is None or years is None:
        return None
    return parse_age(str(number * years))


def age_between(born: str, recorded: str) -> float | None:
    """Return the whole years from a date of birth to a recording, both of `time_of`; else None."""
    if not born or not recorded:
        return None
    years = int(recorded[:4]) - int(born[:4]) - (recorded[5:10] < born[5:10])
    return parse_age(str(years))


def sex_of(text: str | None) -> str | None:
    """Return "female", "male" or None; codes of ISO 5218 are understood."""
    word = (text or "").strip()
    return _SEX[word] if word in _SEX else parse_sex(word)


def device_of(*texts: str | None) -> str | None:
    """Return the code of the first known model in some texts, such as "mac-5500"; None for others.

    Hospitals type names into such fields: a model is one of a fixed list, with its number.
    """
    for text in texts:
        for family, model in _MODEL.items():
            if match := model.search(text or ""):
                return f"{family}-{match[1].lower().replace(' ', '')}"
    return None


def hertz_of(text: str | None) -> float | None:
    """Return a frequency of a filter in hertz, 0 for one that is off; None for anything else."""
    word = (text or "").strip().lower().removesuffix("hz").strip()
    if word in {"off", "none", "no"}:
        return 0.0
    number = _positive(word)
    return number if number is not None and number <= _HIGHEST_HZ else None


def _positive(text: str | None) -> float | None:
    """Return a finite number of at least 0 from plain decimal text, else None."""
    word = (text or "").strip()
    return float(word) if re.fullmatch(r"\d{1,9}(\.\d{0,9})?", word) else None


def time_of(text: str | None) -> str:
    """Return "YYYY-MM-DD HH:MM:SS" from digits in this order, the date alone without a time.

    Nothing for what is no date, or one before anybody alive was born.

    Args:
        text: "20021122091000", "2002-11-22T09:10:00.000+0200" and the like; what follows the
            second, a zone too, is left out.
    """
    digits = re.sub(r"[^0-9]", "", text or "")[:14]
    year, rest = digits[:4], [digits[at : at + 2] for at in range(4, len(digits), 2)]
    try:
        date = datetime.date(int(year), *map(int, rest[:2]))
    except (ValueError, TypeError):
        return ""
    if date.year < _FIRST_YEAR:
        return ""
    try:
        hour, minute, second = map(int, (*rest[2:], "0")[:3])
        return f"{date} {datetime.time(hour, minute, second)}"
    except ValueError:
        return f"{date}"
