"""ecgpack encoding in NumPy: every other encoder writes the same bytes (docs/format.md, 2.5).

Shapes: C leads, T timesteps, J columns, G = 32 groups; a lead's slice of one column is a row.
"""

import struct
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ecgfast_kernels.codec.format import (
    COLUMN_TIMESTEPS,
    FLAG_RAW,
    FLAG_TRUNC,
    FLAG_WIDE,
    GROUP_TIMESTEPS,
    NO_QUANTUM,
    NUM_GROUPS,
    PREDICTED_LEADS,
    QUANTA,
    Header,
    check_shape,
)
from ecgfast_kernels.codec.reference import (
    Int16,
    Int64,
    chunk_crc,
    group_bytes,
    prediction,
    undo_quantum,
)

PADDED_TIMESTEPS = NUM_GROUPS * GROUP_TIMESTEPS


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """How one lead is stored in each column: (J,), (J, G) or (J, 250), docs/format.md, 2.2."""

    predicted: NDArray[np.bool_]
    order: Int64
    planes: Int64
    base_width: Int64
    base: Int64
    width: Int64
    residual: Int64
    size: Int64

    def better(self, other: "_Rows") -> "_Rows":
        """Row by row the smaller one; this one where they are equal."""
        take = other.size < self.size
        fields = {
            name: np.where(take[:, None] if mine.ndim == 2 else take, getattr(other, name), mine)
            for name, mine in vars(self).items()
        }
        return _Rows(**fields)


def find_quantum(v_CT: Int16) -> tuple[int, bool]:
    """The quantum of a record and whether it was cut instead of rounded."""
    size = np.abs(v_CT.astype(np.int64))
    divisor = int(np.gcd.reduce(size, axis=None))
    if divisor >= 2:
        return divisor << 16, False
    if divisor == 1:
        for quantum in QUANTA:
            for trunc in (False, True):
                k = divide_quantum(v_CT, quantum, trunc=trunc)
                if np.array_equal(undo_quantum(k, quantum, trunc=trunc), v_CT):
                    return quantum, trunc
    return NO_QUANTUM, False


def divide_quantum(v: Int16, quantum: int, *, trunc: bool) -> Int16:
    """The only k that `undo_quantum` can turn into v."""
    if quantum == NO_QUANTUM:
        return v
    wide = v.astype(np.int64)
    size = ((np.abs(wide) << 16) - (0 if trunc else 32768) + quantum - 1) // quantum
    signed: Int16 = (np.sign(wide) * size).astype(np.int16)
    return signed


def _residuals(u_JT: Int16, order: int) -> tuple[Int64, Int64]:
    """Base and residuals of one lead: (J,), (J, 250), both in the range of int16."""
    wide = u_JT.astype(np.int64)
    if order == 0:
        base = (wide.min(axis=1) + wide.max(axis=1) + 1) >> 1
        residual = wide - base[:, None]
    else:
        base = wide[:, 0]
        residual = wide
        for _ in range(order):
            residual = np.diff(residual, axis=1, prepend=residual[:, :1])
    return base, residual.astype(np.int16).astype(np.int64)


def _needed_bits(residual_JT: Int64) -> Int64:
    """Bits that each group needs: (J, G)."""
    zigzag = np.where(residual_JT < 0, ~residual_JT, residual_JT) * 2 + (residual_JT < 0)
    padded = np.zeros((len(zigzag), PADDED_TIMESTEPS), np.int64)
    padded[:, :COLUMN_TIMESTEPS] = zigzag
    most = padded.reshape(-1, NUM_GROUPS, GROUP_TIMESTEPS).max(axis=2)
    bits: Int64 = np.frexp(most)[1].astype(np.int64)  # an integer's exponent is its bit length
    return bits


