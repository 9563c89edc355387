"""Signals of one WFDB header: formats 16, 61 and 212 are read here, others by the wfdb package."""

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ecgfast_kernels.codec.signals import deinterleave
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import (
    MAX_BYTES,
    check_regular,
    check_values,
    cut_short,
    is_of_one_file,
    regular_descriptor,
    too_large,
)
from ecgfast.ingest.leads import lead_position
from ecgfast.ingest.microvolt import wide_to_microvolt
from ecgfast.ingest.wfdb_header import SignalSpec, WfdbHeader, damaged, unit_uv
from ecgfast.records import INVALID

if TYPE_CHECKING:
    import wfdb

_BITS = {16: 16, 61: 16, 212: 12}  # of a sample, in the formats that are read here
_BYTE_ORDER = {16: "<i2", 61: ">i2"}
_INVALID_212 = -2048
_NOT_IN_NAMES = set("/\\\0")
_NOT_FOR_PACKAGE = _NOT_IN_NAMES | {":"}  # the package takes A::B and S3://B for addresses
# The sample value that marks an invalid one, by format; format 8 stores differences and has none.
# Source: WFDB Applications Guide, signal(5).
_MARKER_BITS = {
    **dict.fromkeys(("16", "61", "160", "516"), 16),
    **dict.fromkeys(("24", "524"), 24),
    **dict.fromkeys(("80", "508"), 8),
    **dict.fromkeys(("310", "311"), 10),
    "32": 32,
    "212": 12,
}


class WfdbSignals(NamedTuple):
    """Signals of a record, at least those that are leads, in file order.

    Attributes:
        names: (S,) as the header spells them.
        signal: (S, T) int16 ADC units; float32 microvolt where they exceed 16 bits or one lead has
            several gains.
        scale_uv: (S,) microvolt per ADC unit; NaN where the unit is no voltage.
        offset_adc: (S,) ADC units at 0 microvolt.
        sampling_rate_hz: of the samples (frames times samples per frame).
    """

    names: list[str]
    signal: NDArray[Any]
    scale_uv: list[float]
    offset_adc: list[float]
    sampling_rate_hz: float


def read_signals(
    path: Path, header: WfdbHeader, out: NDArray[np.int16] | None = None
) -> WfdbSignals:
    """Read the signals of a header without segments.

    Args:
        path: the .hea file; signal files lie beside it.
        header: of that file.
        out: memory for signals of its very shape, used where that saves a copy; or None.
    Raises:
        FormatError: a file is missing, no regular file, cut short or too large, its checksum
            differs from the header, or the wfdb package refuses the record.
    """
    if not _is_read_here(header.signals):
        _check_for_package(path, header)
        return _read_with_package(path, header)
    return WfdbSignals(
        names=[spec.name for spec in header.signals],
        signal=_read_files(os.path.dirname(path), header, out),
        scale_uv=[spec.scale_uv for spec in header.signals],
        offset_adc=[float(spec.baseline) for spec in header.signals],
        sampling_rate_hz=header.sampling_rate_hz,
    )


def _is_read_here(signals: Sequence[SignalSpec]) -> bool:
    """Whether all have a format of `_BITS`, one in each file, without skew or several rates.

    The signals of a file stand one behind another, as header(5) has them.
    """
    if not all(
        spec.format in _BITS and spec.samples_per_frame == 1 and spec.skew == 0 for spec in signals
    ):
        return False
    files = [name for (name, _), _ in groupby(signals, key=lambda s: (s.file_name, s.format))]
    return 0 < len(files) == len({*files})


