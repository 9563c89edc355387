"""Lead names, and the 12 standard leads out of whatever a file holds, always by name.

Position is never trusted: MIMIC-IV-ECG stores aVF before aVL.
"""

import math
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfast.errors import FormatError
from ecgfast.ingest.microvolt import to_microvolt
from ecgfast.records import INVALID, LEADS, NUM_LEADS

_BY_NAME = {
    **{lead.lower(): position for position, lead in enumerate(LEADS)},
    **{"di": 0, "dii": 1, "diii": 2, "d1": 0, "d2": 1, "d3": 2},  # French, Portuguese, Spanish
}
# What may stand before and behind a lead's own name. A fixed list, because other words change the
# lead: "V4 right", "aVR (inverted)", "V4-V5". Sources: DICOM CID 3001 and SCP-ECG ("Lead I
# (Einthoven)", "aVR, augmented voltage, right"), HL7 aECG ("MDC_ECG_LEAD_I"), EDF ("EKG I").
_SPELLING = re.compile(
    r"(?:mdc[ _])?(?:e[ck]g[ _])?(?:lead[ _])?"
    r"(?P<name>\w+?)"
    r"(?: \(einthoven\)|, augmented voltage, (?:right|left|foot)|-ref)?"
)
_DERIVABLE = (2, 3, 4, 5)  # III, aVR, aVL, aVF: linear in I and II
_ABSENT = -1
# Microvolt per ADC unit, from a unit of a picovolt to one of a volt. A record beyond would make
# statistics of many records infinite.
SCALE_UV = (1e-6, 1e6)
_PLAUSIBLE_SCALE_UV = (0.01, 100.0)  # devices resolve 0.1 to 10 microvolt per ADC unit
_LARGEST_OFFSET = float(1 << 31)  # ADC units
_FILE_ORDER = tuple(range(NUM_LEADS))
_required: ContextVar[Collection[int]] = ContextVar("required_leads", default=_FILE_ORDER)


class TwelveLeads(NamedTuple):
    """The 12 leads in the order of `LEADS`, with the fields that `EcgRecord` wants.

    Attributes:
        signal: (12, T) int16 ADC units or float32 microvolt.
        scale_uv: (12,) float32 microvolt per ADC unit.
        offset_adc: (12,) float32 ADC units at 0 microvolt.
        flags: "leads_derived" when III, aVR, aVL or aVF was computed from I and II,
            "gain_implausible" for a scale that no device has.
        missing: numbers of the leads that the file lacks, at 0 microvolt.
    """

    signal: NDArray[Any]
    scale_uv: NDArray[np.float32]
    offset_adc: NDArray[np.float32]
    flags: tuple[str, ...]
    missing: tuple[int, ...] = ()


@contextmanager
def required_leads(leads: Collection[int]) -> Iterator[None]:
    """Read files that lack some leads, while the context lasts, in this thread.

    A context as of `numpy.errstate`: readers of every format come to `plan_leads`, and none of them
    has to hand on what only `ecgfast predict` asks for.

    Args:
        leads: numbers of those that a file must hold all the same; it must hold one in any case.
    """
    before = _required.set(leads)
    try:
        yield
    finally:
        _required.reset(before)


@lru_cache(maxsize=1024)
def lead_position(name: str) -> int | None:
    """Return the position of a lead in `LEADS`, or None when it is none of the 12.

    A sign is part of the name: "-aVR" of a Cabrera layout is not aVR.

    Args:
        name: as the file spells it: "avr", "Lead I", "DII", "MDC_ECG_LEAD_V1" ...
    """
    match = _SPELLING.fullmatch(" ".join(name.lower().split()))
    return _BY_NAME.get(match["name"]) if match else None


