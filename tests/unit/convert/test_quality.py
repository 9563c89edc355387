"""Signal checks: each fault that is put into a good ECG is found, and real recordings seldom fail.

Rates of real recordings are in docs/datasets.md.
"""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ecgfast_kernels.codec.signals import fingerprints
from numpy.typing import NDArray

from ecgfast.convert.measures import LEAST_TIMESTEPS
from ecgfast.convert.preprocess import Window, cut, to_samples
from ecgfast.convert.quality import einthoven_uv, quality_of
from ecgfast.errors import FormatError
from ecgfast.ingest import read_record
from ecgfast.ingest.inventory import discover
from ecgfast.records import LEADS
from ecgfast.store.quality import default_limits, table_of_limits

UV_PER_UNIT = 5.0
TIME_S = np.arange(5000) / 500
LIMB = [LEADS.index(name) for name in ("I", "II", "III", "aVR", "aVL", "aVF")]


def _row(
    signal_CT: NDArray[np.int16],
    scale_uv: NDArray[np.float32] | float = UV_PER_UNIT,
    valid_CT: NDArray[np.bool_] | None = None,
    offset: float = 0,
    **limits: float,
) -> dict[str, Any]:
    signal, valid = signal_CT[None], None if valid_CT is None else valid_CT[None]
    scale = np.full((1, 12), scale_uv, np.float32)
    offsets = np.full((1, 12), offset, np.float32)
    correlation = fingerprints(signal, least_timesteps=LEAST_TIMESTEPS).correlation
    found = quality_of(signal, valid, scale, offsets, correlation, default_limits() | limits)
    return found[0]


def _flags(signal_CT: NDArray[np.int16], *args: Any, **options: Any) -> list[str]:
    return [*filter(None, _row(signal_CT, *args, **options)["quality"].split(";"))]


def _heart(peak_uv: float = 1200.0) -> NDArray[np.int16]:
    """(12, 5000) units: a beat of about 75 ms every second, each some percent higher than the last.

    The electrodes see it from the side that they are on, so the leads are those of a heart.
    """
    time = np.arange(5000) % 500
    growth = 1 + np.arange(5000) // 500 / 100

    def wave(middle: int) -> NDArray[np.float64]:
        return np.exp(-(((time - middle) / 9) ** 2)) * growth

    q, r, s = wave(236), wave(250), wave(266)
    to_units = peak_uv / UV_PER_UNIT
    one, two = (
        np.rint(to_units * lead) for lead in (0.8 * r - 0.1 * s, 1.1 * r - 0.25 * s - 0.1 * q)
    )
    chest = [0.25 * r - 1.1 * s, 0.6 * r - 1.1 * s, 0.9 * r - 0.7 * s, 1.2 * r - 0.4 * s]
    chest += [1.1 * r - 0.2 * s, r - 0.1 * q]
    limb = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return np.rint([*limb, *(to_units * lead for lead in chest)]).astype(np.int16)


def _exchanged(signal_CT: NDArray[np.int16], *pairs: tuple[str, str]) -> NDArray[np.int16]:
    order = list(range(12))
    for one, other in pairs:
        i, j = LEADS.index(one), LEADS.index(other)
        order[i], order[j] = order[j], order[i]
    return signal_CT[order]


def _arms_exchanged(signal_CT: NDArray[np.int16]) -> NDArray[np.int16]:
    """What a device records with the electrodes of the two arms in each other's place."""
    swapped = _exchanged(signal_CT, ("II", "III"), ("aVR", "aVL"))
    swapped[0] = -swapped[0]
    return swapped


def test_a_heart_has_no_flag() -> None:
    row = _row(_heart())
    assert (row["quality"], row["quality_leads"], row["flags"]) == ("", "", [])
    assert row["amplitude_uv"] == pytest.approx(1500, rel=0.15)
    assert (row["noise_uv"] < 3, row["wander_uv"] < 20, row["mains_uv"] < 3) == (True,) * 3
    assert (row["einthoven_uv"], row["pacing_spikes"]) == (0, 0)


# Fault -> what it does to a good ECG in units of 5 microvolt; the flags, and the leads they name.
def _with(lead: int, added: NDArray[np.floating]) -> NDArray[np.int16]:
    signal = _heart()
    signal[lead] += np.rint(added / UV_PER_UNIT).astype(np.int16)
    return signal


def _replaced(lead: int, values: NDArray[np.integer] | int) -> NDArray[np.int16]:
    signal = _heart()
    signal[lead] = values
    return signal


