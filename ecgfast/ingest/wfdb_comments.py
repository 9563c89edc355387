"""Header comments -> age, sex, diagnosis, ids. Only known keys are kept: free text may name people.

Read: 'Age: 45' (PTB-XL, challenges, PTB), '<age>: 51 <sex>: F' (LUDB and older PhysioNet records),
'Dx: 426783006,164865005' (challenges), 'Labels: NORM' (PTB-XL), text below '<diagnoses>:' (LUDB),
'<subject_id>: 1' (MIMIC-IV-ECG).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ecgfast.records import MAX_AGE, NOT_KNOWN, is_site, known_id, parse_sex

_TAGGED = re.compile(r"<(\w+)>:?\s*([^<]*)")
_PATIENT_KEYS = ("patient", "patient_id", "subject_id", "patient id")
_SITE_KEYS = ("site", "institution", "hospital")
_DIAGNOSIS_KEYS = ("dx", "labels", "diagnosis")


@dataclass(kw_only=True)
class CommentFields:
    """What the comments of one header say."""

    age: float | None = None
    sex: str | None = None
    patient_id: str | None = None
    site: str | None = None
    labels: dict[str, str | float | None] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


def parse_comments(comments: Sequence[str]) -> CommentFields:
    """Read the comment lines of a header.

    Args:
        comments: lines without their `#`, stripped.
    Returns:
        The fields found. An age outside [0, 120] becomes None with the flag "age_implausible";
        diagnoses go to `labels["diagnosis"]`, joined by commas where the header joins them so;
        convert takes only their codes, unless the user asks for the text. A site of several lines'
        length becomes None with the flag "site_implausible".
    """
    out = CommentFields()
    below_diagnoses = False
    free_text: list[str] = []
    for line in comments:
        pairs = _pairs(line)
        if below_diagnoses and not line.startswith("<"):
            free_text.append(line)
            continue
        for key, value in pairs:
            if key == "diagnoses":
                below_diagnoses = True
                if value:
                    free_text.append(value)
            else:
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
    if value.lower() in NOT_KNOWN:
        return
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
