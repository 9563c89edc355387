"""ecgpack decoding in NumPy: the reference for every other decoder.

Written after docs/format.md, chapter 2, one function per step, vectorised over a record's columns.
Shapes: C leads, T timesteps, J columns, G = 32 groups; a lead's slice of one column is a row.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ecgfast_kernels.codec.format import (
    COLUMN_TIMESTEPS,
    CRC_OFFSET,
    FLAG_RAW,
    FLAG_TRUNC,
    FLAG_WIDE,
    GROUP_TIMESTEPS,
    HEADER_BYTES,
    NO_QUANTUM,
    NUM_GROUPS,
    PREDICTED_LEADS,
    CodecError,
    Header,
    check_length,
    check_quantum,
    parse_header,
)

Int16 = NDArray[np.int16]
Int64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@cache
def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C (Castagnoli) of some bytes; about a millisecond for 10 kB."""
    table, value = _crc_table(), 0xFFFFFFFF
    for byte in bytes(data):
        value = table[(value ^ byte) & 255] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def chunk_crc(chunk: bytes | memoryview) -> int:
    """The checksum that belongs into a chunk: its own field counts as 0."""
    return crc32c(bytes(chunk[:CRC_OFFSET]) + bytes(4) + bytes(chunk[CRC_OFFSET + 4 :]))


def prediction(k_CJT: Int16, lead: int) -> Int16:
    """Prediction of a lead from the leads before it (docs/format.md, 2.3).

    Args:
        k_CJT: (C, J, 250) int16; leads 0, 1 and `lead` - 1 must be filled.
        lead: one of `PREDICTED_LEADS`.
    Returns:
        (J, 250) int16.
    """
    if lead >= 7:
        before: Int16 = k_CJT[lead - 1]
        return before
    one, two = k_CJT[0].astype(np.int32), k_CJT[1].astype(np.int32)
    exact = {
        2: two - one,
        3: -((one + two) >> 1),
        4: one - (two >> 1),
        5: two - (one >> 1),
    }[lead]
    wrapped: Int16 = exact.astype(np.int16)
    return wrapped


def undo_quantum(k: Int16, quantum: int, *, trunc: bool) -> Int16:
    """Return sgn(k) * ((|k| * Q + R) >> 16), modulo 2^16."""
    if quantum == NO_QUANTUM:
        return k
    wide = k.astype(np.int64)
    size = (np.abs(wide) * quantum + (0 if trunc else 32768)) >> 16
    signed: Int16 = (np.sign(wide) * size).astype(np.int16)
    return signed


def group_bytes(width_G: Int64) -> Int64:
    """Bytes of each group: w, and (w + 3) >> 2 for the last one along the last axis."""
    size = width_G.copy()
    size[..., -1] = (size[..., -1] + 3) >> 2
    return size


def _unpack(data: Bytes, start: Int64, width: Int64) -> Int16:
    """Residuals of groups: (n,) byte offsets and widths -> (n, 8) int16."""
    out = np.zeros((len(start), GROUP_TIMESTEPS), np.int16)
    for w in np.unique(width[width > 0]):
        rows = np.flatnonzero(width == w)
        raw = data[start[rows, None] + np.arange(w)]
        bits = np.unpackbits(raw, axis=1, bitorder="little").reshape(len(rows), GROUP_TIMESTEPS, w)
        weight = 1 << np.arange(w, dtype=np.int64)
        weight[-1] *= -1
        out[rows] = (bits * weight).sum(axis=-1)
    return out


