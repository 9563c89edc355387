"""The error tree: every message says what, got, allowed, cure, in one line."""

import re
from typing import Literal

# Why an input is refused, as a store records it. The text of a file, and its name, can identify a
# patient: the rest of an error's message is kept beside the store, not in it.
Reason = Literal[
    "cannot be read as a 12-lead ECG",
    "the file cannot be opened",
    "it is no regular file",
    "the file is damaged",
    "the file is too large",
    "the header is damaged",
    "its version or coding is not read",
    "a signal file is missing",
    "a signal file is cut short",
    "a segment is missing",
    "the segments make no record",
    "all segments are gaps",
    "a checksum differs",
    "a lead is missing",
    "a lead occurs twice",
    "a lead is not measured in volts",
    "a gain, scale or offset is not allowed",
    "the array has another shape or type",
    "there is no sidecar",
    "the sidecar is damaged",
    "a value of the sidecar is not allowed",
    "the sampling rate is not allowed",
    "there are no timesteps",
    "it has not as many windows as were planned",
    "shorter than 5 s",
    "shorter than 10 s; --short pad takes it",
    "more than 1 % is marked invalid",
    "signal check: flat_lead; --quality flag takes it",
    "signal check: einthoven; --quality flag takes it",
    "signal check: saturated; --quality flag takes it",
    "signal check: amplitude; --quality flag takes it",
    "signal check: interpolated; --quality flag takes it",
    "signal check: arm_leads; --quality flag takes it",
    "signal check: factor_1000; --quality flag takes it",
    "signal check: leads_i_ii; --quality flag takes it",
    "signal check: mains; --quality flag takes it",
    "signal check: noise; --quality flag takes it",
    "signal check: off_scale; --quality flag takes it",
    "signal check: precordial_order; --quality flag takes it",
    "signal check: wander; --quality flag takes it",
]


_WITHOUT_SLASH = re.compile(r"\b(s3|gs|az|https?|file):/(?!/)")


def with_addresses(text: str) -> str:
    """A text in which a `Path` was made of an address, s3:/bucket, with the slash that it lost."""
    return _WITHOUT_SLASH.sub(lambda m: f"{m[1]}://{'/' if m[1] == 'file' else ''}", text)


class EcgfastError(Exception):
    """A mistake that the user can correct; the CLI prints it as one line and exits with 2."""

    def __str__(self) -> str:
        return with_addresses(super().__str__())


class ConfigError(EcgfastError, ValueError):
    """A setting, option or expression is wrong."""


class ShapeError(EcgfastError, ValueError):
    """An array has the wrong shape or dtype."""


class FormatError(EcgfastError, ValueError):
    """A file does not have the format that it should have.

    Args:
        message: for the console and for the hospital's own table, file names included.
        reason: what the store records of it.
    """

    def __init__(self, message: str, *, reason: Reason = "cannot be read as a 12-lead ECG") -> None:
        super().__init__(message)
        self.reason: Reason = reason


class CorruptStoreError(FormatError):
    """A store is unfinished or damaged."""


class BusyError(EcgfastError):
    """Another process writes there."""


class ResumeError(EcgfastError):
    """A run cannot be resumed from what its folder holds."""


class BackendUnavailableError(EcgfastError, RuntimeError):
    """A requested backend cannot run on this machine."""
