"""Why a test may be skipped: what a machine lacks. A skip for any other reason fails the run."""

import re

# Patterns of whole reasons.
ALLOWED = (
    "needs a CUDA device",
    "this machine has the GPU that is asked for",
    r"\w+ cannot (run|be imported) .*",  # an attention kernel, on this GPU
    "DALI is not installed",
    "real recordings are not at .*",
    "no C\\+\\+ compiler( for the sanitizers)?",
    "no nvcc",
    r"\w+ is neither on PATH nor in Triton's package",  # a CUDA tool
    "the native (codec|library) was not built",
    "no /proc( on this machine)?",
    ".* lies in memory, or /proc does not tell",
    "Linux has a disk that is always full",
    "this machine lets nobody mount a small file system",
    "this file system takes only UTF-8",
    "only root can give a file away",
    "writing the test's store needs zarr",
    "Cosmic Ray is not installed",
    "statsmodels is not installed",
    "timm is not installed",
    "(pydicom|edfio|h5py|openpyxl) is not installed",
    "(Dask|xarray) is not installed",
    "PyYAML is not installed",
    "Chromium is not installed",
)

# `make setup` installs them and builds the library, and the recordings lie beside CI's checkout: a
# green run without these tests would hide that they no longer run.
PRESENT_IN_CI = (
    "(pydicom|edfio|h5py|openpyxl) is not installed",
    "Cosmic Ray is not installed",
    "DALI is not installed",
    "real recordings are not at .*",
    "the native (codec|library) was not built",
    "statsmodels is not installed",
)


def refused(reason: str, *, in_ci: bool) -> str | None:
    """Why a test must not be skipped for this reason; None where it may."""
    if not any(re.fullmatch(pattern, reason) for pattern in ALLOWED):
        return f"skipped for a reason that tests/helpers/allowed_skips.py does not list: {reason}"
    if in_ci and any(re.fullmatch(pattern, reason) for pattern in PRESENT_IN_CI):
        return f"skipped in CI, where nothing of this may be missing: {reason}"
    return None