def _read_files(
    folder: str, header: WfdbHeader, out: NDArray[np.int16] | None
) -> NDArray[np.int16]:
    """Return (S, T) int16 ADC units in header order, C-contiguous."""
    parts: list[NDArray[np.int16]] = []
    num_timesteps = header.num_timesteps
    for file_name, group in groupby(header.signals, key=lambda spec: spec.file_name):
        specs = list(group)
        frames = _read_frames(folder, file_name, specs, num_timesteps, len(header.signals))
        num_timesteps = num_timesteps or len(frames)
        if len(frames) != num_timesteps:
            raise cut_short(
                f"{file_name}: holds {len(frames)} timesteps, the other files {num_timesteps}"
            )
        is_whole = len(specs) == len(header.signals)
        fits = is_whole and out is not None and out.shape == (len(specs), num_timesteps)
        part, sums = deinterleave(frames, out if fits else None)
        _check_sums(sums, specs, file_name)
        if specs[0].format == 212:
            part[part == _INVALID_212] = INVALID
        parts.append(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _read_frames(
    folder: str, file_name: str, specs: list[SignalSpec], num_timesteps: int, num_signals: int
) -> NDArray[Any]:
    """Return (T, S) int16 of one signal file; T from the file's size where the header gives none.

    The record has `num_signals` in all of its files.
    """
    if file_name == ".." or set(file_name) & _NOT_IN_NAMES:
        raise _no_plain_name(file_name)
    offset, frame_bits = specs[0].byte_offset, _BITS[specs[0].format] * len(specs)
    try:
        fd = regular_descriptor(os.path.join(folder, file_name))
    except FileNotFoundError:
        raise FormatError(
            f"signal file {file_name} is missing beside its header",
            reason="a signal file is missing",
        ) from None
    try:
        size = os.fstat(fd).st_size
        wanted = num_timesteps or max(size - offset, 0) * 8 // frame_bits
        num_bytes = (max(wanted, 1) * frame_bits + 7) // 8
        content = b""
        if size >= offset + num_bytes:
            check_values(wanted, num_signals, file_name)
            content = os.pread(fd, num_bytes, offset)
    finally:
        os.close(fd)
    if len(content) < num_bytes:
        raise cut_short(
            f"{file_name}: holds {size} bytes, its header promises {offset + num_bytes}; the copy "
            "is cut short, copy it again"
        )
    if specs[0].format == 212:
        samples = _unpack_212(content)[: wanted * len(specs)]
    else:
        samples = np.frombuffer(content, _BYTE_ORDER[specs[0].format]).astype(np.int16, copy=False)
    return samples.reshape(wanted, len(specs))


def _unpack_212(content: bytes) -> NDArray[np.int16]:
    """Return samples of 12 bits, two in three bytes; one more where the last stands alone.

    The middle byte has the high bits of both, those of the first below. Each sample is moved to the
    upper 12 of 16 bits and back, so that its sign is kept.
    """
    padded = content + bytes(-len(content) % 3)
    low, high, second_low = np.frombuffer(padded, np.uint8).reshape(-1, 3).T.astype(np.uint16)
    pairs = np.stack([high << 12 | low << 4, (high & 0xF0) << 8 | second_low << 4], axis=1)
    samples: NDArray[np.int16] = pairs.view(np.int16).ravel() >> 4
    return samples


def _check_sums(sums_S: NDArray[np.uint16], specs: list[SignalSpec], file_name: str) -> None:
    """Compare the 16-bit sums with the header's; a writer that left them all 0 did not compute any.

    All 3,519 signals of the public records that this was tried on agree, so a difference means
    damage, or samples that belong to another header.
    """
    wrong = [
        spec.name
        for spec, total in zip(specs, sums_S.tolist(), strict=True)
        if spec.checksum is not None and (spec.checksum - total) & 0xFFFF
    ]
    if wrong and any(spec.checksum for spec in specs):
        raise FormatError(
            f"{file_name}: checksum of {', '.join(wrong)} differs from the header's; the file is "
            "damaged or belongs to another header",
            reason="a checksum differs",
        )


def _no_plain_name(file_name: str) -> FormatError:
    return damaged(f"signal file is {file_name!r}, allowed a plain name beside the header")


def _check_for_package(path: Path, header: WfdbHeader) -> None:
    """Refuse a record that would make the package wait, open no regular file, or fill memory."""
    held = 0
    for file_name in {spec.file_name for spec in header.signals} - {"~"}:  # ~ has no samples
        if file_name in {"", ".", ".."} or set(file_name) & _NOT_FOR_PACKAGE:
            raise _no_plain_name(file_name)
        num_bytes = check_regular(path.with_name(file_name))
        if num_bytes > MAX_BYTES:
            raise too_large(
                f"{file_name}: got {num_bytes:,} bytes, allowed {MAX_BYTES:,}; cut the recording "
                "into shorter records"
            )
        held += num_bytes
    skew = max((spec.skew for spec in header.signals), default=0)
    per_frame = sum(spec.samples_per_frame for spec in header.signals)
    check_values(header.num_timesteps + skew, per_frame, path.name)
    if header.num_timesteps == 0:
        check_values(held, 1, path.name)  # no format has more samples than bytes


def _read_with_package(path: Path, header: WfdbHeader) -> WfdbSignals:
    """Read the signals that are leads through the wfdb package."""
    import wfdb  # brings pandas, half a second: only for records that need it

    name = str(path.with_suffix(""))
    try:
        leads = [lead_position(spec.name) is not None for spec in header.signals]
        channels = [row for row, is_lead in enumerate(leads) if is_lead]
        # Smoothing means the samples of a frame, where there are several. Without it, wfdb 4.3.1
        # fails on the big-endian samples of format 61.
        plain = all(header.signals[channel].samples_per_frame == 1 for channel in channels)
        record = wfdb.rdrecord(name, physical=False, channels=channels, smooth_frames=plain)
    except Exception as error:  # the package raises plain Exception for files that it cannot read
        if isinstance(error, OSError) and not is_of_one_file(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(f"{path.name}: the wfdb package refuses it: {reason}") from error
    rates = sorted(set(record.samps_per_frame))
    if len(rates) > 1:
        raise FormatError(f"{path.name}: leads have {rates} samples a frame, allowed one rate")
    return _from_package(record, float(record.fs) * rates[0])


def _from_package(record: "wfdb.Record", rate: float) -> WfdbSignals:
    """Convert samples of any width: int16 where they fit, float32 microvolt otherwise."""
    # (S, T) int64, ADC units
    samples = record.d_signal.T if record.e_d_signal is None else np.stack(record.e_d_signal)
    invalid = np.zeros(samples.shape, bool)
    for row, storage in enumerate(record.fmt):
        if storage in _MARKER_BITS:
            invalid[row] = samples[row] == -(2 ** (_MARKER_BITS[storage] - 1))
    scale = [unit_uv(u) / gain for u, gain in zip(record.units, record.adc_gain, strict=True)]
    offset = [float(baseline) for baseline in record.baseline]
    if int(np.abs(np.where(invalid, 0, samples)).max(initial=0)) < -INVALID:
        signal: NDArray[Any] = np.where(invalid, INVALID, samples).astype(np.int16)
    else:
        signal = wide_to_microvolt(samples, scale, offset)
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
