"""The one in-memory form of an ECG between all formats and the store, and what its fields hold."""

import math
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import ShapeError
from ecgfast.vocabulary import Lead

LEADS: tuple[str, ...] = get_args(Lead)
NUM_LEADS = len(LEADS)
NUM_TIMESTEPS = 5000
SAMPLING_RATE_HZ = 500
INVALID = -32768  # the marker of a missing timestep, as in WFDB format 16
NO_PATIENT = "no_patient_id"  # the flag of a record that names no patient
# Words of an empty cell or field, in lower case; docs/datasets.md has the same list.
NOT_KNOWN = frozenset({"", "-", "?", "nan", "na", "n/a", "#n/a", "<na>", "none", "null", "unknown"})
MAX_AGE = 120.0  # years
OVER_89 = 300.0  # years, as PTB-XL and MIMIC write "over 89"
OLDEST = 90.0  # years; stands for every age over 89 (45 CFR 164.514(b)(2)(i)(C))
LONGEST_NAME = 100
_SEX = {"f": "female", "female": "female", "m": "male", "male": "male"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_WHOLE_NUMBER = re.compile(r"(\d+)\.0+")  # what spreadsheets make of a column with empty cells
# Statements and classes of PTB-XL (scp_statements.csv of 1.0.3), and those of the PhysioNet
# challenge of 2024.
_WORDS = """
1AVB 2AVB 3AVB ABQRS AFIB AFLT ALMI AMI ANEUR ASMI BIGU CLBBB CRBBB DIG EL HVOLT ILBBB ILMI IMI
INJAL INJAS INJIL INJIN INJLA INVT IPLMI IPMI IRBBB ISCAL ISCAN ISCAS ISCIL ISCIN ISCLA ISC_ IVCD
LAFB LAO/LAE LMI LNGQT LOWT LPFB LPR LVH LVOLT NDT NORM NST_ NT_ PAC PACE PMI PRC(S) PSVT PVC QWAVE
RAO/RAE RVH SARRH SBRAD SEHYP SR STACH STD_ STE_ SVARR SVTAC TAB_ TRIGU VCLVH WPW
MI STTC CD HYP AFIB/AFL TACHY BRADY
"""
_SCP = {*_WORDS.split(), "Old MI", "Acute MI"}
_SNOMED = re.compile(r"[1-9]\d{3,15}[01]0\d")  # a concept has 00 or 10 before its check digit
# Multiplication of the dihedral group D5: digits below 5 are rotations, the others reflections.
_D5 = tuple(
    tuple((a + b) % 5 + 5 * (b >= 5) if a < 5 else (a - b) % 5 + 5 * (b < 5) for b in range(10))
    for a in range(10)
)
_PERMUTATION = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def known_id(value: object) -> str | None:
    """Return the id of a patient or site as a person would read it, None where it names nobody.

    Blanks around it are cut and 7.0 is 7; "007" stays, because hospitals pad their numbers.
    A letter with its accent is one character: macOS writes two.

    Args:
        value: of a header, sidecar or CSV.
    """
    text = "" if value is None else unicodedata.normalize("NFC", str(value)).strip()
    if text.lower() in NOT_KNOWN:
        return None
    whole = _WHOLE_NUMBER.fullmatch(text)
    return whole[1] if whole else text


def parse_sex(text: str) -> str | None:
    """Return "female", "male", or None for anything else."""
    return _SEX.get(text.strip().lower())


def parse_number(text: str) -> float | None:
    """Return a finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def parse_age(text: str) -> float | None:
    """Return an age in years, or None when it is no number in [0, 120]."""
    value = parse_number(text)
    return value if value is not None and 0 <= value <= MAX_AGE else None


def is_percent(value: object) -> bool:
    """Whether this can be an ejection fraction: any other number may be that of a patient."""
    return isinstance(value, float) and 0 <= value <= 100


def is_patient(name: str | None) -> bool:
    """Whether this can be the id of a patient: of one line, without control characters."""
    return name is None or not _CONTROL.search(name)


def is_name(text: str) -> bool:
    """Whether a store can keep this as the name of something: one line that can be printed."""
    return len(text) <= LONGEST_NAME and text.isprintable()


def is_site(name: str | None) -> bool:
    """Whether this can be the name of an institution, which a store keeps as it is."""
    return name is None or is_name(name)


def stored_age(age: float | None, *, over_89: bool) -> float | None:
    """Return an age as a store has it: whole years, and 90 for all over 89.

    Fractions of years and the date of the ECG give the day of birth.

    Args:
        age: years.
        over_89: keep ages over 89 apart.
    """
    if age is None:
        return None
    years = float(math.floor(age))
    return years if over_89 and years <= MAX_AGE else min(years, OLDEST)


def is_code(text: str) -> bool:
    """Whether a text is one code of a diagnosis; case counts."""
    return text in _SCP or (_SNOMED.fullmatch(text) is not None and _verhoeff(text) == 0)


def codes_of(text: str) -> tuple[str, bool]:
    """Keep what is code in the text of a diagnosis.

    Args:
        text: items separated by commas or semicolons, or codes by blanks.
    Returns:
        the codes, joined by commas; whether anything else was there.
    """
    items = [" ".join(item.split()) for item in re.split("[,;]", text)]
    kept = [code for item in items for code in _codes_of_item(item)]
    return ",".join(kept), any(item and not _codes_of_item(item) for item in items)


def _codes_of_item(item: str) -> list[str]:
    """The codes of an item that holds nothing else."""
    if is_code(item):
        return [item]
    words = item.split()
    return words if all(map(is_code, words)) else []


def _verhoeff(digits: str) -> int:
    """Verhoeff's check of a number with its check digit: 0 where it is right.

    Source: Verhoeff 1969; SNOMED CT Release File Specifications, "Check-digit".
    """
    check = 0
    for place, digit in enumerate(reversed(digits)):
        permuted = int(digit)
        for _ in range(place % 8):
            permuted = _PERMUTATION[permuted]
        check = _D5[check][permuted]
    return check


@dataclass(frozen=True, kw_only=True)
class EcgRecord:
    """One 12-lead ECG as a device stored it, before any preprocessing.

    Attributes:
        record_id: readable name, unique in its source (the path relative to the source, no suffix).
        signal: (12, T) int16 ADC units, or float32 microvolt where the source holds no integers;
            leads in the order of `LEADS`; invalid timesteps are -32768 (int16) or NaN (float32).
        scale_uv: (12,) float32; microvolt = (adc - offset_adc) * scale_uv. Ones for float signals.
        offset_adc: (12,) float32.
        sampling_rate_hz: timesteps per second of `signal`.
        patient_id: readable, or None where the source names none.
        site: institution, or None.
        age: years, or None.
        sex: "female", "male" or None.
        labels: further columns as the source has them (diagnosis codes, ejection_fraction ...).
        provenance: format name, header comments worth keeping, conversions done while reading.
        flags: short words on what was noticed, such as "leads_derived" or "gain_implausible".
        segments: names of the records beside this one that it was joined from.
        device: code of the model that recorded it, such as "mac-5500", never free text; or None.
        high_pass_hz: cut-off of the device's high-pass filter, None where the source has none.
        low_pass_hz: cut-off of its low-pass filter.
        notch_hz: mains frequency that it removed; 0 where the source says that none was removed.
        missing: numbers in `LEADS` of leads that the source lacks, at 0 microvolt in `signal`; only
            where `ingest.leads.required_leads` allows it.
    """

    record_id: str
    signal: NDArray[Any]
    scale_uv: NDArray[np.float32]
    offset_adc: NDArray[np.float32]
    sampling_rate_hz: float
    patient_id: str | None = None
    site: str | None = None
    age: float | None = None
    sex: str | None = None
    labels: dict[str, str | float | None] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()
    device: str | None = None
    high_pass_hz: float | None = None
    low_pass_hz: float | None = None
    notch_hz: float | None = None
    missing: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.signal.ndim != 2 or self.signal.shape[0] != NUM_LEADS:
            raise ShapeError(
                f"signal of {self.record_id}: got shape {self.signal.shape}, "
                f"allowed ({NUM_LEADS}, T); select and order the 12 leads first"
            )
        if self.signal.dtype not in (np.int16, np.float32):
            raise ShapeError(
                f"signal of {self.record_id}: got {self.signal.dtype}, allowed int16 ADC units or "
                "float32 microvolt"
            )
