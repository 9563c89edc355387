"""What files of every format hold of a patient: numbers, ages, and codes of diagnoses.

A text that is no code of SNOMED CT or SCP-ECG may be free text, which can name people.
"""

import math
import re

from ecgfast.records import MAX_AGE

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


def is_code(text: str) -> bool:
    """Whether a text is one code of a diagnosis; case counts."""
    return text in _SCP or (_SNOMED.fullmatch(text) is not None and _verhoeff(text) == 0)


def codes_of(text: str) -> tuple[str, bool]:
    """Keep what is code in the text of a diagnosis.

    Args:
        text: items behind commas or semicolons, or codes behind blanks.
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
