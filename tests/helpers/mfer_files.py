"""Writes MFER files for tests, from the text of its part 1; it shares no code with the reader."""

import struct
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

LEAD_CODES = (1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8)  # of I, II, III, aVR, aVL, aVF, V1 to V6
TYPES = {"i2": 0, "u2": 1, "i4": 2, "u1": 3, "i1": 5, "u4": 6, "f4": 7, "f8": 8}


def definition(tag: int, value: bytes, *, channel: int | None = None) -> bytes:
    """A tag with its value; lengths from 128 take more than one byte."""
    head = bytes([tag])
    if channel is not None:
        head += bytes([0x80 | channel >> 7, channel & 0x7F] if channel > 127 else [channel])
    size = len(value)
    length = bytes([size]) if size < 128 else b"\x84" + struct.pack(">I", size)
    return head + length + value


def number(value: int, size: int, order: str) -> bytes:
    return value.to_bytes(size, "big" if order == ">" else "little", signed=value < 0)


def samples(blocks: Sequence[NDArray[Any]], order: str, block: int) -> bytes:
    """Sequences of a block per channel."""
    num = len(blocks[0]) // block
    parts = [
        channel[at * block : (at + 1) * block].astype(channel.dtype.newbyteorder(order)).tobytes()
        for at in range(num)
        for channel in blocks
    ]
    return b"".join(parts)


def ecg_file(
    signals: Sequence[NDArray[Any]],
    *,
    codes: Sequence[int] = LEAD_CODES,
    order: str = "<",
    block: int = 20,
    kind: int = 1,
    before: bytes = b"",
    own: dict[int, bytes] | None = None,
    interval: tuple[int, int, int] = (1, -3, 2),
    resolution: tuple[int, int, int] = (0, -7, 25),
    sequences: int | None = None,
) -> bytes:
    """A file of one frame.

    Args:
        signals: of each channel.
        codes: of their leads.
        order: "<" or ">".
        block: timesteps of each channel in a sequence.
        kind: of the waveform: 1 is a resting 12-lead ECG.
        before: definitions ahead of the frame's.
        own: further definitions of some channels.
        interval: unit, exponent of 10 and mantissa; 2 ms here.
        resolution: likewise; 2.5 microvolt here.
        sequences: as written, where another number than the samples have is wanted.
    """

    def quantity(unit: int, exponent: int, mantissa: int) -> bytes:
        return struct.pack("Bb", unit, exponent) + number(mantissa, 2, order)

    dtype = signals[0].dtype
    content = definition(0x40, b"MFR " + b"Standard 12 leads ECG".ljust(28))
    if order == "<":  # big-endian until something else is said
        content += definition(0x01, b"\1")
    content += before
    content += definition(0x05, number(len(signals), 2, order))
    content += definition(0x08, number(kind, 2, order))
    content += definition(0x04, number(block, 4, order))
    num_sequences = len(signals[0]) // block if sequences is None else sequences
    content += definition(0x06, number(num_sequences, 4, order))
    content += definition(0x0B, quantity(*interval)) + definition(0x0C, quantity(*resolution))
    content += definition(0x0A, bytes([TYPES[dtype.str[1:]]]))
    for channel, code in enumerate(codes):
        inner = definition(0x09, number(code, 2, order)) + (own or {}).get(channel, b"")
        content += definition(0x3F, inner, channel=channel)
    content += definition(0x1E, samples(signals, order, block))
    return content + b"\x80"
