"""Which texts are codes of diagnoses, and which may be free text."""

import pytest

from ecgfast.records import codes_of, is_code

# Of the PhysioNet challenge of 2020.
SNOMED = """
426783006 164889003 164865005 270492004 164909002 713427006 59118001 427393009 284470004 427084000
426177001 111975006 39732003 164934002 59931005 164890007 445118002 251146004 698252002 10370003
"""


@pytest.mark.parametrize(
    ("text", "codes", "has_text"),
    [
        ("426783006,164865005", "426783006,164865005", False),
        ("426783006; 67741000119109", "426783006,67741000119109", False),
        ("NORM", "NORM", False),
        ("Old MI, STTC, HYP", "Old MI,STTC,HYP", False),
        ("SR 1AVB", "SR,1AVB", False),
        ("426783006, JANE DOE", "426783006", True),
        ("426783007", "", True),  # its check digit is wrong
        ("447700900123", "", True),  # a telephone number
        ("19510429", "", True),
        ("SR normal, Dr. EL", "", True),
        ("NORM DOE", "", True),
        ("norm", "", True),
        (" , ", "", False),
    ],
)
def test_codes_of_diagnoses(text: str, codes: str, has_text: bool) -> None:
    assert codes_of(text) == (codes, has_text)


@pytest.mark.parametrize("code", [*SNOMED.split(), "67741000119109"])
def test_a_check_digit_tells_every_wrong_digit_and_every_swap(code: str) -> None:
    """What Verhoeff's check promises."""
    assert is_code(code)
    for place in range(len(code)):
        for digit in "0123456789":
            changed = code[:place] + digit + code[place + 1 :]
            assert is_code(changed) is (changed == code)
        swapped = code[:place] + code[place : place + 2][::-1] + code[place + 2 :]
        assert is_code(swapped) is (swapped == code)
