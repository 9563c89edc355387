"""Signal checks of a batch of stored records: measures against limits, each failure a flag.

The limits, with what they mean and why, are in store/quality.toml; docs/datasets.md has the
shares of what is found and of false alarms. N records, 12 leads, T timesteps.
"""

from itertools import combinations, pairwise
from typing import Any, get_args

import numpy as np
from ecgfast_kernels.codec.quality import LeadMeasures, lead_measures
from ecgfast_kernels.codec.signals import LEADS as PAIRED
from ecgfast_kernels.codec.signals import NUM_CORRELATIONS
from numpy.typing import NDArray

from ecgfast.errors import Reason
from ecgfast.records import LEADS, NUM_LEADS, SAMPLING_RATE_HZ
from ecgfast.store.quality import PACING, Limits

Flags = NDArray[np.bool_]

# Flag -> why `--quality strict` refuses a record.
STRICT: dict[str, Reason] = {
    reason.removeprefix("signal check: ").partition(";")[0]: reason
    for reason in get_args(Reason)
    if reason.startswith("signal check: ")
}

_I, _V1 = LEADS.index("I"), LEADS.index("V1")
_PAIRS = list(combinations(PAIRED, 2))  # of the correlations of a fingerprint
_ARM_PAIRS = [_PAIRS.index((_I, LEADS.index(name))) for name in ("V5", "V6")]


def _gains() -> NDArray[np.float32]:
    """(28, 15): correlations -> what each exchange of two of V1 to V6 adds to the neighbours'."""
    exchanges = list(combinations(range(_V1, NUM_LEADS), 2))
    gains = np.zeros((NUM_CORRELATIONS, len(exchanges)), np.float32)
    for column, (one, other) in enumerate(exchanges):
        order = list(range(_V1, NUM_LEADS))
        order[one - _V1], order[other - _V1] = other, one
        for sign, leads in ((1, order), (-1, sorted(order))):
            for left, right in pairwise(leads):
                gains[_PAIRS.index((min(left, right), max(left, right))), column] += sign
    return gains


_GAINS = _gains()