NOISE = np.random.default_rng(0).normal(0, 1, 5000)
FAULTS = {
    "flat lead": (_replaced(8, 17), "flat_lead=V3"),
    "missing lead, with noise": (_replaced(8, np.rint(NOISE).astype(int)), "flat_lead=V3"),
    "clipped above": (_replaced(9, np.clip(4 * _heart()[9], -999, 400)), "saturated=V4"),
    "clipped below": (_replaced(9, np.clip(-4 * _heart()[9], -400, 999)), "saturated=V4"),
    "lead off": (_with(8, np.full(5000, -17_000.0)), "off_scale=V3"),
    "noise": (_with(6, 60 * NOISE), "noise=V1"),
    "wander": (_with(7, 1500 * np.sin(2 * np.pi * 0.2 * TIME_S)), "wander=V2"),
    "mains of Europe": (_with(11, 30 * np.sin(2 * np.pi * 50 * TIME_S)), "mains=V6"),
    "mains of America": (_with(11, 30 * np.sin(2 * np.pi * 59.9 * TIME_S)), "mains=V6"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_its_lead_is_named(fault: str) -> None:
    signal, leads = FAULTS[fault]
    row = _row(signal)
    assert (row["quality"], row["quality_leads"]) == (leads.partition("=")[0], leads)


def test_part_of_a_lead_is_flat() -> None:
    signal = _heart()
    signal[3, 1000:2100] = 40  # 2.2 s
    assert _flags(signal) == ["flat_lead"]
    signal[3, 1500] = 41
    assert _flags(signal) == []


def test_exchanged_leads() -> None:
    heart = _heart()
    assert _flags(_arms_exchanged(heart)) == ["arm_leads"]
    assert _flags(_exchanged(heart, ("I", "II"))) == ["einthoven", "leads_i_ii"]
    assert _flags(_exchanged(heart, ("V1", "V4"))) == ["precordial_order"]
    assert _flags(_exchanged(heart, ("V2", "V6"))) == ["precordial_order"]


def test_every_upper_limit_can_be_raised_out_of_reach() -> None:
    """What a limit stands for is not found then; a lead without any amplitude always is."""
    for fault, (signal, leads) in FAULTS.items():
        if fault == "flat lead":
            continue
        flag = leads.partition("=")[0]
        off = {name: 1e9 for name, each in table_of_limits().items() if each.flag == flag}
        off["precordial_gain"] = 9  # a lead with a fault that is not seen is out of order
        if flag == "flat_lead":
            off["missing_share"] = 1e-9
        assert _flags(signal, **off) == []
    off = {"arm_correlation": 2, "precordial_gain": 9}
    assert _flags(_arms_exchanged(_heart()), **off) == []
    assert _flags(_exchanged(_heart(), ("V1", "V4")), **off) == []


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (1, set()),
        (5, {"amplitude"}),
        (0.2, {"amplitude"}),
        (1000, {"amplitude", "factor_1000", "off_scale"}),  # and whatever else is microvolt
        (0.001, {"amplitude", "factor_1000"}),
    ],
)
def test_a_wrong_gain_of_all_leads(factor: float, expected: set[str]) -> None:
    found = set(_flags(_heart(), UV_PER_UNIT * factor))
    assert expected <= found
    assert found == expected or factor == 1000


@pytest.mark.parametrize(("leads", "flagged"), [(5, False), (6, True)])
def test_loose_electrodes_are_no_wrong_gain(leads: int, flagged: bool) -> None:
    signal = _heart()
    signal[12 - leads :] *= 20
    assert ("amplitude" in _flags(signal)) is flagged


def test_the_offset_belongs_to_the_voltage() -> None:
    signal = _heart() + np.int16(4000)  # 20 mV
    assert _flags(signal, offset=4000) == []
    assert _flags(signal) == ["einthoven", "off_scale"]


def test_spikes_of_a_pacemaker_are_no_fault() -> None:
    signal = _heart()
    signal[[0, 1, 6, 7], 220::500] += 120  # 0.6 mV before each beat, 2 ms wide
    row = _row(signal)
    assert row["flags"] == ["pacing"]
    assert row["pacing_spikes"] == 10
    assert "noise" not in row["quality"]
    assert _row(signal, spikes=11)["flags"] == []


def test_padding_and_interpolated_stretches_are_not_looked_at() -> None:
    signal, valid = _heart() + np.int16(1000), np.ones((12, 5000), bool)
    signal[6:, 3000:], valid[:, 3000:] = 0, False  # 5 mV below
    assert {"flat_lead", "wander"} <= set(_flags(signal, offset=1000))
    assert _flags(signal, valid_CT=valid, offset=1000) == []


def test_an_empty_record_has_no_amplitude() -> None:
    row = _row(np.zeros((12, 5000), np.int16))
    assert row["quality"] == "amplitude;flat_lead"
    assert row["quality_leads"] == f"flat_lead={','.join(LEADS)}"


