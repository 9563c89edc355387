"""Writes SCP-ECG files for tests, from the text of EN 1064; it shares no code with the reader."""

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEAD_NUMBERS = (1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8)  # of I, II, III, aVR, aVL, aVF, V1 to V6

# Annex C, written out.
DEFAULT = {
    **{0: "0", 1: "100", -1: "101", 2: "1100", -2: "1101", 3: "11100", -3: "11101"},
    **{4: "111100", -4: "111101", 5: "1111100", -5: "1111101", 6: "11111100", -6: "11111101"},
    **{7: "111111100", -7: "111111101", 8: "1111111100", -8: "1111111101"},
}
# Two tables of one file: how many bits each code has in all, its bits, its value; a mode of 0 is
# the switch to the other table.
OWN = (
    ((1, "0", 1, 0), (10, "10", 1, 0), (19, "110", 1, 0), (3, "111", 0, 2)),
    ((2, "00", 1, 0), (10, "01", 1, 2), (18, "10", 1, 0), (2, "11", 0, 1)),
)


def encode_default(numbers: Sequence[int]) -> str:
    """Bits of some numbers in the default table."""
    return "".join(_default(int(number)) for number in numbers)


def _default(number: int) -> str:
    if number in DEFAULT:
        return DEFAULT[number]
    if -128 <= number < 128:
        return "1111111110" + format(number & 0xFF, "08b")
    return "1111111111" + format(number & 0xFFFF, "016b")


def encode_own(numbers: Sequence[int]) -> str:
    """Bits of some numbers in the tables of `OWN`: every tenth is written in the second one."""
    words: list[str] = []
    for place, number in enumerate(map(int, numbers)):
        if place % 10 < 9:
            zero, byte, base, wide = "0", "10", 0, "110"
        else:
            words.append("111")
            zero, byte, base, wide = "00", "01", 2, "10"
        if number == 0:
            words.append(zero)
        elif -126 <= number - base < 126:
            words.append(byte + format(number - base & 0xFF, "08b"))
        else:
            words.append(wide + format(number & 0xFFFF, "016b"))
        if place % 10 == 9:
            words.append("11")
    return "".join(words)


def differences(values: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    """First or second differences; the first samples stand as they are."""
    out = values.copy()
    if order == 1:
        out[1:] = values[1:] - values[:-1]
    if order == 2:
        out[2:] = values[2:] - 2 * values[1:-1] + values[:-2]
    return out


def crc_ccitt(data: bytes) -> int:
    """CRC-CCITT, bit by bit."""
    register = 0xFFFF
    for byte in data:
        register ^= byte << 8
        for _ in range(8):
            register = (register << 1) ^ (0x1021 if register & 0x8000 else 0)
            register &= 0xFFFF
    return register


def section(number: int, body: bytes, *, magic: bytes = bytes(6), protocol: int = 20) -> bytes:
    """A section with its header; an odd body gets a byte more."""
    body += b"\0" * (len(body) % 2)
    head = struct.pack("<HIBB6s", number, 16 + len(body), protocol, protocol, magic)
    return struct.pack("<H", crc_ccitt(head + body)) + head + body


def huffman_section(own: bool) -> bytes:
    """Section 2 with the default table or those of `OWN`."""
    if not own:
        return struct.pack("<H", 19999)
    body = struct.pack("<H", len(OWN))
    for table in OWN:
        body += struct.pack("<H", len(table))
        for total, bits, mode, value in table:
            body += struct.pack("<BBBhI", len(bits), total, mode, value, int(bits[::-1], 2))
    return body


def signal_section(
    signals: Sequence[NDArray[np.int64]],
    *,
    order: int,
    coding: str,
    unit_nv: int,
    interval_us: int,
    bimodal: int = 0,
) -> bytes:
    """Section 5 or 6."""
    leads: list[bytes] = []
    for values in signals:
        numbers = differences(values, order)
        if coding == "none":
            leads.append(numbers.astype("<i2").tobytes())
        else:
            bits = encode_own(numbers) if coding == "own" else encode_default(numbers)
            bits += "0" * (-len(bits) % 16)
            leads.append(int("1" + bits, 2).to_bytes(len(bits) // 8 + 1, "big")[1:])
    head = struct.pack("<HHBB", unit_nv, interval_us, order, bimodal)
    return head + b"".join(struct.pack("<H", len(each)) for each in leads) + b"".join(leads)


def tags(values: dict[int, bytes]) -> bytes:
    """Section 1."""
    parts = [struct.pack("<BH", tag, len(value)) + value for tag, value in values.items()]
    return b"".join(parts) + b"\xff\0\0"


def scp_file(
    sections: dict[int, bytes],
    *,
    magic: bytes = b"SCPECG",
    protocol: int = 20,
    repeated: int = 0,
) -> bytes:
    """A file of some sections, with pointers and checksums; the last pointer can be repeated."""
    written = {number: section(number, body) for number, body in sections.items()}
    at = 6 + 16 + 10 * (1 + len(written) + repeated)
    pointers = struct.pack("<HII", 0, at - 6, 7)
    for number, content in written.items():
        pointers += struct.pack("<HII", number, len(content), at + 1)
        at += len(content)
    if repeated:
        pointers += pointers[-10:] * repeated
        head = struct.pack("<HHIBB6s", 0, 0, 16 + len(pointers), protocol, protocol, magic)
        size = 6 + len(head) + len(pointers) + sum(map(len, written.values()))
        return struct.pack("<HI", 0, size) + head + pointers + b"".join(written.values())
    rest = section(0, pointers, magic=magic, protocol=protocol) + b"".join(written.values())
    rest = struct.pack("<I", 6 + len(rest)) + rest
    return struct.pack("<H", crc_ccitt(rest)) + rest


def ecg_file(
    signals: Sequence[NDArray[np.int64]],
    *,
    numbers: Sequence[int] = LEAD_NUMBERS,
    spans: Sequence[tuple[int, int]] | None = None,
    order: int = 2,
    coding: str = "default",
    unit_nv: int = 2500,
    interval_us: int = 2000,
    bimodal: int = 0,
    patient: dict[int, bytes] | None = None,
    extra: dict[int, bytes] | None = None,
    subtracted: bool = False,
    repeated: int = 0,
) -> bytes:
    """A file of some leads.

    Args:
        signals: as they stand in section 6, so without the reference beat where it is subtracted.
        numbers: of the leads.
        spans: first and last timestep of each lead, from 1.
        order: of the differences.
        coding: "none", "default" or "own".
        unit_nv: nanovolt per ADC unit.
        interval_us: between timesteps.
        bimodal: flag of section 6.
        patient: tags of section 1.
        extra: further sections, or others in place of those made here.
        subtracted: whether section 3 says that a reference beat is subtracted.
        repeated: how often the last pointer is repeated, in a file without checksums.
    """
    spans = spans or [(1, len(each)) for each in signals]
    leads = b"".join(
        struct.pack("<IIB", first, last, number)
        for (first, last), number in zip(spans, numbers, strict=True)
    )
    flags = int(subtracted) | 4 | len(numbers) << 3 & 0xFF
    sections = {1: tags(patient or {})}
    if coding != "none":
        sections[2] = huffman_section(coding == "own")
    sections[3] = struct.pack("<BB", len(numbers), flags) + leads
    sections[6] = signal_section(
        signals,
        order=order, coding=coding, unit_nv=unit_nv, interval_us=interval_us, bimodal=bimodal,
    )  # fmt: skip
    return scp_file(sections | (extra or {}), repeated=repeated)