def quality_of(
    signal_NCT: NDArray[np.int16],
    valid_NCT: NDArray[np.bool_] | None,
    scale_NC: NDArray[np.float32],
    offset_NC: NDArray[np.float32],
    correlation_NP: NDArray[np.float32],
    limits: Limits,
) -> list[dict[str, Any]]:
    """What the signal checks say of each record.

    Args:
        signal_NCT: (N, 12, T) int16, ADC units.
        valid_NCT: (N, 12, T) bool, False = padding or interpolated; None where all are valid.
        scale_NC: (N, 12) float32, microvolt per unit.
        offset_NC: (N, 12) float32, ADC units.
        correlation_NP: (N, 28) float32, of the records' fingerprints.
        limits: by the names of store/quality.toml.
    Returns:
        for each record cells of its row: `quality`, `quality_leads`, the measures of
        `store.quality.MEASURES`, `einthoven_uv` and `pacing_spikes`; and under "flags" what is no
        fault of a signal.
    """
    measures = lead_measures(
        signal_NCT,
        valid_NCT,
        (limits["spike_uv"] / scale_NC).astype(np.float32),
        spike_leads=int(limits["spike_leads"]),
    )
    einthoven_N = einthoven_uv(signal_NCT, scale_NC, offset_NC)
    amplitude_NC = (measures.up + measures.down) * scale_NC
    amplitude_N = np.sort(amplitude_NC, axis=1)[:, NUM_LEADS // 2]
    noise_NC, wander_NC, mains_NC = (
        each * scale_NC for each in (measures.noise, measures.wander, measures.mains)
    )
    by_lead = {
        "flat_lead": (measures.flat >= limits["flat_s"] * SAMPLING_RATE_HZ)
        | (amplitude_NC < limits["missing_share"] * amplitude_N[:, None]),
        "mains": mains_NC > limits["mains_uv"],
        "noise": noise_NC > limits["noise_uv"],
        "off_scale": _farthest(measures, offset_NC) * scale_NC > limits["off_scale_uv"],
        "saturated": _saturated(measures, scale_NC, limits),
        "wander": wander_NC > limits["wander_uv"],
    }
    contradicts = einthoven_N > limits["einthoven_uv"]
    by_record = {
        "amplitude": ~_plausible(amplitude_N, limits),
        "arm_leads": _arms_exchanged(measures, correlation_NP, limits["arm_correlation"]),
        "einthoven": contradicts,
        "factor_1000": _plausible(amplitude_N * 1000, limits)
        | _plausible(amplitude_N / 1000, limits),
        "leads_i_ii": _named_as_each_other(contradicts, signal_NCT, scale_NC, offset_NC, limits),
        "precordial_order": (correlation_NP @ _GAINS).max(axis=1) > limits["precordial_gain"],
    }
    # A chest lead with another fault looks like none of its neighbours, wherever it is.
    faulty_NC = np.logical_or.reduce([*by_lead.values()])
    by_record["precordial_order"] &= ~faulty_NC[:, _V1:].any(axis=1)
    by_record |= {flag: found_NC.any(axis=1) for flag, found_NC in by_lead.items()}
    numbers = {
        "amplitude_uv": amplitude_N,
        "noise_uv": noise_NC.max(axis=1),
        "wander_uv": wander_NC.max(axis=1),
        "mains_uv": mains_NC.max(axis=1),
        "einthoven_uv": einthoven_N,
    }
    columns = {name: [round(each, 3) for each in of.tolist()] for name, of in numbers.items()}
    columns["pacing_spikes"] = measures.spikes.tolist()
    found = {flag: np.flatnonzero(of).tolist() for flag, of in sorted(by_record.items())}
    rows: list[dict[str, Any]] = [
        {name: column[n] for name, column in columns.items()} for n in range(len(signal_NCT))
    ]
    for n, row in enumerate(rows):
        row["quality"] = ";".join(flag for flag, records in found.items() if n in records)
        row["quality_leads"] = ";".join(
            f"{flag}={','.join(np.array(LEADS)[by_lead[flag][n]])}"
            for flag in by_lead
            if n in found[flag]
        )
        row["flags"] = [PACING] if row["pacing_spikes"] >= limits["spikes"] else []
    return rows


def einthoven_uv(
    signal_NCT: NDArray[np.int16],
    scale_NC: NDArray[np.float32],
    offset_NC: NDArray[np.float32],
    signs: tuple[int, int, int] = (1, -1, 1),
) -> NDArray[np.float32]:
    """Largest deviation of III from II - I.

    Args:
        signal_NCT: (N, 12, T) int16, ADC units.
        scale_NC: (N, 12) float32, microvolt per unit.
        offset_NC: (N, 12) float32, ADC units.
        signs: of I, II and III in the sum that is zero; (-1, 1, 1) is III = I - II.
    Returns:
        (N,) float32, microvolt.
    """
    scale = scale_NC[:, :3] * np.array(signs, np.float32)
    constant = (offset_NC[:, :3] * scale).sum(axis=1)
    deviation = np.matmul(scale[:, None, :], signal_NCT[:, :3].astype(np.float32))[:, 0]
    high, low = deviation.max(axis=1) - constant, deviation.min(axis=1) - constant
    largest: NDArray[np.float32] = np.maximum(high, -low)
    return largest


def _named_as_each_other(
    contradicts_N: Flags,
    signal_NCT: NDArray[np.int16],
    scale_NC: NDArray[np.float32],
    offset_NC: NDArray[np.float32],
    limits: Limits,
) -> Flags:
    """(N,) records whose III is not II - I but I - II: one lead has the other's name."""
    found = np.zeros(len(signal_NCT), bool)
    some = np.flatnonzero(contradicts_N)
    if some.size:
        of = signal_NCT[some], scale_NC[some], offset_NC[some]
        found[some] = einthoven_uv(*of, signs=(-1, 1, 1)) <= limits["einthoven_uv"]
    return found


def _plausible(amplitude_N: NDArray[np.floating], limits: Limits) -> Flags:
    """(N,) amplitudes of the middle lead that a heart can have, microvolt.

    The middle of the leads: a loose electrode does not count, a wrong gain of all leads does.
    """
    low, high = limits["amplitude_least_uv"], limits["amplitude_most_uv"]
    return np.asarray((amplitude_N >= low) & (amplitude_N <= high))


def _farthest(measures: LeadMeasures, offset_NC: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 12) largest distance from zero, ADC units."""
    return np.asarray(np.maximum(measures.high - offset_NC, offset_NC - measures.low))


def _saturated(measures: LeadMeasures, scale_NC: NDArray[np.float32], limits: Limits) -> Flags:
    """(N, 12) leads that are held at their smallest or largest value, far from their level."""
    ends = (
        (measures.held_high, measures.high - measures.level),
        (measures.held_low, measures.level - measures.low),
    )
    high, low = (
        (held >= limits["held_timesteps"]) & (far * scale_NC >= limits["held_uv"])
        for held, far in ends
    )
    return np.asarray(high | low)


def _arms_exchanged(
    measures: LeadMeasures, correlation_NP: NDArray[np.float32], limit: float
) -> Flags:
    """(N,) records whose I is upside down: the electrodes of the arms are exchanged."""
    against = (correlation_NP[:, _ARM_PAIRS] < -limit).all(axis=1)
    negative = measures.up[:, _I] < measures.down[:, _I]
    return np.asarray(against & negative)