def plan_leads(names: Sequence[str], source: str) -> tuple[int, ...]:
    """Find the 12 leads among the signals of a file.

    Args:
        names: names in file order; further signals (VCG, pleth ...) are passed over.
        source: named in errors.
    Returns:
        For each lead of `LEADS` its row in `names`, -1 where it will be derived from I and II, or
        is missing and not required.
    Raises:
        FormatError: a lead occurs twice, or is missing, required, and cannot be derived.
    """
    rows = [_ABSENT] * NUM_LEADS
    for position, row in lead_rows(names, source).items():
        rows[position] = row
    required = _required.get()
    absent = [i for i in required if rows[i] == _ABSENT]
    lost = [i for i in absent if i not in _DERIVABLE] or [*set(absent) - set(_derivable(rows))]
    if lost or max(rows) == _ABSENT:
        needed = "all 12 standard leads" if len(required) == NUM_LEADS else "those asked for"
        raise FormatError(
            f"{source}: no lead {', '.join(LEADS[i] for i in sorted(lost)) or 'at all'}, got "
            f"{', '.join(names) or 'no signals'}; {needed} are needed (only III, aVR, aVL and aVF "
            "can be derived)",
            reason="a lead is missing",
        )
    return tuple(rows)


def _derivable(plan: Sequence[int]) -> tuple[int, ...]:
    """Leads that follow from others of a plan: those that are linear in I and II, or none."""
    return () if _ABSENT in plan[:2] else _DERIVABLE


def lead_rows(names: Sequence[str], source: str) -> dict[int, int]:
    """Return lead -> row of its signal, of those of the 12 leads that a file holds.

    Raises:
        FormatError: a lead occurs twice.
    """
    rows: dict[int, int] = {}
    for row, name in enumerate(names):
        position = lead_position(name)
        if position is None:
            continue
        if position in rows:
            raise FormatError(
                f"{source}: lead {LEADS[position]} occurs twice (signals {rows[position] + 1} and "
                f"{row + 1}), allowed once; remove one",
                reason="a lead occurs twice",
            )
        rows[position] = row
    return rows


def arrange_leads(
    plan: Sequence[int],
    signal_ST: NDArray[Any],
    scale_uv: Sequence[float],
    offset_adc: Sequence[float],
    source: str,
) -> TwelveLeads:
    """Bring the signals of a file into the order of `LEADS` and derive what is missing.

    Args:
        plan: of `plan_leads`.
        signal_ST: (S, T) int16 ADC units or float32 microvolt, S signals in file order.
        scale_uv: microvolt per ADC unit of each signal; NaN where its unit is no voltage.
        offset_adc: ADC units at 0 microvolt of each signal.
        source: named in errors.
    Returns:
        The 12 leads. ADC units are kept, except that a lead derived from an I and II of different
        gain makes the record float32 microvolt.
    Raises:
        FormatError: a lead is not measured in volts, a scale or offset is absurd, or a derived
            lead exceeds 16 bits.
    """
    first = next(row for row in plan if row != _ABSENT)  # a derived lead has the scale of lead I
    rows = [first if row == _ABSENT else row for row in plan]
    of_leads = itemgetter(*rows)
    scale, offset, flags = _units(of_leads(scale_uv), of_leads(offset_adc))
    if flags is None:
        raise _unusable(scale, offset, source)
    in_order = tuple(plan) == _FILE_ORDER and len(signal_ST) == NUM_LEADS
    signal = signal_ST if in_order else signal_ST[rows]
    absent = [position for position, row in enumerate(plan) if row == _ABSENT]
    if not absent:
        return TwelveLeads(signal, scale, offset, flags)
    derived = [position for position in absent if position in _derivable(plan)]
    missing = tuple(position for position in absent if position not in derived)
    same = not derived or (scale[0] == scale[1] and offset[0] == offset[1])
    if signal.dtype == np.int16 and not same:
        signal = to_microvolt(signal, scale, offset)
        scale, offset = np.ones(NUM_LEADS, np.float32), np.zeros(NUM_LEADS, np.float32)
    for position in derived:
        signal[position] = _derive(position, signal, int(offset[0]), source)
    offset = offset.copy()
    signal[list(missing)], offset[list(missing)] = 0, 0
    flags = ("leads_derived", *flags) if derived else flags
    return TwelveLeads(signal, scale, offset, flags, missing)