def test_records_of_a_batch_do_not_touch_each_other() -> None:
    signals = [signal for signal, _ in FAULTS.values()]
    batch = np.stack(signals)
    correlation = fingerprints(batch, least_timesteps=LEAST_TIMESTEPS).correlation
    scale = np.full(batch.shape[:2], UV_PER_UNIT, np.float32)
    rows = quality_of(batch, None, scale, 0 * scale, correlation, default_limits())
    assert rows == [_row(signal) for signal in signals]


def test_how_far_limb_leads_are_at_odds() -> None:
    """III - (II - I) in microvolt, of leads with gains and offsets of their own."""
    rng = np.random.default_rng(0)
    signal = rng.integers(-500, 500, (4, 12, 50)).astype(np.int16)
    scale = rng.uniform(0.5, 5, (4, 12)).astype(np.float32)
    offset = rng.integers(-300, 300, (4, 12)).astype(np.float32)
    one, two, three = ((signal - offset[:, :, None]) * scale[:, :, None]).swapaxes(0, 1)[:3]
    expected = np.abs(three - (two - one)).max(axis=1)
    np.testing.assert_allclose(einthoven_uv(signal, scale, offset), expected, rtol=1e-5)
    np.testing.assert_allclose(einthoven_uv(-signal, scale, -offset), expected, rtol=1e-5)
    other = np.abs(three - (one - two)).max(axis=1)
    found = einthoven_uv(signal, scale, offset, signs=(-1, 1, 1))
    np.testing.assert_allclose(found, other, rtol=1e-5)


@pytest.mark.parametrize(("units", "flagged"), [(20, False), (21, True)])
def test_limb_leads_may_be_100_microvolt_at_odds(units: int, flagged: bool) -> None:
    signal = _heart()
    signal[2, 700] += units
    assert ("einthoven" in _flags(signal)) is flagged


@cache
def _real(folder: Path) -> list[tuple[NDArray[np.int16], NDArray[np.float32]]]:
    """Windows (12, 5000) of the recordings of a folder, with their scales."""
    found = []
    for item in discover([folder]):
        if item.record_id.startswith("old_headers/"):
            continue
        try:
            samples = to_samples(read_record(item))
        except FormatError:
            continue
        windows = cut(samples, window="all", short="quarantine")
        found += [(each.signal, samples.scale_uv) for each in windows if isinstance(each, Window)]
    return found


@pytest.mark.parametrize(
    ("folder", "records", "expected"),
    [
        # Gains of LUDB's headers are normalised lead by lead, so limb leads do not add up.
        ("ludb", 200, {"einthoven": 189, "noise": 6, "arm_leads": 2, "amplitude": 2}),
        ("ptbxl/hr_gt", 31, {"wander": 2}),
        (
            "ptbxl500/records500",
            500,
            {"wander": 14, "precordial_order": 3, "noise": 2, "mains": 1, "off_scale": 1},
        ),
    ],
)
def test_share_of_real_recordings(
    shared_data: Path, folder: str, records: int, expected: dict[str, int]
) -> None:
    real = _real(shared_data / folder)
    found = Counter(flag for signal, scale in real for flag in _flags(signal, scale))
    assert (len(real), dict(found)) == (records, expected)


def _share(records: list[tuple[NDArray[np.int16], Any]], flag: str, change: Any) -> float:
    flagged = [flag in _flags(change(signal), scale) for signal, scale in records]
    return float(np.mean(flagged))


@pytest.mark.parametrize("folder", ["ludb", "ptbxl500/records500"])
def test_exchanged_leads_of_real_recordings(shared_data: Path, folder: str) -> None:
    """Sensitivity, on every second record; docs/datasets.md has all pairs."""
    real = _real(shared_data / folder)[::2]
    assert _share(real, "arm_leads", _arms_exchanged) > 0.85
    far = [
        _share(real, "precordial_order", _exchange(pair)) for pair in (("V1", "V4"), ("V2", "V6"))
    ]
    near = _share(real, "precordial_order", _exchange(("V2", "V3")))
    assert min(far) > 0.9
    assert near > 0.6
    if folder != "ludb":  # whose limb leads do not add up
        assert _share(real, "leads_i_ii", _exchange(("I", "II"))) > 0.9


def _exchange(pair: tuple[str, str]) -> Any:
    return lambda signal: _exchanged(signal, pair)


def test_paced_records_of_ptb_xl(shared_data: Path) -> None:
    """Those that its table calls paced, and no others."""
    import csv

    folder = shared_data / "ptbxl500"
    with (folder / "ptbxl_database.csv").open(newline="", encoding="utf-8") as file:
        paced = {line["filename_hr"] for line in csv.DictReader(file) if line["pacemaker"].strip()}
    found = set()
    for item in discover([folder / "records500"]):
        samples = to_samples(read_record(item))
        if _row(samples.signal, samples.scale_uv)["flags"]:
            found.add(f"records500/{item.record_id}")
    assert len(paced) == 6
    assert found == paced