class _Columns:
    """Positions of all parts in the columns of one chunk; made from checked bytes only."""

    def __init__(self, data: Bytes, start_J: Int64, size_J: Int64, num_leads: int) -> None:
        """Args: data padded by 32 bytes, each column's byte offset and length."""
        fixed = 2 + 3 * num_leads
        if (size_J < fixed).any():
            raise CodecError.from_code(9)
        lead = np.arange(num_leads)
        self.predicted_J = data[start_J].astype(np.int64) + 256 * data[start_J + 1].astype(np.int64)
        if (self.predicted_J & ~(PREDICTED_LEADS & ((1 << num_leads) - 1))).any():
            raise CodecError.from_code(7)
        descriptor = data[start_J[:, None] + 2 + lead].astype(np.int64)
        self.order_JC = descriptor & 3
        planes_JC = descriptor >> 2 & 3
        base_width = descriptor >> 4
        if (self.order_JC == 3).any() or (base_width + (1 << planes_JC) - 1 > 16).any():
            raise CodecError.from_code(8)
        at = start_J[:, None] + 2 + num_leads + 2 * lead
        self.base_JC = (data[at] + 256 * data[at + 1].astype(np.int64)).astype(np.int16)
        if (size_J < fixed + 4 * planes_JC.sum(axis=1)).any():
            raise CodecError.from_code(9)
        plane_end = start_J[:, None] + fixed + 4 * np.cumsum(planes_JC, axis=1)
        code = np.zeros((*planes_JC.shape, NUM_GROUPS), np.int64)
        for plane in range(3):
            at = np.where(planes_JC > plane, plane_end - 4 * (planes_JC - plane), 0)
            raw = data[at[..., None] + np.arange(4)]
            bits = np.unpackbits(raw, axis=-1, bitorder="little").astype(np.int64)
            code += np.where((planes_JC > plane)[..., None], bits << plane, 0)
        self.width_JCG = base_width[..., None] + code
        size = group_bytes(self.width_JCG)
        total = fixed + 4 * planes_JC.sum(axis=1) + size.sum(axis=(1, 2))
        if ((total + 3) // 4 * 4 != size_J).any():
            raise CodecError.from_code(9)
        flat = np.cumsum(size.reshape(len(start_J), -1), axis=1).reshape(size.shape)
        self.group_JCG = plane_end[:, -1][:, None, None] + flat - size


def _column_table(chunk: Bytes, header: Header) -> tuple[Int64, Int64]:
    """Byte offset and length of every column (code 6)."""
    entry = "<u4" if header.flags & FLAG_WIDE else "<u2"
    end = np.frombuffer(chunk, entry, header.num_columns, HEADER_BYTES).astype(np.int64) * 4
    size = np.diff(end, prepend=0)
    if (size < 0).any() or header.data_offset + end[-1] != len(chunk):
        raise CodecError.from_code(6)
    return header.data_offset + end - size, size


def decode_chunk(
    chunk: bytes | memoryview, *, check: bool = True, shape: tuple[int, ...] | None = None
) -> Int16:
    """Decode one chunk.

    Args:
        chunk: the encoded record.
        check: compare the crc32c.
        shape: the (C, T) that the chunk must have, or None.
    Returns:
        (C, T) int16.
    Raises:
        CodecError: with the code of docs/format.md, 2.4.
    """
    header = parse_header(chunk)
    check_length(header, len(chunk))
    if shape not in (None, (header.num_leads, header.num_timesteps)):
        raise CodecError.from_code(3)
    if check and chunk_crc(chunk) != header.crc:
        raise CodecError.from_code(4)
    check_quantum(header, len(chunk))
    shape = (header.num_leads, header.num_timesteps)
    if header.flags & FLAG_RAW:
        return np.frombuffer(chunk, "<i2", offset=HEADER_BYTES).reshape(shape).astype(np.int16)
    data = np.frombuffer(chunk, np.uint8)
    start_J, size_J = _column_table(data, header)
    data = np.concatenate([data, np.zeros(32, np.uint8)])
    columns = _Columns(data, start_J, size_J, header.num_leads)
    flat = _unpack(data, columns.group_JCG.ravel(), columns.width_JCG.ravel())
    num_columns = header.num_columns
    residual = flat.reshape(num_columns, header.num_leads, -1)[..., :COLUMN_TIMESTEPS]
    k_CJT = np.empty((header.num_leads, num_columns, COLUMN_TIMESTEPS), np.int16)
    for lead in range(header.num_leads):
        order = columns.order_JC[:, lead, None]
        row = residual[:, lead]
        for step in (1, 2):
            row = np.where(order >= step, np.cumsum(row, axis=1, dtype=np.int16), row)
        row = row + columns.base_JC[:, lead, None]
        if PREDICTED_LEADS >> lead & 1:
            on = (columns.predicted_J >> lead & 1).astype(bool)[:, None]
            row = np.where(on, row + prediction(k_CJT, lead), row)
        k_CJT[lead] = row
    trunc = bool(header.flags & FLAG_TRUNC)
    return undo_quantum(k_CJT.reshape(shape), header.quantum, trunc=trunc)
