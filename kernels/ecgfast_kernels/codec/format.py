"""ecgpack's constants, header and errors (docs/format.md, chapter 2), shared by every Python part.

Shapes: C leads, T timesteps, J columns of 250 timesteps, G = 32 groups of 8 timesteps.
"""

import struct
from dataclasses import dataclass
from typing import Final

MAGIC: Final = 0x5045  # the bytes "EP"
VERSION: Final = 1
COLUMN_TIMESTEPS: Final = 250
GROUP_TIMESTEPS: Final = 8
NUM_GROUPS: Final = 32  # the last one holds two timesteps
MAX_LEADS: Final = 16
MAX_TIMESTEPS: Final = 65_500
HEADER_BYTES: Final = 16
CRC_OFFSET: Final = 12
CRC: Final = slice(CRC_OFFSET, HEADER_BYTES)  # the checksum's own bytes in a chunk
FLAG_RAW: Final = 1
FLAG_TRUNC: Final = 2
FLAG_WIDE: Final = 4
NO_QUANTUM: Final = 1 << 16
# Steps of 4.88, 4.8828125 (5 / 1024), 2.44 and 2.5: what common carts write in microvolts.
QUANTA: Final = (319_816, 320_000, 159_908, 163_840)
PREDICTED_LEADS: Final = 0b1111_1011_1100  # III aVR aVL aVF, V2 to V6
# 250 values and 6 zeros: a row of 250 half floats would defeat copies of 16 bytes
PATCH_WIDTH: Final = 256

ERRORS: Final = {
    1: "the chunk is shorter than its header says",
    2: "not an ecgpack chunk of version 1 (magic, version, group or flags differ)",
    3: "leads or timesteps are not those expected (1 to 16 leads, a multiple of 250 timesteps)",
    4: "crc32c differs: the bytes were changed after they were written",
    5: "the quantum is not allowed",
    6: "the column table does not fit the chunk",
    7: "a column predicts a lead that has no prediction",
    8: "a lead's descriptor holds an order or a width that is not allowed",
    9: "a column's parts are not as long as the column table says",
}


class CodecError(ValueError):
    """A chunk cannot be decoded, or an array cannot be encoded.

    Attributes:
        code: one of `ERRORS` (docs/format.md, 2.4), 0 when the caller's own arguments are wrong.
        index: which chunk of the call, or -1.
    """

    def __init__(self, message: str, *, code: int = 0, index: int = -1) -> None:
        super().__init__(message)
        self.code = code
        self.index = index

    @classmethod
    def from_code(cls, code: int, index: int = 0) -> "CodecError":
        """The error for a status of 2.4, naming the chunk."""
        reason = ERRORS.get(code, f"status {code}")
        cure = "restore the file from its source, `ecgfast verify` lists every damaged record"
        return cls(f"ecgpack chunk {index} of the call: {reason}; {cure}", code=code, index=index)


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first 16 bytes of a chunk."""

    flags: int
    num_timesteps: int
    num_leads: int
    quantum: int
    crc: int = 0

    @property
    def num_columns(self) -> int:
        """Columns of 250 timesteps."""
        return self.num_timesteps // COLUMN_TIMESTEPS

    @property
    def raw_bytes(self) -> int:
        """Length of the chunk if it is stored RAW."""
        return HEADER_BYTES + 2 * self.num_leads * self.num_timesteps

    @property
    def data_offset(self) -> int:
        """Offset of column 0: the table's end, rounded up to 4."""
        entry = 4 if self.flags & FLAG_WIDE else 2
        return (HEADER_BYTES + entry * self.num_columns + 3) // 4 * 4

    def pack(self) -> bytes:
        """The header's bytes, with the crc as it stands."""
        fields = (MAGIC, VERSION, self.flags, self.num_timesteps, self.num_leads, GROUP_TIMESTEPS)
        return struct.pack("<HBBHBBII", *fields, self.quantum, self.crc)


def check_shape(num_leads: int, num_timesteps: int) -> None:
    """Refuse sizes that the format cannot hold.

    Raises:
        CodecError: more than 16 leads, or timesteps that are no multiple of 250 up to 65,500.
    """
    if not 1 <= num_leads <= MAX_LEADS:
        raise CodecError(f"num_leads must be in 1..{MAX_LEADS}, got {num_leads}; drop leads first")
    if num_timesteps % COLUMN_TIMESTEPS or not 0 < num_timesteps <= MAX_TIMESTEPS:
        raise CodecError(
            f"num_timesteps must be a multiple of {COLUMN_TIMESTEPS} up to {MAX_TIMESTEPS}, "
            f"got {num_timesteps}; window or pad the record first"
        )


def parse_header(chunk: bytes | memoryview) -> Header:
    """Read and check a header alone (codes 1, 2 and 3 of docs/format.md, 2.4).

    Raises:
        CodecError: as listed there.
    """
    if len(chunk) < HEADER_BYTES:
        raise CodecError.from_code(1)
    magic, version, flags, timesteps, leads, group, quantum, crc = struct.unpack_from(
        "<HBBHBBII", chunk
    )
    if (magic, version, group) != (MAGIC, VERSION, GROUP_TIMESTEPS) or flags > 7:
        raise CodecError.from_code(2)
    header = Header(flags=flags, num_timesteps=timesteps, num_leads=leads, quantum=quantum, crc=crc)
    try:
        check_shape(leads, timesteps)
    except CodecError:
        raise CodecError.from_code(3) from None
    return header


def check_length(header: Header, length: int) -> None:
    """Refuse a chunk that is too short for its values or its column table (code 1)."""
    raw = header.flags & FLAG_RAW
    if length < (header.raw_bytes if raw else header.data_offset):
        raise CodecError.from_code(1)


def check_quantum(header: Header, length: int) -> None:
    """Check the quantum and its flags (code 5), and the length of a RAW chunk (code 6)."""
    plain = header.quantum == NO_QUANTUM
    if header.quantum < NO_QUANTUM or (plain and header.flags & FLAG_TRUNC):
        raise CodecError.from_code(5)
    if header.flags & FLAG_RAW:
        if header.flags != FLAG_RAW or not plain:
            raise CodecError.from_code(5)
        if length > header.raw_bytes:
            raise CodecError.from_code(6)
