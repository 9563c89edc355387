"""Samples that stand in a document as text: base64 of int16, or decimal integers."""

import binascii
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import too_large

# Of one lead: a million samples, 17 minutes at 1000 Hz. A resting ECG has some 30,000 characters.
_LONGEST_TEXT = 4 << 20
_LARGEST = 1 << 31
_BLANKS = b" \t\r\n\v\f"


def bytes_of_base64(text: str, source: str) -> bytes:
    """Return the bytes of base64 text; blanks and line breaks in it count as nothing.

    Raises:
        FormatError: it is no base64.
    """
    try:
        return binascii.a2b_base64(text.encode("ascii").translate(None, _BLANKS), strict_mode=True)
    except (binascii.Error, ValueError):
        raise _damaged(f"{source}: samples are no base64; export the file again") from None


def int16_of_base64(text: str, source: str) -> NDArray[np.int16]:
    """Return the little-endian 16-bit samples in base64 text.

    Raises:
        FormatError: it is no base64, or no whole number of samples.
    """
    content = bytes_of_base64(text, source)
    if len(content) % 2:
        raise _damaged(f"{source}: samples are {len(content):,} bytes, allowed an even number")
    return np.frombuffer(content, "<i2").astype(np.int16, copy=False)


def integers_of(text: str, source: str) -> NDArray[Any]:
    """Return integers that are separated by blanks or commas.

    Returns:
        int16 where all fit, so that -32768 is no measurement: devices write it for an electrode
        that is off. int64 otherwise.
    Raises:
        FormatError: there is something else, or more than a lead of a resting ECG has.
    """
    if len(text) > _LONGEST_TEXT:
        raise too_large(
            f"{source}: a lead has {len(text):,} characters, allowed {_LONGEST_TEXT:,}; cut the "
            "recording into shorter records"
        )
    if not text.strip():
        return np.zeros(0, np.int64)
    try:
        if _has_lone_sign(text):  # NumPy reads - 3 as -3, and a - at the end as 0
            raise ValueError
        with warnings.catch_warnings():  # NumPy warns of text behind the last number
            warnings.simplefilter("error")
            # Twenty times as fast as int() of each word.
            samples = np.fromstring(text.replace(",", " "), np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        raise _damaged(f"{source}: samples are no integers; export the file again") from None
    if samples.min() < -_LARGEST or samples.max() > _LARGEST:  # NumPy cuts what 64 bits cannot hold
        raise _damaged(f"{source}: a sample is beyond {_LARGEST:,}, allowed up to 32 bits")
    narrow = samples.astype(np.int16)
    return narrow if (narrow == samples).all() else samples


def _has_lone_sign(text: str) -> bool:
    """Whether a sign stands before no digit; ten times as fast as a regular expression."""
    codes = np.frombuffer(text.encode(), np.uint8)
    signs = (codes == ord("-")) | (codes == ord("+"))
    digits = (codes >= ord("0")) & (codes <= ord("9"))
    return bool(signs[-1] or (signs[:-1] & ~digits[1:]).any())


def _damaged(message: str) -> FormatError:
    return FormatError(message, reason="the file is damaged")