@lru_cache(maxsize=1024)  # a cohort has a handful of different ones
def _units(
    scale_uv: tuple[float, ...], offset_adc: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[str, ...] | None]:
    """Scales and offsets as arrays, and their flags; None instead of flags of absurd ones."""
    scale, offset = np.array([scale_uv, offset_adc], np.float32) + 0  # -0 is the key that 0 is
    scale.flags.writeable = offset.flags.writeable = False  # of many records
    size = np.abs(scale)
    low, high = size.min(), size.max()
    usable = low >= SCALE_UV[0] and high <= SCALE_UV[1]  # a NaN is not
    if not usable or not np.abs(offset).max() <= _LARGEST_OFFSET:
        return scale, offset, None
    plausible = low >= _PLAUSIBLE_SCALE_UV[0] and high <= _PLAUSIBLE_SCALE_UV[1]
    return scale, offset, () if plausible else ("gain_implausible",)


def _unusable(scale: NDArray[np.float32], offset: NDArray[np.float32], source: str) -> FormatError:
    """The refusal of a record whose ADC units are no voltage, or an absurd one."""
    for lead, uv, zero in zip(LEADS, scale, offset, strict=True):
        if math.isnan(uv):
            return FormatError(
                f"{source}: the unit of lead {lead} is no voltage, allowed V, mV, uV, nV",
                reason="a lead is not measured in volts",
            )
        if not SCALE_UV[0] <= abs(uv) <= SCALE_UV[1]:
            low, high = SCALE_UV
            return FormatError(
                f"{source}: a digit of lead {lead} is {uv:g} microvolt, allowed {low:g} to "
                f"{high:g}; correct the gain or scale",
                reason="a gain, scale or offset is not allowed",
            )
        if not abs(zero) <= _LARGEST_OFFSET:
            break
    return FormatError(
        f"{source}: 0 microvolt of lead {lead} is at the digit {zero:g}, allowed "
        f"{-_LARGEST_OFFSET:g} to {_LARGEST_OFFSET:g}; correct the baseline or offset",
        reason="a gain, scale or offset is not allowed",
    )


def _derive(position: int, signal: NDArray[Any], offset: int, source: str) -> NDArray[Any]:
    """Return III, aVR, aVL or aVF of `signal`, halves rounded as the codec predicts them."""
    if signal.dtype == np.float32:
        return limb_lead(position, signal[0], signal[1], np.divide)
    lead_i, lead_ii = signal[0].astype(np.int32), signal[1].astype(np.int32)
    invalid = (lead_i == INVALID) | (lead_ii == INVALID)
    derived = limb_lead(position, lead_i - offset, lead_ii - offset, np.floor_divide) + offset
    derived[invalid] = 0
    if derived.size and int(np.abs(derived).max()) >= -INVALID:
        raise FormatError(
            f"{source}: lead {LEADS[position]} derived from I and II reaches "
            f"{int(np.abs(derived).max())} digits, allowed {-INVALID - 1}"
        )
    derived[invalid] = INVALID
    return derived


def limb_lead(
    position: int, lead_i: NDArray[Any], lead_ii: NDArray[Any], divide: np.ufunc
) -> NDArray[Any]:
    """Return III, aVR, aVL or aVF, computed from I and II.

    Args:
        position: of the lead in `LEADS`, 2 to 5.
        lead_i: (T,), 0 at 0 microvolt.
        lead_ii: as `lead_i`.
        divide: of the dtype.
    Source: Einthoven's law and Goldberger's augmented leads.
    """
    two = lead_i.dtype.type(2)
    if position == 2:
        out: NDArray[Any] = lead_ii - lead_i
    elif position == 3:
        out = -divide(lead_i + lead_ii, two)
    elif position == 4:
        out = lead_i - divide(lead_ii, two)
    else:
        out = lead_ii - divide(lead_i, two)
    return out
