"""WFDB signals in every other format (8, 24, 80, 212, 310, FLAC ...): the wfdb package."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import is_of_one_file
from ecgfast.ingest.leads import lead_position
from ecgfast.ingest.wfdb_header import unit_uv
from ecgfast.records import INVALID

if TYPE_CHECKING:
    import wfdb

# The digit that marks an invalid sample, by format; format 8 stores differences and has none.
# Source: WFDB Applications Guide, signal(5).
_MARKER_BITS = {
    **dict.fromkeys(("16", "61", "160", "516"), 16),
    **dict.fromkeys(("24", "524"), 24),
    **dict.fromkeys(("80", "508"), 8),
    **dict.fromkeys(("310", "311"), 10),
    "32": 32,
    "212": 12,
}


@dataclass(frozen=True, kw_only=True)
class WfdbSignals:
    """Signals of a record, at least those that are leads, in file order.

    Attributes:
        names: (S,) as the header spells them.
        signal: (S, T) int16 digits, or float32 microvolt where digits exceed 16 bits or one lead
            has several gains.
        scale_uv: (S,) microvolt per digit; NaN where the unit is no voltage.
        offset_adc: (S,) digits at 0 microvolt.
        sampling_rate_hz: of the samples (frames times samples per frame).
    """

    names: list[str]
    signal: NDArray[Any]
    scale_uv: list[float]
    offset_adc: list[float]
    sampling_rate_hz: float


def read_with_package(path: Path) -> WfdbSignals:
    """Read the lead signals of a record through the wfdb package.

    Args:
        path: the .hea file of a record without segments.
    Raises:
        FormatError: the package refuses the record, or its leads differ in sampling rate.
    """
    import wfdb  # brings pandas, half a second: only for records that need it

    name = str(path.with_suffix(""))
    try:
        header = wfdb.rdheader(name)
        channels = [i for i, lead in enumerate(header.sig_name) if lead_position(lead) is not None]
        # Smoothing means the samples of a frame, where there are several. Without it, wfdb 4.3.1
        # fails on the big-endian samples of format 61.
        plain = all(header.samps_per_frame[channel] == 1 for channel in channels)
        record = wfdb.rdrecord(name, physical=False, channels=channels, smooth_frames=plain)
    except Exception as error:  # the package raises plain Exception for files that it cannot read
        if isinstance(error, OSError) and not is_of_one_file(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(f"{path.name}: the wfdb package refuses it: {reason}") from error
    rates = sorted(set(record.samps_per_frame))
    if len(rates) > 1:
        raise FormatError(f"{path.name}: leads have {rates} samples a frame, allowed one rate")
    return _digital(record, float(record.fs) * rates[0])


def _digital(record: "wfdb.Record", rate: float) -> WfdbSignals:
    """Convert digits of any width: int16 where they fit, float32 microvolt otherwise."""
    # (S, T) int64
    digits = record.d_signal.T if record.e_d_signal is None else np.stack(record.e_d_signal)
    invalid = np.zeros(digits.shape, bool)
    for row, storage in enumerate(record.fmt):
        if storage in _MARKER_BITS:
            invalid[row] = digits[row] == -(2 ** (_MARKER_BITS[storage] - 1))
    scale = [unit_uv(u) / gain for u, gain in zip(record.units, record.adc_gain, strict=True)]
    offset = [float(baseline) for baseline in record.baseline]
    valid_digits = np.where(invalid, 0, digits)
    if int(np.abs(valid_digits).max(initial=0)) < -INVALID:
        signal: NDArray[Any] = np.where(invalid, INVALID, digits).astype(np.int16)
    else:
        column = np.array([offset, scale])[:, :, None]
        signal = ((digits - column[0]) * column[1]).astype(np.float32)
        signal[invalid] = np.nan
        scale = [s / s for s in scale]  # 1, and NaN stays NaN
        offset = [0.0] * len(offset)
    return WfdbSignals(
        names=list(record.sig_name),
        signal=signal,
        scale_uv=scale,
        offset_adc=offset,
        sampling_rate_hz=rate,
    )