def _best_rows(k_CJT: Int16, lead: int) -> _Rows:
    """The smallest way to store one lead, per column."""
    best: _Rows | None = None
    for predicted in (False, True) if PREDICTED_LEADS >> lead & 1 else (False,):
        u_JT = k_CJT[lead] - prediction(k_CJT, lead) if predicted else k_CJT[lead]
        for order in (0, 1, 2):
            base, residual = _residuals(u_JT, order)
            need_JG = _needed_bits(residual)
            most = need_JG.max(axis=1)
            for planes in (0, 1, 2, 3):
                base_width = np.maximum(0, most - ((1 << planes) - 1))
                width = np.maximum(need_JG, base_width[:, None])
                size = 4 * planes + group_bytes(width).sum(axis=1)
                size[base_width > 15] = 1 << 30
                rows = _Rows(
                    predicted=np.full(len(base), predicted),
                    order=np.full(len(base), order),
                    planes=np.full(len(base), planes),
                    base_width=base_width,
                    base=base,
                    width=width,
                    residual=residual,
                    size=size,
                )
                best = rows if best is None else best.better(rows)
    assert best is not None
    return best


def _pack_groups(residual_JT: Int64, width_JG: Int64) -> list[list[bytes]]:
    """The bytes of every group: [column][group]."""
    padded = np.zeros((len(residual_JT), PADDED_TIMESTEPS), np.int64)
    padded[:, :COLUMN_TIMESTEPS] = residual_JT
    grouped = padded.reshape(-1, GROUP_TIMESTEPS)
    flat_width = width_JG.ravel()
    out = [b""] * len(grouped)
    for w in np.unique(flat_width[flat_width > 0]):
        rows = np.flatnonzero(flat_width == w)
        bits = (grouped[rows, :, None] >> np.arange(w) & 1).astype(np.uint8)
        packed = np.packbits(bits.reshape(len(rows), -1), axis=1, bitorder="little")
        for row, group in zip(rows, packed, strict=True):
            last = row % NUM_GROUPS == NUM_GROUPS - 1
            out[row] = group[: (w + 3) >> 2].tobytes() if last else group.tobytes()
    return [out[i : i + NUM_GROUPS] for i in range(0, len(out), NUM_GROUPS)]


def _planes(code_G: Int64, num_planes: int) -> bytes:
    bits = (code_G[None, :] >> np.arange(num_planes)[:, None] & 1).astype(np.uint8)
    return np.packbits(bits, axis=1, bitorder="little").tobytes()


def _columns(k_CJT: Int16) -> list[bytes]:
    """Every column's bytes, padded to 4."""
    leads = [_best_rows(k_CJT, lead) for lead in range(len(k_CJT))]
    groups = [_pack_groups(rows.residual, rows.width) for rows in leads]
    columns = []
    for j in range(k_CJT.shape[1]):
        predicted = sum(int(rows.predicted[j]) << lead for lead, rows in enumerate(leads))
        parts = [struct.pack("<H", predicted)]
        parts += [
            bytes([int(rows.order[j] | rows.planes[j] << 2 | rows.base_width[j] << 4)])
            for rows in leads
        ]
        parts += [struct.pack("<h", int(rows.base[j])) for rows in leads]
        for rows in leads:
            code_G = rows.width[j] - rows.base_width[j]
            parts.append(_planes(code_G, int(rows.planes[j])))
        for lead_groups in groups:
            parts += lead_groups[j]
        column = b"".join(parts)
        columns.append(column + bytes(-len(column) % 4))
    return columns


def encode_chunk(v_CT: Int16) -> bytes:
    """Encode one record.

    Args:
        v_CT: (C, T) int16.
    Returns:
        The chunk.
    Raises:
        CodecError: C or T cannot be held.
    """
    leads, timesteps = v_CT.shape
    check_shape(leads, timesteps)
    quantum, trunc = find_quantum(v_CT)
    k_CT = divide_quantum(v_CT, quantum, trunc=trunc)
    columns = _columns(k_CT.reshape(leads, -1, COLUMN_TIMESTEPS))
    ends = np.cumsum([len(column) for column in columns]) // 4
    wide = bool(ends[-1] > 65_535)
    flags = (FLAG_TRUNC if trunc else 0) | (FLAG_WIDE if wide else 0)
    header = Header(flags=flags, num_timesteps=timesteps, num_leads=leads, quantum=quantum)
    table = ends.astype("<u4" if wide else "<u2").tobytes()
    padding = bytes(-len(table) % 4)
    body = table + padding + b"".join(columns)
    if len(header.pack()) + len(body) >= header.raw_bytes:
        header = replace(header, flags=FLAG_RAW, quantum=NO_QUANTUM)
        body = v_CT.astype("<i2").tobytes()
    crc = chunk_crc(header.pack() + body)
    return replace(header, crc=crc).pack() + body
